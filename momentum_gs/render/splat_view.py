"""Splats and camera in, Gaussians or picture out."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.types import Camera, Gaussians, RenderOutput
from momentum_gs.model.splats import Splats
from momentum_gs.render.rasterize import rasterize, spherical_harmonics


def splat_gaussians(splats: Splats, camera: Camera, sh_degree: int | None = None) -> Gaussians:
    """All splats as the camera sees them, activations applied; row i is splat i.

    Args:
        splats: N splats.
        camera: Colours are those of the directions from its centre.
        sh_degree: Highest degree evaluated; None: all that there is.
    """
    sh = torch.cat([splats.sh_dc, splats.sh_rest], dim=1)
    ray = splats.position - camera.center.to(splats.position)
    colors = spherical_harmonics(splats.sh_degree if sh_degree is None else sh_degree, ray, sh)
    return Gaussians(
        means=splats.position,
        scales=splats.scales,
        quats=F.normalize(splats.rotation),
        opacities=splats.opacity.sigmoid(),
        colors=(colors + 0.5).clamp_min(0),
    )


def render_splats(
    splats: Splats, camera: Camera, background: Float[Tensor, "3"], sh_degree: int | None = None
) -> RenderOutput:
    """Draws splats; ``radii`` and ``screen_means`` have a row for every splat."""
    return rasterize(splat_gaussians(splats, camera, sh_degree), camera, background)
