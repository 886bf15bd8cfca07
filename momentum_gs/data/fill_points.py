"""Fill points: initial points where training images overlap but the sparse model has none.

Such places are the rims of a survey and surfaces without texture.
"""

from collections.abc import Sequence

import torch

from momentum_gs.core.geometry import project
from momentum_gs.core.nearest import PointTree
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera, PointCloud

PER_CELL = 10
"""Mean number of an image's points per cell of its grid. With points at random, one cell in 20,000 would be empty by
chance."""
NEIGHBOURS = 3
"""Number of nearest points in the image from which a new point's depth is interpolated."""
MAX_POINTS = 20_000
"""Number of an image's points among which the nearest are searched; of more points, every n-th is used. Cells are far
larger than the distance between these."""


def fill_points(points: PointCloud, cameras: Sequence[Camera], share: float, seed: int) -> PointCloud:
    """The points, followed by fill points in the cells of the images' grids that show no point.

    Views are processed one after another, and later views see the points that earlier ones added. An empty cell gets
    ``PER_CELL`` random points, the mean of the others. Their inverse depth is interpolated from the nearest points in
    the image, since the inverse depth of a plane is linear in the image; their colour is that of the nearest point. The
    result depends only on points, cameras and seed.

    Args:
        points: World, training units.
        cameras: Training views.
        share: Upper bound on the number of fill points, as a multiple of the number of points; a random subset is kept
            where there are more.
        seed: Seed of the random numbers.
    """
    filled = points
    for camera in cameras:
        filled = _joined(filled, _fill(filled, camera, keyed_generator(seed, "fill", camera.name)))
    order = torch.randperm(len(filled) - len(points), generator=keyed_generator(seed, "fill"))
    chosen = len(points) + order[: int(share * len(points))].sort().values
    return _joined(points, PointCloud(filled.xyz[chosen], filled.rgb[chosen]))


def _joined(one: PointCloud, other: PointCloud) -> PointCloud:
    return PointCloud(torch.cat([one.xyz, other.xyz]), torch.cat([one.rgb, other.rgb]))


def _fill(points: PointCloud, camera: Camera, draw: torch.Generator) -> PointCloud:
    """The fill points of one view."""
    pixels, depth = project(points.xyz, camera)
    size = pixels.new_tensor([camera.width, camera.height])
    seen = ((pixels >= 0) & (pixels < size)).all(dim=1) & (depth > 0)
    pixels, depth, rgb = pixels[seen], depth[seen], points.rgb[seen]
    if len(pixels) < NEIGHBOURS:
        return PointCloud(points.xyz[:0], points.rgb[:0])
    edge = (camera.width * camera.height * PER_CELL / len(pixels)) ** 0.5
    columns, rows = (max(1, round(side / edge)) for side in (camera.width, camera.height))
    grid = pixels.new_tensor([columns, rows])
    column, row = (pixels / size * grid).long().unbind(1)
    counts = torch.bincount(row * columns + column, minlength=columns * rows)
    empty = (counts == 0).nonzero().squeeze(1).repeat_interleave(PER_CELL)
    place = torch.stack([empty % columns, empty // columns], dim=1)
    thin = -(-len(pixels) // MAX_POINTS)
    pixels, depth, rgb = pixels[::thin], depth[::thin], rgb[::thin]
    at = (place + torch.rand(len(place), 2, generator=draw, dtype=torch.float64)) / grid * size
    distance, near = PointTree(pixels).nearest(at, NEIGHBOURS)
    weight = 1 / distance.clamp_min(1e-6)
    z = weight.sum(dim=1) / (weight / depth[near]).sum(dim=1)
    ray = torch.stack([(at[:, 0] - camera.cx) / camera.fx, (at[:, 1] - camera.cy) / camera.fy, torch.ones_like(z)], 1)
    return PointCloud((ray * z[:, None]) @ camera.rotation + camera.center, rgb[near[:, 0]])
