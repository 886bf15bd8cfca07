"""Random initial points, for scenes without a point cloud."""

from collections.abc import Sequence

import numpy as np
import torch

from momentum_gs.core.geometry import camera_radius
from momentum_gs.core.types import Camera, PointCloud

COUNT = 100_000
"""The number that 3DGS codebases use for scenes without a cloud."""
_NEAREST, _FARTHEST = 0.05, 2.0
"""Depths in units of the camera radius: from close to a camera to the other side of the scene."""


def random_points(cameras: Sequence[Camera], count: int = COUNT, seed: int = 0) -> PointCloud:
    """Random points with random colours where cameras look; they depend only on the cameras, the count and the seed.

    Each point is at a random pixel of a random camera, at a log-uniform depth from 0.05 to 2 camera radii. So every
    point is in an image, whether the cameras surround an object or fly over a city. The camera radius is 1.1 times the
    largest distance of a camera from their mean, or 1 if all are at one position.
    """
    draw = np.random.default_rng(seed)
    radius = camera_radius(torch.stack([camera.center for camera in cameras])) or 1.0
    which = draw.integers(len(cameras), size=count)
    depth = radius * np.exp(draw.uniform(np.log(_NEAREST), np.log(_FARTHEST), count))
    place = draw.uniform(size=(count, 2))
    size, focal, middle = (
        np.array([(getattr(c, x), getattr(c, y)) for c in cameras])
        for x, y in (("width", "height"), ("fx", "fy"), ("cx", "cy"))
    )
    rays = (place * size[which] - middle[which]) / focal[which]
    seen = torch.from_numpy(np.concatenate([rays, np.ones((count, 1))], axis=1) * depth[:, None])
    chosen = torch.from_numpy(which)
    rotation = torch.stack([camera.rotation for camera in cameras])[chosen]
    center = torch.stack([camera.center for camera in cameras])[chosen]
    xyz = torch.einsum("nji,nj->ni", rotation, seen) + center
    return PointCloud(xyz, torch.from_numpy(draw.integers(0, 256, (count, 3), dtype=np.uint8)))
