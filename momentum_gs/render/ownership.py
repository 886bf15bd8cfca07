"""Which squares of a view's raster a block owns: those that its anchors, or its Gaussians, make up."""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.core.window import RASTER
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.expand import Decoded
from momentum_gs.model.splats import Harmonics, Model
from momentum_gs.render.rasterize import rasterize
from momentum_gs.render.view import decode_view

PIXELS = 4
"""Pixels drawn along the side of a square: its weight is a mean over 16."""
CHANNELS = 64
"""Blocks in one render of contributions: at 1600 x 1200 pixels half a gigabyte of images."""
LEAST = 0.05
"""Weight from which a block owns a square: with less it can change a pixel by one part in twenty."""
COVERED = 0.5
"""Weight of all blocks together up to which a square is open: whoever holds the camera owns it, too."""


@torch.no_grad()
def block_weights(
    decoded: Decoded, camera: Camera, block_of_gaussian: Int[Tensor, "g"]
) -> dict[int, Float[Tensor, "height width"]]:
    """The weight with which each block is blended into every pixel; blocks without a Gaussian are left out.

    The blocks' weights sum to the pixel's alpha.

    Args:
        decoded: What the camera draws, of all blocks.
        camera: The view, at the resolution to draw at.
        block_of_gaussian: Block of each Gaussian drawn.
    """
    weights: dict[int, Tensor] = {}
    for blocks in block_of_gaussian.unique().split(CHANNELS):
        is_of = (block_of_gaussian[:, None] == blocks).to(decoded.gaussians.means)
        drawn = rasterize(replace(decoded.gaussians, colors=is_of), camera, torch.zeros_like(is_of[0]))
        weights |= dict(zip(blocks.tolist(), drawn.image, strict=True))
    return weights


def raster_camera(camera: Camera) -> Camera:
    """The view at the resolution that rasters are drawn at."""
    return camera.resized(RASTER * PIXELS, RASTER * PIXELS)


def on_raster(weight: Float[Tensor, "height width"]) -> Float[Tensor, "32 32"]:
    """Mean of a map of ``raster_camera``'s size in every square."""
    return F.avg_pool2d(weight[None, None], PIXELS)[0, 0]


def owned_squares(weights: Mapping[int, Float[Tensor, "32 32"]], owner: int) -> dict[int, Bool[Tensor, "32 32"]]:
    """The squares that each block owns in a view; blocks that own none are left out.

    A square may have several owners: each trains its own part of what makes up the pixel, with the others' held fixed.

    Args:
        weights: Of every block in the view.
        owner: The block whose cell holds the camera. Squares that nothing covers are its own.
    """
    covered = sum(weights.values(), torch.zeros(RASTER, RASTER))
    owned = {block: weight.cpu() >= LEAST for block, weight in weights.items()}
    owned[owner] = owned.get(owner, torch.zeros(RASTER, RASTER, dtype=torch.bool)) | (covered.cpu() < COVERED)
    return {block: squares for block, squares in owned.items() if squares.any()}


@torch.no_grad()
def own_squares(
    model: Model, around: Model | None, decoder: Decoder | Harmonics, camera: Camera, holds_camera: bool
) -> Bool[Tensor, "32 32"]:
    """The squares that a block owns in a view, by its rows as they are and the other blocks' around them."""
    small = raster_camera(camera)
    own = decode_view(model, decoder, small).gaussians
    parts = [own] if around is None else [own, decode_view(around, decoder, small).gaussians]
    marked = [replace(part, colors=part.means.new_full((len(part), 1), float(part is own))) for part in parts]
    names = Gaussians.__dataclass_fields__
    gaussians = Gaussians(**{name: torch.cat([getattr(part, name) for part in marked]) for name in names})
    drawn = rasterize(gaussians, small, gaussians.means.new_zeros(1))
    squares = on_raster(drawn.image[0]) >= LEAST
    if holds_camera:
        squares |= on_raster(drawn.alpha) < COVERED
    return squares.cpu()
