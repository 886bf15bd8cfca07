"""Boundary fine-tuning: in the last rounds a block is trained amid its neighbours' anchors, as in the merged model.

Before these rounds, a block has anchors of its own outside its cell, which explain its views and which the merge drops.
In the rounds with a frozen decoder they are replaced by the anchors that the merged model will have there. These are
rendered but fixed; only the anchors inside the cell are optimized.
"""

from collections.abc import Mapping

from jaxtyping import Bool
from torch import Tensor

from momentum_gs.train.blocks.block import Block, CellOf


def surround(state: Block, rows: Mapping[str, Tensor], cell_of: CellOf) -> None:
    """Replaces the block's anchors outside its cell by ``rows`` (empty: only removes them); statistics start anew."""
    own = (~_outside(state, cell_of)).nonzero().squeeze(1)
    here = {name: row.to(own.device) for name, row in rows.items()}
    state.model = state.model.edited(own, here or None, state.optimizer)
    state.stats = state.STATS.zeros(state.model)


def hold_surroundings(state: Block, cell_of: CellOf) -> None:
    """Fixes the anchors outside the block's cell until the block becomes inactive."""
    state.fixed = _outside(state, cell_of)


def _outside(state: Block, cell_of: CellOf) -> Bool[Tensor, "n"]:
    return cell_of(state.model.position.double()) != state.block
