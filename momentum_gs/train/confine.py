"""Keeps a block's Gaussians on their anchor's side of the cell's border, so that the merge cuts nothing apart.

The merge keeps anchors by their own position. Where a Gaussian lies across the border from its anchor, or reaches far
across it, the cell's picture loses what dropped anchors drew, and gains the neighbour's: the seam of a merged model.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from momentum_gs.model.anchors import Anchors

CellOf = Callable[[Float[Tensor, "m 3"]], Int64[Tensor, "m"]]
"""The block whose cell holds a world point, float64."""

HALVINGS = 6
"""An offset that crosses is shortened to within 1/64 of its length from the border."""
REACH = 2.0
"""Standard deviations that a large Gaussian keeps from the border: what is beyond has a tenth of the peak's weight."""


def confine_(anchors: Anchors, cell_of: CellOf, block: int) -> None:
    """Both of the below, in place, on the N anchors of a block, inside its cell and around it."""
    confine_offsets_(anchors, cell_of, block)
    confine_scales_(anchors, cell_of, block)


@torch.no_grad()
def confine_offsets_(anchors: Anchors, cell_of: CellOf, block: int) -> int:
    """Shortens every offset whose Gaussian is not on its anchor's side of the border; returns how many."""
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


@torch.no_grad()
def confine_scales_(anchors: Anchors, cell_of: CellOf, block: int) -> int:
    """Bounds the Gaussians' scales by the distance to the border over ``REACH``; returns how many anchors it changed.

    But never below the block's median: an ordinary Gaussian may cross, or nothing could cover the border itself.
    """
    bound = anchors.scales[:, 3:].amax(dim=1).double()
    floor = bound.median()
    row = (bound > floor).nonzero().squeeze(1)
    position, bound = anchors.position[row].double(), bound[row]
    here = cell_of(position) == block
    ways = torch.cat([torch.eye(3), -torch.eye(3)]).to(position)
    fits = torch.zeros_like(bound)
    for halving in range(HALVINGS + 1):
        tried = bound * 0.5**halving
        around = position[:, None] + REACH * tried[:, None, None] * ways
        clear = ((cell_of(around.flatten(0, 1)) == block).view(-1, 6) == here[:, None]).all(dim=1)
        fits = torch.where(clear & (fits == 0), tried, fits)
    limit = fits.clamp_min(floor)
    row, limit = row[limit < bound], limit[limit < bound]
    anchors.log_scale[row, 3:] = anchors.log_scale[row, 3:].minimum(limit.log().to(anchors.log_scale)[:, None])
    return len(row)
