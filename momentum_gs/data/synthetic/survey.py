"""A drone's survey of the procedural city: flight plan, images with depth, and the points SfM would find."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.core.geometry import in_view
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.core.voxels import cells_of, unique_cells
from momentum_gs.data.synthetic.cast import SKY, Caster
from momentum_gs.data.synthetic.city import City
from momentum_gs.data.synthetic.shade import Shader, to_srgb

FOCAL = 0.8
"""Focal length over image width: a field of view of 64 degrees, a drone's wide lens."""
_OBLIQUE_SHARE = 0.15
"""Share of the views in each of the four oblique passes; the other views look straight down."""
_OBLIQUE_TILT = math.radians(42)
"""Of the oblique passes, from straight down: facades show and the horizon stays out of the image."""
_OVERLAP = 0.6
"""Share of a nadir image's shorter side that the next image shows again, at roof height."""
_NADIR_REACH, _OBLIQUE_REACH = 0.85, 0.7
"""Share of the city's extent over which the passes aim: the outer images still cover its edge, with few fields."""
_JITTER_METRES, _JITTER_RADIANS = 1.5, math.radians(1.5)
"""Standard deviations of what wind does to position and attitude."""

_SAMPLES = 2
"""Rays per pixel along x and along y."""
_LENS = 1.5
"""Footprint of a sample over the distance between samples: neighbours overlap, as they do behind a real lens."""
_CHUNK = 1 << 18
"""Rays cast at once: large enough to hide the cost of an operator, small enough that a thread needs some 100 MiB."""

_TRACK = 3
"""Views that must see a point before SfM would keep it."""
_NOISE = 5e-4
"""Standard deviation of a point's error along each axis, relative to its distance from the camera that it was found in
(half a pixel in an image 1250 pixels wide)."""
_OUTLIERS, _OUTLIER_METRES = 0.01, 3.0
"""Share of points that are outliers, and the standard deviation of their error."""


def fly(city: City, views: int, width: int, height: int, seed: int) -> tuple[list[Camera], float]:
    """Plan the flight: one lawnmower pass looking straight down, then one oblique pass in each cardinal direction.

    The altitude follows from the number of views: few views fly high, so that neighbouring images always overlap.

    Returns:
        Cameras in the order of flight, named 0000.jpg onward, and the altitude in metres.
    """
    near, far = ((city.size[0] * reach, city.size[1] * reach) for reach in (_NADIR_REACH, _OBLIQUE_REACH))
    oblique = int(views * _OBLIQUE_SHARE)
    nadir = views - 4 * oblique
    spacing = math.sqrt(near[0] * near[1] / nadir)
    short_side = min(1.0, height / width) / FOCAL
    above_roofs = spacing / (1 - _OVERLAP) / short_side
    # Overlap is lost on high roofs; half of the tallest building is where most roofs are. Never among the buildings.
    altitude = max(above_roofs + city.tallest / 2, 1.5 * city.tallest)
    poses = [(x, y, 0.0, turn) for x, y, turn in _lawnmower(*near, nadir)]
    for side in range(4):
        for x, y, _ in _lawnmower(*far, oblique):
            poses.append((x, y, _OBLIQUE_TILT, side * math.pi / 2))
    generator = keyed_generator(seed, "flight")
    cameras = []
    for i, (x, y, tilt, yaw) in enumerate(poses):
        dx, dy, dz, a, b, c = torch.randn(6, generator=generator, dtype=torch.float64).tolist()
        tilt, yaw = tilt + a * _JITTER_RADIANS, yaw + b * _JITTER_RADIANS
        level = altitude if i < nadir else 0.85 * altitude
        back = level * math.tan(tilt) if i >= nadir else 0.0
        center = torch.tensor(
            [x - back * math.sin(yaw) + dx * _JITTER_METRES, y - back * math.cos(yaw) + dy * _JITTER_METRES,
             level + dz * _JITTER_METRES], dtype=torch.float64
        )  # fmt: skip
        rotation = attitude(yaw, tilt, c * _JITTER_RADIANS)
        focal = FOCAL * width
        cameras.append(Camera(f"{i:04d}.jpg", width, height, focal, focal, width / 2, height / 2, rotation,
                              -rotation @ center))  # fmt: skip
    return cameras, altitude


def attitude(yaw: float, tilt: float, roll: float) -> Float[Tensor, "3 3"]:
    """World-to-camera rotation: heading from +y towards +x, tilt from straight down, roll about the lens. Radians."""
    forward = torch.tensor([math.sin(yaw) * math.sin(tilt), math.cos(yaw) * math.sin(tilt), -math.cos(tilt)],
                           dtype=torch.float64)  # fmt: skip
    right = torch.tensor([math.cos(yaw), -math.sin(yaw), 0.0], dtype=torch.float64)
    down = torch.linalg.cross(forward, right)
    c, s = math.cos(roll), math.sin(roll)
    return torch.stack([c * right + s * down, -s * right + c * down, forward])


def _lawnmower(size_x: float, size_y: float, count: int) -> list[tuple[float, float, float]]:
    """Exactly ``count`` places (x, y, heading) in lines over the city, there and back again."""
    lines = max(1, min(count, round(math.sqrt(count * size_x / size_y))))
    places = []
    for line in range(lines):
        on_line = count // lines + (line < count % lines)
        x = ((line + 0.5) / lines - 0.5) * size_x
        along = [((k + 0.5) / on_line - 0.5) * size_y for k in range(on_line)]
        back = line % 2 == 1
        places += [(x, y, math.pi if back else 0.0) for y in (reversed(along) if back else along)]
    return places


def target(camera: Camera, caster: Caster, shader: Shader) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "h w"]]:
    """Image in sRGB [0, 1], averaged over the samples of a pixel, and camera z in metres at the pixels' centres.

    The depth of the sky is 0.
    """
    origin = camera.center.float()
    fine = _directions(camera, _SAMPLES)
    fine = fine / fine.norm(dim=1, keepdim=True)
    spread = _LENS / (camera.fx * _SAMPLES)
    colors = []
    for rays in fine.split(_CHUNK):
        origins = origin.expand_as(rays)
        colors.append(shader.shade(origins, rays, caster.cast(origins, rays), spread))
    linear = torch.cat(colors).reshape(camera.height, _SAMPLES, camera.width, _SAMPLES, 3).mean(dim=(1, 3))
    # These directions have camera z = 1, so that distance along them is depth.
    depth = [caster.cast(origin.expand_as(rays), rays).distance for rays in _directions(camera, 1).split(_CHUNK)]
    flat = torch.cat(depth)
    flat = torch.where(flat.isfinite(), flat, 0.0)
    return to_srgb(linear).permute(2, 0, 1).contiguous(), flat.reshape(camera.height, camera.width)


def _directions(camera: Camera, samples: int) -> Float[Tensor, "n 3"]:
    """World directions with camera z = 1 through ``samples`` x ``samples`` places of every pixel, row by row."""
    x = (torch.arange(camera.width * samples) + 0.5) / samples
    y = (torch.arange(camera.height * samples) + 0.5) / samples
    x, y = ((x - camera.cx) / camera.fx).float(), ((y - camera.cy) / camera.fy).float()
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    seen = torch.stack([grid_x, grid_y, torch.ones_like(grid_x)], dim=-1).reshape(-1, 3)
    return seen @ camera.rotation.float()


def features(
    camera: Camera, image: Float[Tensor, "3 h w"], depth: Float[Tensor, "h w"], count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "m 3"], Float[Tensor, "m 3"]]:
    """Surface points under pixels chosen where the image has detail, as a feature detector would.

    Returns:
        World points (float64) and their colours in [0, 1]; fewer than ``count`` where the sky was hit.
    """
    gray = image.mean(dim=0)
    detail = torch.zeros_like(gray)
    detail[:, 1:-1] += (gray[:, 2:] - gray[:, :-2]).abs()
    detail[1:-1] += (gray[2:] - gray[:-2]).abs()
    # The constant lets a few points fall on flat tones, as matched lens and surface grain do.
    weight = (detail + 0.02).flatten().double().cumsum(0)
    where = torch.rand(count, generator=generator, dtype=torch.float64) * weight[-1]
    pixel = torch.searchsorted(weight, where).clamp_max(len(weight) - 1)
    return _points_under(pixel, camera, image, depth)


def _points_under(pixel: Int[Tensor, "m"], camera: Camera, image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """World points and colours under pixels, without those of the sky."""
    z = depth.flatten()[pixel].double()
    pixel, z = pixel[z > 0], z[z > 0]
    x = (pixel % camera.width + 0.5 - camera.cx) / camera.fx
    y = (pixel // camera.width + 0.5 - camera.cy) / camera.fy
    points = torch.stack([x * z, y * z, z], dim=1) @ camera.rotation + camera.center
    return points, image.flatten(1)[:, pixel].T


def surface_cloud(camera: Camera, image: Float[Tensor, "3 h w"], depth: Float[Tensor, "h w"]) -> PointCloud:
    """The surface points under all pixels."""
    xyz, rgb = _points_under(torch.arange(depth.numel()), camera, image, depth)
    return PointCloud(xyz, (rgb * 255).round().to(torch.uint8))


def thinned_cloud(clouds: Sequence[PointCloud], spacing: float) -> PointCloud:
    """The first point in every voxel of edge ``spacing``, metres; points that were first alone remain so."""
    xyz, rgb = torch.cat([cloud.xyz for cloud in clouds]), torch.cat([cloud.rgb for cloud in clouds])
    distinct, place = unique_cells(cells_of(xyz, spacing))
    first = torch.full((len(distinct),), len(xyz)).scatter_reduce(0, place, torch.arange(len(xyz)), "amin")
    first = first.sort().values
    return PointCloud(xyz[first], rgb[first])


def track_lengths(points: Float[Tensor, "m 3"], cameras: list[Camera], caster: Caster) -> Int[Tensor, "m"]:
    """Number of cameras that see each surface point: in the image, and not occluded."""
    seen = torch.zeros(len(points), dtype=torch.int64)
    for camera in cameras:
        inside = in_view(points, camera).nonzero().squeeze(1)
        towards = (points[inside] - camera.center).float()
        hits = caster.cast(camera.center.float().expand_as(towards), towards)
        # The point itself lies at 1: half a percent of slack, decimetres, forgives float32 and grazing rays.
        seen[inside] += ((hits.distance - 1).abs() < 5e-3) & (hits.solid != SKY)
    return seen


def sparse_points(
    points: Float[Tensor, "m 3"], colors: Float[Tensor, "m 3"], cameras: list[Camera], caster: Caster, count: int,
    seed: int,
) -> PointCloud:  # fmt: skip
    """Keep points that at least three views see, at most ``count`` of them, and add the errors of SfM.

    Args:
        points: Surface points, in any order.
        colors: In [0, 1].
        cameras: All views.
        caster: Of the city.
        count: Largest number of points to keep.
        seed: Key of the choice and of the noise.
    """
    generator = keyed_generator(seed, "sparse points")
    tracked = (track_lengths(points, cameras, caster) >= _TRACK).nonzero().squeeze(1)
    tracked = tracked[torch.randperm(len(tracked), generator=generator)[:count]]
    xyz, rgb = points[tracked], colors[tracked]
    centers = torch.stack([camera.center for camera in cameras])
    distance = torch.cdist(xyz, centers).amin(dim=1, keepdim=True)
    noise = torch.randn(xyz.shape, generator=generator, dtype=torch.float64)
    wild = torch.rand(len(xyz), 1, generator=generator) < _OUTLIERS
    xyz = xyz + noise * torch.where(wild, _OUTLIER_METRES, _NOISE * distance)
    return PointCloud(xyz=xyz, rgb=(rgb * 255).round().to(torch.uint8))
