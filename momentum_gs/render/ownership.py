"""Which squares of a view's raster a block owns: those that its anchors, or its Gaussians, make up, by their share."""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.core.types import Camera
from momentum_gs.core.window import PASSES, RASTER, OwnedByPass
from momentum_gs.model.expand import Decoded
from momentum_gs.render.rasterize import rasterize

PIXELS = 4
"""Pixels drawn along the side of a square: its weight is a mean over 16."""
CHANNELS = 64
"""Blocks per render of contributions: at 1600 x 1200 pixels, the image takes half a gigabyte."""
COVERED = 0.5
"""Weight of all blocks together below which a square is open: most of what it shows is background."""


@torch.no_grad()
def block_weights(
    decoded: Decoded, camera: Camera, block_of_gaussian: Int[Tensor, "g"]
) -> dict[int, Float[Tensor, "height width"]]:
    """The blending weight of each block in every pixel; blocks without a Gaussian are left out.

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


def owned_squares(weights: Mapping[int, Float[Tensor, "32 32"]]) -> dict[int, OwnedByPass]:
    """The squares that each block owns in a view, pass by pass; blocks that own none are left out.

    Of ``PASSES`` passes, a block owns a square in as many as its share of the square's weight says, rounded; the
    strongest, or all of those whose weights are equal, at least in those that the others leave. So together the blocks
    own each square as often as there are passes, or slightly more often. An open square, which nothing covers yet,
    belongs to the owners of the nearest one that is covered, so that windows stay compact.

    Args:
        weights: Of every block in the view.
    """
    if not weights:
        return {}
    blocks, stack = list(weights), torch.stack(list(weights.values())).cpu()
    covered = stack.sum(dim=0)
    is_open = covered < min(COVERED, float(covered.max()))
    strongest = stack == stack.amax(dim=0)
    count = (PASSES * stack / covered.clamp_min(torch.finfo(stack.dtype).tiny)).round()
    left = PASSES - count.masked_fill(strongest, 0).sum(dim=0)
    count = torch.where(strongest, count.maximum(left), count)
    if is_open.any():
        places = torch.cartesian_prod(torch.arange(float(RASTER)), torch.arange(float(RASTER))).view(RASTER, RASTER, 2)
        nearest = torch.cdist(places[is_open], places[~is_open]).argmin(dim=1)
        count[:, is_open] = count[:, ~is_open][:, nearest]
    owned = {block: torch.stack([count[i] > done for done in range(PASSES)]) for i, block in enumerate(blocks)}
    return {block: squares[squares.any(dim=2).any(dim=1)] for block, squares in owned.items() if squares.any()}
