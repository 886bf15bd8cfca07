"""Points to start from where nobody measured any."""

from collections.abc import Sequence

import numpy as np
import torch

from momentum_gs.core.geometry import camera_radius
from momentum_gs.core.types import Camera, PointCloud

COUNT = 100_000
"""As many as 3DGS codebases draws for scenes without a cloud."""
_NEAREST, _FARTHEST = 0.05, 2.0
"""Depths, in radii of the cameras: from close by to across the scene."""


def random_points(cameras: Sequence[Camera], count: int = COUNT, seed: int = 0) -> PointCloud:
    """Random points of random colours where cameras look, the same for the same cameras and seed.

    Each is a random pixel of a random camera, at a depth from 0.05 to 2 radii of the cameras, its logarithm uniform: so
    every point is in an image, whether the cameras stand around an object or fly over a city. The radius is 1.1 times
    the largest distance of a camera from their mean, or 1 where they are all in one place.
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
