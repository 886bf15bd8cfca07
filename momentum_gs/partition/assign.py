"""Which cameras train a block: those inside its cell, and those whose image would change without it.

Source: CityGaussian's and Momentum-GS' data_partition.py. There the block's anchors are decoded and drawn alone, for
every camera and block; here a view is decoded once, and the blocks are left out of it one after another
(``view_changes``), or the change is estimated for all of them from one render (``view_contributions``).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.core.image import ssim
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.expand import Decoded
from momentum_gs.model.splats import Harmonics, Model
from momentum_gs.partition.join import block_place
from momentum_gs.render.ownership import block_weights
from momentum_gs.render.view import decode_view, draw, render_view

MIN_VIEWS = 2
"""A block seen by fewer has no parallax, so nothing holds its depths."""


def assign_cameras(
    cameras: Sequence[Camera],
    table: PartitionTable,
    changes: Callable[[Camera], Mapping[int, float]],
    threshold: float,
) -> list[list[str]]:
    """Names of the cameras of every block, in the order of ``cameras``.

    A camera belongs to the block whose cell holds its centre, and to every block that counts for its image.

    Args:
        cameras: Training cameras at the resolution to compare at.
        table: Gives the cells; its own views are not read.
        changes: How much each block counts for a camera's image, blocks that do not count left out.
        threshold: A block counts above it.
    """
    views: list[list[str]] = [[] for _ in range(table.n)]
    for camera in progress(cameras, desc="assigning cameras"):
        counts = {block for block, change in changes(camera).items() if change > threshold}
        for block in sorted({table.owner(camera), *counts}):
            views[block].append(camera.name)
    return views


@torch.no_grad()
def view_changes(
    model: Model,
    decoder: Decoder | Harmonics,
    camera: Camera,
    block_of_row: Int[Tensor, "n"],
    background: Float[Tensor, "3"],
    skip: int | None = None,
) -> dict[int, float]:
    """1 - SSIM between the view with all anchors (or splats) and without those of a block, by block.

    Blocks without a Gaussian in the image are left out: their change is exactly 0. So is ``skip``.
    """
    view = render_view(model, decoder, camera, background)
    whole = view.output.image.clamp(0, 1)
    block_of_gaussian = block_of_row[_rows(view.decoded, model)]
    on_screen = block_of_gaussian[view.output.radii > 0].unique().tolist()
    changes = {}
    for block in on_screen:
        if block != skip:
            rest = _subset(view.decoded.gaussians, block_of_gaussian != block)
            without = draw(rest, camera, background, view.behind).image.clamp(0, 1)
            changes[block] = 1 - float(ssim(whole, without))
    return changes


@torch.no_grad()
def view_contributions(
    model: Model, decoder: Decoder | Harmonics, camera: Camera, block_of_row: Int[Tensor, "n"]
) -> dict[int, float]:
    """Mean over the image's pixels of the weight with which each block is blended into it, by block.

    An estimate of ``view_changes`` from one render whose channels say which block a Gaussian belongs to: where a block
    makes the whole pixel, its leaving costs about all of that pixel's SSIM. Measured (scripts/scale/assignment.py), the
    two agree at the same threshold on 94 to 99 of 100 pairs of a camera and a block in its image. Blocks without
    weight are left out; the others' sum is the mean alpha.
    """
    decoded = decode_view(model, decoder, camera)
    weights = block_weights(decoded, camera, block_of_row[_rows(decoded, model)])
    means = {block: float(weight.mean()) for block, weight in weights.items()}
    return {block: mean for block, mean in means.items() if mean > 0}


def weak_blocks(table: PartitionTable, minimum: int = MIN_VIEWS) -> list[str]:
    """One line for each block with fewer than ``minimum`` training views, and what to do."""
    return [
        f"block {block} (cell {block_place(table, block)}) has {len(names)} training view(s), expected "
        f"at least {minimum}; lower partition.threshold, or use fewer blocks or another partition.aabb"
        for block, names in enumerate(table.views)
        if len(names) < minimum
    ]


def _rows(decoded: Decoded, model: Model) -> Int[Tensor, "g"]:
    """The anchor or splat of each Gaussian."""
    return decoded.visible.repeat_interleave(model.n_offsets)[decoded.kept]


def _subset(gaussians: Gaussians, keep: Tensor) -> Gaussians:
    return Gaussians(
        means=gaussians.means[keep],
        scales=gaussians.scales[keep],
        quats=gaussians.quats[keep],
        opacities=gaussians.opacities[keep],
        colors=gaussians.colors[keep],
    )
