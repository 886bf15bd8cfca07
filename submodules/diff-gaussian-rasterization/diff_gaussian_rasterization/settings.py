"""The interface that 3DGS codebases import: settings and a module, implemented with ``ops.rasterize``."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diff_gaussian_rasterization.ops import NEAR, rasterize, spherical_harmonics, visible_radii


class GaussianRasterizationSettings(NamedTuple):
    """One view, in the conventions of 3DGS codebases (matrices for row vectors, fields of view)."""

    image_height: int
    image_width: int
    tanfovx: float
    """tan(horizontal field of view / 2)."""
    tanfovy: float
    bg: Tensor
    """[C] background."""
    scale_modifier: float
    viewmatrix: Tensor
    """[4,4] world to camera for row vectors (the transpose of the usual matrix)."""
    projmatrix: Tensor
    """[4,4] world to clip space for row vectors; it may have an off-centre principal point."""
    sh_degree: int
    campos: Tensor
    """[3] centre of the camera, for the directions of spherical harmonics."""
    prefiltered: bool = False
    """Kept for compatibility; culling is done in any case."""
    debug: bool = False
    """Kept for compatibility; errors are always reported."""
    antialiasing: bool = False
    """Field of newer forks; True is an error, because images would silently differ."""


class GaussianRasterizer(nn.Module):
    """Rasterizes one view: ``image, radii = GaussianRasterizer(settings)(means3D, means2D, opacities, ...)``."""

    def __init__(self, raster_settings: GaussianRasterizationSettings) -> None:
        super().__init__()
        self.raster_settings = raster_settings

    def forward(
        self,
        means3D: Tensor,
        means2D: Tensor | None,
        opacities: Tensor,
        shs: Tensor | None = None,
        colors_precomp: Tensor | None = None,
        scales: Tensor | None = None,
        rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns image [C,H,W] and radii int32 [G]; the gradient by the projected means goes to ``means2D.grad``.

        Args:
            means3D: [G,3].
            means2D: [G,3] leaf, values unused; ``grad[:, :2]`` is in NDC units.
            opacities: [G,1].
            shs: [G,K,3] spherical harmonics, or
            colors_precomp: [G,C].
            scales: [G,3] with rotations [G,4] (w, x, y, z), or
            rotations: see scales.
            cov3D_precomp: [G,6].
        """
        settings = self.raster_settings
        if (shs is None) == (colors_precomp is None):
            raise ValueError("rasterize: give either shs or colors_precomp")
        if getattr(settings, "antialiasing", False):
            raise ValueError("rasterize: antialiasing=True is not supported; set it to False")
        if colors_precomp is None:
            colors_precomp = self._colors(means3D, shs)
        out = rasterize(
            means3D,
            opacities,
            colors_precomp,
            scales=scales,
            quats=rotations,
            cov3d=cov3D_precomp,
            background=settings.bg.to(means3D),
            means2d=means2D,
            **_camera(settings),
        )
        return out.image, out.radii

    def markVisible(self, positions: Tensor) -> Tensor:  # noqa: N802 (the name in 3DGS)
        """bool [G]: points in front of the near plane (3DGS tests nothing else here)."""
        with torch.no_grad():
            view = self.raster_settings.viewmatrix.to(positions)
            return positions @ view[:3, 2] + view[3, 2] > NEAR

    def visible_filter(
        self,
        means3D: Tensor,
        scales: Tensor | None = None,
        rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,
    ) -> Tensor:
        """Radii int32 [G] as ``forward`` returns them, 0 where culled. No gradients."""
        return visible_radii(means3D, scales, rotations, cov3d=cov3D_precomp, **_camera(self.raster_settings))

    def _colors(self, means: Tensor, shs: Tensor | None) -> Tensor:
        settings = self.raster_settings
        return (spherical_harmonics(settings.sh_degree, means - settings.campos.to(means), shs) + 0.5).clamp_min(0)


def _camera(settings: GaussianRasterizationSettings) -> dict[str, Any]:
    """The arguments of ``rasterize`` that describe the view."""
    width, height = settings.image_width, settings.image_height
    # Row vectors: clip = [world 1] view projection. The rows of the projection for camera directions are
    # inverse(view rotation) @ projmatrix[:3]; its z row holds the shift of the principal point, in half images.
    with torch.no_grad():
        rotation, matrix = settings.viewmatrix[:3, :3].double(), settings.projmatrix[:3].double()
        shift_x, shift_y = (torch.linalg.inv(rotation)[2] @ matrix)[:2].tolist()
    return {
        "world_view": settings.viewmatrix.T,
        "fx": width / (2 * settings.tanfovx),
        "fy": height / (2 * settings.tanfovy),
        "cx": 0.5 * width * (1 + shift_x),
        "cy": 0.5 * height * (1 + shift_y),
        "width": width,
        "height": height,
        "scale_modifier": settings.scale_modifier,
    }
