"""Tile-based rasterizer of 3D Gaussians with gradients."""

from diff_gaussian_rasterization.adam import SparseGaussianAdam, adam_update
from diff_gaussian_rasterization.ops import (
    Around,
    Capacity,
    Rasterization,
    cpu_kernels,
    median_depth,
    rasterize,
    spherical_harmonics,
    visible_radii,
)
from diff_gaussian_rasterization.rendering import rasterization
from diff_gaussian_rasterization.settings import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    rasterize_gaussians,
)

__all__ = [
    "Around",
    "GaussianRasterizationSettings",
    "GaussianRasterizer",
    "Rasterization",
    "Capacity",
    "SparseGaussianAdam",
    "adam_update",
    "cpu_kernels",
    "median_depth",
    "rasterization",
    "rasterize",
    "rasterize_gaussians",
    "spherical_harmonics",
    "visible_radii",
]
