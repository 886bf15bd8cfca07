"""Which cameras train a block: those inside its cell, and those whose picture would change without it.

Source: CityGaussian's and Momentum-GS' data_partition.py. There the block's anchors are decoded and drawn alone; here a
view is decoded once, and the blocks are left out of it one after another.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.core.image import ssim
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.render.rasterize import rasterize
from momentum_gs.render.view import render_view

MIN_VIEWS = 2
"""A block seen by fewer has no parallax, so nothing holds its depths."""


@torch.no_grad()
def assign_cameras(
    cameras: Sequence[Camera],
    anchors: Anchors,
    decoder: GaussianDecoder,
    table: PartitionTable,
    threshold: float,
    background: Float[Tensor, "3"],
) -> list[list[str]]:
    """Names of the cameras of every block, in the order of ``cameras``.

    A camera belongs to the block whose cell holds its centre, and to every block whose anchors change the coarse
    picture: 1 - SSIM(with, without) > threshold.

    Args:
        cameras: Training cameras at the resolution to compare at.
        anchors: The coarse model's, on the device that renders.
        decoder: The coarse model's.
        table: Gives the cells; its own views are not read.
        threshold: In (0, 1).
        background: Colour behind everything.
    """
    block_of_anchor = table.cell_of(anchors.position)
    views: list[list[str]] = [[] for _ in range(table.n)]
    for camera in progress(cameras, desc="assigning cameras"):
        owner = table.owner(camera)
        changes = view_changes(anchors, decoder, camera, block_of_anchor, background, skip=owner)
        for block in sorted({owner, *(block for block, change in changes.items() if change > threshold)}):
            views[block].append(camera.name)
    return views


@torch.no_grad()
def view_changes(
    anchors: Anchors,
    decoder: GaussianDecoder,
    camera: Camera,
    block_of_anchor: Int[Tensor, "n"],
    background: Float[Tensor, "3"],
    skip: int | None = None,
) -> dict[int, float]:
    """1 - SSIM between the view with all anchors and without those of a block, by block.

    Blocks without a Gaussian in the picture are left out: their change is exactly 0. So is ``skip``.
    """
    view = render_view(anchors, decoder, camera, background)
    whole = view.output.image.clamp(0, 1)
    row = view.decoded.visible.repeat_interleave(anchors.n_offsets)[view.decoded.kept]
    block_of_gaussian = block_of_anchor[row]
    on_screen = block_of_gaussian[view.output.radii > 0].unique().tolist()
    changes = {}
    for block in on_screen:
        if block != skip:
            rest = _subset(view.decoded.gaussians, block_of_gaussian != block)
            without = rasterize(rest, camera, background).image.clamp(0, 1)
            changes[block] = 1 - float(ssim(whole, without))
    return changes


def weak_blocks(table: PartitionTable, minimum: int = MIN_VIEWS) -> list[str]:
    """One line for each block with fewer than ``minimum`` training views, and what to do."""
    return [
        f"block {block} (cell {cell_name(table, block)}) has {len(names)} training view(s), expected "
        f"at least {minimum}; lower partition.threshold, or use fewer blocks or another partition.aabb"
        for block, names in enumerate(table.views)
        if len(names) < minimum
    ]


def cell_name(table: PartitionTable, block: int) -> str:
    """Place of a block in the grid for a person, as 'x 1/2, y 1/2, z 1/1'."""
    places = zip("xyz", table.grid.cell(block), table.dim, strict=True)
    return ", ".join(f"{axis} {place + 1}/{count}" for axis, place, count in places)


def _subset(gaussians: Gaussians, keep: Tensor) -> Gaussians:
    return Gaussians(
        means=gaussians.means[keep],
        scales=gaussians.scales[keep],
        quats=gaussians.quats[keep],
        opacities=gaussians.opacities[keep],
        colors=gaussians.colors[keep],
    )
