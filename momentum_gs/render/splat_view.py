"""Evaluates splats for a camera: the counterpart of decoding anchors."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from momentum_gs.core.device import beside
from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.model.expand import Decoded
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.rasterize import spherical_harmonics


def decode_splats(splats: Splats, harmonics: Harmonics, camera: Camera) -> Decoded:
    """All splats as Gaussians for a camera, with activations applied; Gaussian i is splat i.

    In the returned ``Decoded`` each splat counts as a visible anchor with one offset that is kept.
    """
    sh = torch.cat([splats.sh_dc, splats.sh_rest], dim=1)
    ray = splats.position - beside(camera.center, splats.position)
    bare = splats_without_colors(splats)
    gaussians = replace(bare, colors=(spherical_harmonics(harmonics.degree, ray, sh) + 0.5).clamp_min(0))
    every: Tensor = torch.arange(len(splats), device=splats.position.device)
    return Decoded(gaussians, gaussians.opacities, torch.ones_like(every, dtype=torch.bool), every)


def splats_without_colors(splats: Splats) -> Gaussians:
    """All splats as Gaussians, with activations applied and colours of no channels."""
    return Gaussians(
        means=splats.position,
        scales=splats.scales,
        quats=F.normalize(splats.rotation),
        opacities=splats.opacity.sigmoid(),
        colors=splats.position.new_empty(len(splats), 0),
    )
