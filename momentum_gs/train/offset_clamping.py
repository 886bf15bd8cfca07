"""Keeps Gaussians on the same side of the cell's border as their anchors, so that the merge leaves no seams.

The merge keeps or drops an anchor by its position. If Gaussians lie across the border from their anchors, a cell loses
Gaussians inside it whose anchors are dropped, and gets Gaussians of its neighbours: a visible seam in the merged model.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from momentum_gs.model.anchors import Anchors

HALVINGS = 6
"""Bisection steps: an offset that crosses the border ends within 1/64 of its length from it."""


@torch.no_grad()
def clamp_offsets_(anchors: Anchors, cell_of: Callable[[Float[Tensor, "m 3"]], Int64[Tensor, "m"]], block: int) -> int:
    """Shortens, in place, every offset whose Gaussian lies on the other side of the border than its anchor.

    Args:
        anchors: N anchors of the block, inside and outside its cell.
        cell_of: [M,3] world points, float64 -> the block whose cell holds each.
        block: Number of the block.

    Returns:
        Number of offsets shortened.
    """
    position, reach = anchors.position.double(), (anchors.offset * anchors.scales[:, None, :3]).double()
    here = cell_of(position) == block
    there = cell_of((position[:, None] + reach).flatten(0, 1)) == block
    stays = there.view(reach.shape[:2]) == here[:, None]
    row, column = (~stays).nonzero(as_tuple=True)
    position, reach, here = position[row], reach[row, column], here[row]
    # Bisection for the largest fraction that stays on the anchor's side; zero, the anchor itself, always does.
    fraction = torch.zeros_like(reach[:, :1])
    for halving in range(1, HALVINGS + 1):
        further = fraction + 0.5**halving
        stays = (cell_of(position + further * reach) == block) == here
        fraction = torch.where(stays[:, None], further, fraction)
    anchors.offset[row, column] *= fraction.to(anchors.offset)
    return len(row)
