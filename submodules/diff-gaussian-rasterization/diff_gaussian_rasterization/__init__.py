"""Tile-based rasterizer of 3D Gaussians with gradients."""

from diff_gaussian_rasterization.ops import Rasterization, cpu_kernels, rasterize, spherical_harmonics, visible_radii
from diff_gaussian_rasterization.settings import GaussianRasterizationSettings, GaussianRasterizer

__all__ = [
    "GaussianRasterizationSettings",
    "GaussianRasterizer",
    "Rasterization",
    "cpu_kernels",
    "rasterize",
    "spherical_harmonics",
    "visible_radii",
]
