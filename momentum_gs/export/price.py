"""What an export costs: scores of the trained model and of the exported file on the same views."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.bake.refine import others
from momentum_gs.core.image import psnr, ssim, to_uint8
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.data.views import Views
from momentum_gs.eval.lpips_metric import Lpips
from momentum_gs.export.files import read_parts
from momentum_gs.export.placement import Placement
from momentum_gs.formats.kinds import format_of
from momentum_gs.formats.read import read_splats
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.splats import Harmonics, Model, Splats
from momentum_gs.render.rasterize import visible_splats
from momentum_gs.render.splat_view import decode_splats
from momentum_gs.render.view import decode_view, draw, learned_background

WHOLE = 1 << 30
"""Bytes up to which a PLY is read once and kept; a larger one is read in parts for each view."""


@dataclass(frozen=True)
class Original:
    """The trained model that an export is compared with."""

    model: Model
    decoder: Decoder | Harmonics
    background: Float[Tensor, "3"]


@torch.no_grad()
def scores(
    cameras: Sequence[Camera], views: Views, render: Callable[[Camera], Float[Tensor, "3 h w"]], lpips: Lpips | None
) -> dict[str, float]:
    """Means over views of raw PSNR and SSIM, and with ``lpips`` of LPIPS, as ``momentum-gs eval`` has them: renders
    are rounded to 8 bits, views in which no pixel counts are left out."""
    per_view: dict[str, list[float]] = {}
    for camera in progress(cameras, desc="scoring"):
        target = views.target(camera.name)
        truth, mask = target.image, target.mask
        if mask is not None and not mask.any():
            continue
        image = to_uint8(render(camera)).float() / 255
        if mask is not None:
            image, truth = image * mask, truth * mask
        found = {"PSNR": float(psnr(image, truth, mask)), "SSIM": float(ssim(image, truth, mask))}
        if lpips is not None:
            found[lpips.metric] = lpips(image, truth)
        for name, value in found.items():
            per_view.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in per_view.items()}


def original_renderer(original: Original) -> Callable[[Camera], Tensor]:
    """Renders the trained model, in [0, 1]."""

    def render(camera: Camera) -> Tensor:
        decoded = decode_view(original.model, original.decoder, camera)
        behind = learned_background(original.decoder, camera, original.background)
        return draw(decoded.gaussians, camera, original.background, behind).image.clamp(0, 1)

    return render


def export_renderer(
    file: Path, where: Placement, original: Original, covered: Bool[Tensor, "nk"] | None, whole: Splats | None = None,
    *, on_black: bool = False,
) -> Callable[[Camera], Tensor]:  # fmt: skip
    """Renders the Gaussians of an exported file, read back, in [0, 1].

    Args:
        file: The file.
        where: Its coordinates.
        original: Its background is behind them, unless ``on_black``.
        covered: Offsets of the model that the file stands for, on the model's device; the others' Gaussians are drawn
            with those of the file, so that a crop is compared with the same part of the model. None: all.
        whole: The file's Gaussians in training units; None: they are read from the file.
        on_black: Nothing is behind them, as in viewers that know no background.
    """
    device, background = original.background.device, original.background
    if on_black:
        background = torch.zeros_like(background)
    if whole is None and not (format_of(file) == ".ply" and file.stat().st_size > WHOLE):
        whole = where.back(read_splats(file)).to(device)

    def render(camera: Camera) -> Tensor:
        splats = whole
        if splats is None:
            parts = (where.back(part).to(device) for part in read_parts(file))
            splats = Splats.cat([part.subset(visible_splats(part, camera)) for part in parts])
        around: Gaussians | None = None
        if covered is not None:
            around = others(decode_view(original.model, original.decoder, camera), covered, original.model.n_offsets)
        behind = None if on_black else learned_background(original.decoder, camera, background)
        gaussians = decode_splats(splats, Harmonics(splats.sh_degree), camera).gaussians
        return draw(gaussians, camera, background, behind, None, around).image.clamp(0, 1)

    return render
