"""Synthetic scenes for the tests and bench.py."""

from typing import Any

import torch
from torch import Tensor

Scene = dict[str, Any]


def make_scene(
    count: int = 60,
    *,
    channels: int = 3,
    width: int = 50,
    height: int = 37,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    max_opacity: float = 0.95,
) -> Scene:
    """Gaussians in front of a slightly turned camera with an off-centre principal point: the arguments of rasterize."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    means = uniform(count, 3) * torch.tensor([2.0, 1.5, 3.0]) + torch.tensor([-1.0, -0.75, 1.0])
    angle = torch.tensor(0.1, dtype=torch.float64)
    world_view = torch.eye(4, dtype=torch.float64)
    world_view[0, 0] = world_view[2, 2] = angle.cos()
    world_view[0, 2], world_view[2, 0] = angle.sin(), -angle.sin()
    world_view[:3, 3] = torch.tensor([0.1, -0.05, 0.2])
    tensors = {
        "means": means,
        "opacities": uniform(count, 1) * (max_opacity - 0.05) + 0.05,
        "colors": uniform(count, channels),
        "scales": torch.exp(normal(count, 3) * 0.5 - 2),
        "quats": torch.nn.functional.normalize(normal(count, 4), dim=1),
        "world_view": world_view,
        "background": uniform(channels),
    }
    camera = {"fx": 40.0, "fy": 45.0, "cx": width / 2 + 1.3, "cy": height / 2 - 0.7, "width": width, "height": height}
    return {name: tensor.to(dtype) for name, tensor in tensors.items()} | camera


def with_cov3d(scene: Scene) -> Scene:
    """The same scene with covariances in place of scales and rotations."""
    from diff_gaussian_rasterization.reference import covariance_of

    cov = covariance_of(scene["scales"], scene["quats"])
    rest = {name: value for name, value in scene.items() if name not in ("scales", "quats")}
    return rest | {"cov3d": cov.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]].contiguous()}


def screen_scene(count: int, width: int, height: int, pixels: float = 2.5, seed: int = 0) -> Scene:
    """float32 Gaussians spread evenly over the image, log-normal sizes around ``pixels`` (spread 0.5).

    Opacities are uniform in 0.02 to 0.92. bench.py measures on this scene.
    """
    generator = torch.Generator().manual_seed(seed)
    focal = float(width)
    depth = torch.rand(count, generator=generator) * 10 + 1
    at = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    xy = (at - torch.tensor([width, height]) / 2) * (depth / focal)[:, None]
    scales = torch.exp(torch.randn(count, 3, generator=generator) * 0.5) * pixels * (depth / focal)[:, None]
    return {
        "means": torch.cat([xy, depth[:, None]], 1),
        "opacities": torch.rand(count, 1, generator=generator) * 0.9 + 0.02,
        "colors": torch.rand(count, 3, generator=generator),
        "scales": scales,
        "quats": torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1),
        "world_view": torch.eye(4),
        "background": torch.zeros(3),
        "fx": focal,
        "fy": focal,
        "cx": width / 2,
        "cy": height / 2,
        "width": width,
        "height": height,
    }
