"""The last rounds: a block trains its own cell amid the other cells as they are, so that what is merged fits together.

Until then a block has anchors of its own outside its cell, which explain its views and are dropped at the merge. In
the rounds with a frozen decoder they give way to the anchors that the merged model will have there. Those are drawn
but held fixed; only the cell's own anchors learn.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from momentum_gs.core.geometry import in_any_view
from momentum_gs.core.rows import append_rows, keep_rows
from momentum_gs.core.types import Camera
from momentum_gs.model.anchors import Anchors
from momentum_gs.train.block_state import BlockState
from momentum_gs.train.block_store import BlockStore
from momentum_gs.train.densify import GrowthStats

CellOf = Callable[[Float[Tensor, "m 3"]], Int64[Tensor, "m"]]
"""The block whose cell holds a world point, float64."""


def gather_surroundings(
    store: BlockStore, cell_of: CellOf, views: Mapping[int, Sequence[Camera]]
) -> dict[int, dict[str, Tensor]]:
    """What the merged model has outside each block, as far as the block's views see it; all ranks take part.

    Args:
        store: All blocks, at rest.
        views: The views of the blocks that this rank trains next.

    Returns:
        Block of ``views`` -> rows of the other blocks' anchors, block by block, on the host.
    """
    found: dict[int, list[dict[str, Tensor]]] = {block: [] for block in views}
    for other, rows in store.crops(cell_of):
        for block, cameras in views.items():
            if block != other:
                seen = in_any_view(rows["position"].double().cpu(), cameras)
                found[block].append({name: row.cpu()[seen] for name, row in rows.items()})
    return {block: {name: torch.cat([p[name] for p in parts]) for name in parts[0]} for block, parts in found.items()}


def surround(state: BlockState, rows: Mapping[str, Tensor], cell_of: CellOf) -> None:
    """Puts ``rows`` in the place of the block's anchors outside its cell."""
    own = keep_rows(state.anchors.rows(), ~_outside(state, cell_of), state.optimizer)
    here = {name: row.to(state.anchors.position.device) for name, row in rows.items()}
    state.anchors = Anchors.from_rows(append_rows(own, here, state.optimizer))
    state.stats = GrowthStats.zeros(state.anchors)


def hold_surroundings(state: BlockState, cell_of: CellOf) -> None:
    """Lets only the anchors inside the block's cell learn, until the block rests."""
    state.fixed = _outside(state, cell_of)


def _outside(state: BlockState, cell_of: CellOf) -> Bool[Tensor, "n"]:
    return cell_of(state.anchors.position.double()) != state.block
