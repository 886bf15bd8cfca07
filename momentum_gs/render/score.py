"""PSNR and SSIM over a set of views, cheap enough to be measured during training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.image import psnr, ssim
from momentum_gs.core.types import Camera
from momentum_gs.core.window import Window
from momentum_gs.data.views import Views
from momentum_gs.model.appearance import AppearanceTable
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.splats import Harmonics, Model
from momentum_gs.render.view import render_image


@dataclass(frozen=True)
class Scores:
    """Means over views."""

    psnr: float
    """dB."""
    ssim: float


@torch.no_grad()
def score_views(
    model: Model,
    decoder: Decoder | Harmonics,
    cameras: Sequence[Camera],
    views: Views,
    background: Float[Tensor, "3"],
    appearance: AppearanceTable | None = None,
    around: Model | None = None,
    window: Callable[[Camera], Window | None] = lambda camera: None,
) -> Scores | None:
    """Renders the cameras and compares the renders with the target images, on pixels that their masks let count.

    Images that ``views`` skips and images without a pixel that counts are left out.

    Args:
        model: Anchors or splats.
        decoder: Their decoder.
        cameras: At least one.
        views: Gives the target images.
        background: Colour behind everything.
        appearance: Colour corrections to apply to the renders of the images that it contains; None: scores are raw.
        around: Further rows to render (``render_view``).
        window: Camera -> the part of its view to score; None: all of it.

    Returns:
        The mean scores; None if every image is left out.

    Raises:
        UserError: naming an image that cannot be read and is not to be skipped.
        ValueError: without cameras.
    """
    if not cameras:
        raise ValueError("score_views: no cameras, expected at least one")
    psnrs, ssims = [], []
    for i, camera in enumerate(cameras):
        views.prefetch([following.name for following in cameras[i + 1 : i + 2]])
        part = window(camera)
        target = views.target_or_skip(camera.name, part)
        if target is None:
            continue
        counts = target.counts
        if counts is not None and not counts.any():
            continue
        image = render_image(model, decoder, camera, background, appearance, around, part)
        psnrs.append(float(psnr(image, target.image, counts)))
        ssims.append(float(ssim(image, target.image, target.mask, target.weights)))
    if not psnrs:
        return None
    return Scores(psnr=sum(psnrs) / len(psnrs), ssim=sum(ssims) / len(ssims))
