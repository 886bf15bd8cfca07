"""Boundary fine-tuning: in the last rounds a block is trained amid its neighbours' anchors, as in the merged model.

Before these rounds, a block has anchors of its own outside its cell, which explain its views and which the merge drops.
In the rounds with a frozen decoder they are replaced by the anchors that the merged model will have there. These are
rendered but fixed; only the anchors inside the cell are optimized.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.core.comm import Comm
from momentum_gs.core.geometry import box_in_any_view, in_any_view
from momentum_gs.core.types import Camera
from momentum_gs.train.blocks.block import Block, CellOf
from momentum_gs.train.blocks.store import BlockStore


def cell_boxes(store: BlockStore, cell_of: CellOf, comm: Comm) -> Float[Tensor, "b 6"]:
    """Bounding box of every block's anchors inside its own cell; all ranks take part.

    The boxes remain valid: from these rounds on, anchors inside their cell are neither moved, added nor removed.

    Returns:
        Low and high corner in the world, float64; NaN for a block without such anchors.
    """
    table = torch.zeros(store.n, 7, dtype=torch.float64)
    for block in store.held():
        position = store.rows(block, ["position"])["position"].double()
        position = position[cell_of(position) == block]
        if len(position):
            table[block] = torch.cat([position.amin(0), position.amax(0), torch.ones(1)])
    comm.all_reduce_sum_(table)
    table[table[:, 6] == 0] = torch.nan
    return table[:, :6]


def gather_surroundings(
    store: BlockStore,
    cell_of: CellOf,
    boxes: Float[Tensor, "b 6"],
    trainers: Mapping[int, int],
    views: Sequence[Sequence[Camera]],
    comm: Comm,
) -> dict[int, dict[str, Tensor]]:
    """The anchors that the merged model has outside each block and that the block's views see; all ranks take part.

    Args:
        store: All blocks, inactive.
        cell_of: The block whose cell holds a world point, float64.
        boxes: ``cell_boxes``; blocks whose box no view of a trained block sees are not sent.
        trainers: Block of the coming round -> the rank that trains it.
        views: Training views by block.

    Returns:
        Block that this rank trains -> rows of the other blocks' anchors, block by block, on the host.
    """
    found: dict[int, list[dict[str, Tensor]]] = {block: [] for block, rank in trainers.items() if rank == comm.rank}
    for other, box in enumerate(boxes):
        near = [b for b in trainers if b != other and not box.isnan().any() and box_in_any_view(box, views[b])]
        rows = _share(store, other, sorted({trainers[b] for b in near}), cell_of, comm)
        for block in near:
            if block in found:
                seen = in_any_view(rows["position"].double(), views[block])
                found[block].append({name: row[seen] for name, row in rows.items()})
    return {
        block: {name: torch.cat([p[name] for p in parts]) for name in parts[0]} if parts else {}
        for block, parts in found.items()
    }


def _share(store: BlockStore, block: int, ranks: list[int], cell_of: CellOf, comm: Comm) -> dict[str, Tensor]:
    """A block's anchors inside its cell: returned on its holder and on the given ranks, empty on the others."""
    rows: dict[str, Tensor] = {}
    holder = store.holder(block)
    if ranks and holder == comm.rank:
        rows = store.rows(block)
        inside = cell_of(rows["position"].double()) == block
        rows = {name: row[inside] for name, row in rows.items()}
    for rank in ranks:
        if rank != holder and comm.rank == holder:
            comm.send(rows, "", rank)
        elif rank != holder and comm.rank == rank:
            rows, _ = comm.recv(holder)
    return rows


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
