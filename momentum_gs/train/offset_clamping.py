"""Keeps a block's Gaussians on their anchor's side of the cell's border, so that the merge cuts nothing apart.

The merge keeps anchors by their own position. Where a Gaussian lies across the border from its anchor, the cell's
image loses Gaussians whose anchors are dropped, and gains the neighbour's: the seam that shows in a merged model.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from momentum_gs.model.anchors import Anchors

HALVINGS = 6
"""An offset that crosses is shortened to within 1/64 of its length from the border."""


@torch.no_grad()
def clamp_offsets_(anchors: Anchors, cell_of: Callable[[Float[Tensor, "m 3"]], Int64[Tensor, "m"]], block: int) -> int:
    """Shortens, in place, every offset whose Gaussian is not on its anchor's side of the border.

    Args:
        anchors: N anchors of the block, inside its cell and around it.
        cell_of: The block whose cell holds a world point, float64.
        block: The block.

    Returns:
        Offsets shortened.
    """
    position, reach = anchors.position.double(), (anchors.offset * anchors.scales[:, None, :3]).double()
    here = cell_of(position) == block
    there = cell_of((position[:, None] + reach).flatten(0, 1)) == block
    stays = there.view(reach.shape[:2]) == here[:, None]
    row, column = (~stays).nonzero(as_tuple=True)
    position, reach, here = position[row], reach[row, column], here[row]
    # The largest of the tried fractions that stays; zero, the anchor itself, always does.
    fraction = torch.zeros_like(reach[:, :1])
    for halving in range(1, HALVINGS + 1):
        further = fraction + 0.5**halving
        stays = (cell_of(position + further * reach) == block) == here
        fraction = torch.where(stays[:, None], further, fraction)
    anchors.offset[row, column] *= fraction.to(anchors.offset)
    return len(row)
