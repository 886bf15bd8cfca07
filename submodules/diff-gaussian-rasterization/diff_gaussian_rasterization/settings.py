"""The interface that 3DGS codebases import: settings, a module and a function, implemented with ``ops.rasterize``."""

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
    """[C] background, or [C,1,1]."""
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
    antialiasing: bool | None = None
    """Whether opacities make up for the widened footprints (``ops.rasterize``). Callers of the interface of 2024 set
    it, and get the inverse depth as a third value; with None there are two values, as in the interface of 2023."""


class GaussianRasterizer(nn.Module):
    """Rasterizes one view: ``image, radii = GaussianRasterizer(settings)(means3D, means2D, opacities, ...)``.

    ``image, radii, inverse_depth`` where the settings have ``antialiasing``.
    """

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
        dc: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Returns image [C,H,W], radii int32 [G] and, with ``antialiasing`` in the settings, inverse depth [1,H,W].

        The inverse depth is the sum of weight / camera z. The gradient by the projected means goes to
        ``means2D.grad``. In place of None, an empty tensor of one dimension will do.

        Args:
            means3D: [G,3].
            means2D: [G,2], [G,3] or [G,4] leaf, values unused; ``grad[:, :2]`` is in NDC units, ``grad[:, 2:4]`` the
                sum of absolute values over pixels.
            opacities: [G,1] or [G].
            shs: [G,K,3] spherical harmonics, or
            colors_precomp: [G,C].
            scales: [G,3] with rotations [G,4] (w, x, y, z), or
            rotations: see scales.
            cov3D_precomp: [G,6].
            dc: [G,1,3] the first coefficient of the harmonics, where ``shs`` holds the others, [G,K-1,3].

        Raises:
            ValueError: an argument is missing, given twice, or does not fit; the message names it.
        """
        settings = self.raster_settings
        shs, dc, colors = _given(shs), _given(dc), _given(colors_precomp)
        if (shs is None and dc is None) == (colors is None):
            raise ValueError("rasterize: give either shs or colors_precomp")
        if colors is None:
            colors = self._colors(means3D, torch.cat([part for part in (dc, shs) if part is not None], 1))
        background = settings.bg.to(means3D).reshape(-1)
        newer = getattr(settings, "antialiasing", None) is not None
        if newer:
            colors = torch.cat([colors, self._inverse_depths(means3D)], 1)
            background = torch.cat([background, background.new_zeros(1)])
        out = rasterize(
            means3D,
            opacities[:, None] if opacities.ndim == 1 else opacities,
            colors,
            scales=_given(scales),
            quats=_given(rotations),
            cov3d=_given(cov3D_precomp),
            background=background,
            means2d=_given(means2D),
            antialiasing=bool(newer and settings.antialiasing),
            **_camera(settings),
        )
        return (out.image[:-1], out.radii, out.image[-1:]) if newer else (out.image, out.radii)

    def markVisible(self, positions: Tensor) -> Tensor:  # noqa: N802 (the name in 3DGS)
        """bool [G]: points in front of the near plane (3DGS tests nothing else here)."""
        return in_front(positions, self.raster_settings.viewmatrix)

    def visible_filter(
        self,
        means3D: Tensor,
        scales: Tensor | None = None,
        rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,
    ) -> Tensor:
        """Radii int32 [G] as ``forward`` returns them, 0 where culled. No gradients."""
        shape, cov3d = (_given(scales), _given(rotations)), _given(cov3D_precomp)
        return visible_radii(means3D, *shape, cov3d=cov3d, **_camera(self.raster_settings))

    def _colors(self, means: Tensor, shs: Tensor) -> Tensor:
        settings = self.raster_settings
        return (spherical_harmonics(settings.sh_degree, means - settings.campos.to(means), shs) + 0.5).clamp_min(0)

    def _inverse_depths(self, means: Tensor) -> Tensor:
        """[G,1] 1 / camera z; what is not in front of the near plane is not drawn, and has no gradient."""
        view = self.raster_settings.viewmatrix.to(means)
        return 1 / (means @ view[:3, 2:3] + view[3, 2]).clamp_min(NEAR)


def rasterize_gaussians(
    means3D: Tensor, means2D: Tensor | None, *inputs: Tensor | GaussianRasterizationSettings | None
) -> tuple[Tensor, ...]:
    """The function behind the module in 3DGS codebases; returns what ``GaussianRasterizer.forward`` does.

    Args:
        means3D: [G,3].
        means2D: as for ``GaussianRasterizer``.
        inputs: sh, colors_precomp, opacities, scales, rotations, cov3Ds_precomp, raster_settings, in this order; in
            front of them dc, or nothing.

    Raises:
        ValueError: another number of arguments, or as for ``GaussianRasterizer``.
    """
    names = ("dc", "shs", "colors_precomp", "opacities", "scales", "rotations", "cov3D_precomp", "raster_settings")
    if len(inputs) not in (len(names) - 1, len(names)):
        raise ValueError(f"rasterize_gaussians: {2 + len(inputs)} arguments, expected 9, or 10 with dc")
    named: dict[str, Any] = dict(zip(names[-len(inputs) :], inputs, strict=True))
    return GaussianRasterizer(named.pop("raster_settings"))(means3D, means2D, **named)


def in_front(positions: Tensor, viewmatrix: Tensor) -> Tensor:
    """bool [G]: which of ``positions`` [G,3] are in front of the near plane."""
    with torch.no_grad():
        view = viewmatrix.to(positions)
        return positions @ view[:3, 2] + view[3, 2] > NEAR


def _given(tensor: Tensor | None) -> Tensor | None:
    """None also for the placeholder that 3DGS codebases use, an empty tensor of one dimension."""
    return None if tensor is None or (tensor.ndim == 1 and tensor.numel() == 0) else tensor


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
