"""Points to start from where training images see something but no point lies: rims, and walls without texture."""

from collections.abc import Sequence

import torch

from momentum_gs.core.geometry import project
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera, PointCloud

PER_CELL = 10
"""Points of an image over cells of its grid: were they spread evenly, one cell in 20,000 would show none by chance."""
NEIGHBOURS = 3
"""Points of the image between whose depths a new point's depth lies."""
MAX_POINTS = 20_000
"""Points of an image among which the nearest are looked for; of more, every so manieth. Cells are far larger."""


def fill_points(points: PointCloud, cameras: Sequence[Camera], share: float, seed: int) -> PointCloud:
    """The points, and behind them random ones in the cells of the images' grids that show no point.

    View after view, so that what one has filled the next ones leave alone. A cell gets ``PER_CELL`` points, as the
    others have. Their depth is interpolated from the nearest points of the image, as inverse depth, which is linear in
    the image of a plane; their colour is the nearest point's. The result depends on points, cameras and seed alone.

    Args:
        points: Scene units.
        cameras: Training views.
        share: New points are at most so many times the points; where there would be more, some are drawn.
        seed: Of the draws.
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
    """New points of one view."""
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
    distance, nearest = torch.cdist(at, pixels).topk(NEIGHBOURS, dim=1, largest=False)
    weight = 1 / distance.clamp_min(1e-6)
    z = weight.sum(dim=1) / (weight / depth[nearest]).sum(dim=1)
    ray = torch.stack([(at[:, 0] - camera.cx) / camera.fx, (at[:, 1] - camera.cy) / camera.fy, torch.ones_like(z)], 1)
    return PointCloud((ray * z[:, None]) @ camera.rotation + camera.center, rgb[nearest[:, 0]])
