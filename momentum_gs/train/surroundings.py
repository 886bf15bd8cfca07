"""The other blocks around those in training: what the merged model has in a block's views beside the block itself.

With windows (``blocks.windows``) a block is always rendered amid its surroundings, as they were when the round began.
They are held apart from its own rows: they have no gradient and no optimizer state, and are dropped when the round
ends. So training is a block-coordinate descent on the merged model. Boundary fine-tuning needs surroundings only in the
rounds with a frozen decoder.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.core.geometry import Sight
from momentum_gs.core.types import Camera
from momentum_gs.core.window import CompactWindow, Window, windows_of
from momentum_gs.train.blocks.block import Block, CellOf
from momentum_gs.train.blocks.schedule import Round, ranks_of
from momentum_gs.train.blocks.store import BlockStore
from momentum_gs.train.blocks.views import BlockPlan
from momentum_gs.train.boundary_finetuning import hold_surroundings, surround

WINDOW_BYTES = 128 * 2**20
"""Of the windows that are kept. Finding those of a view takes up to 1 ms at 240x180 and 2 ms at 1600x1200, where they
take up to 0.3 MB: those of 400 views fit, or of many more in which a block owns a part of the image."""
LARGEST_FACTOR = 2.0
"""Largest factor that was measured; the blocks of a large scene have so few of its views that it would be far more."""


def lr_factor(views: int, of: int) -> float:
    """Factor on the learning rates of a block that trains some of the scene's views: sqrt(of / views), at most 2.

    A block makes as many passes over its views as a single block would over all, hence fewer steps, and its rows are
    seen in a larger share p of them. Adam moves a row by about sqrt(p) times its rate a step, as the moments of rows
    that are not seen decay. So in all its rows would move sqrt(views / of) times as far as those of the single block.
    """
    return min(math.sqrt(of / views), LARGEST_FACTOR)


class Surroundings:
    """Activates the blocks of a round together with what surrounds them, and knows their windows."""

    def __init__(self, config: Config, plan: BlockPlan, store: BlockStore, comm: Comm, device: torch.device) -> None:
        self._config, self._plan, self._store, self._comm, self._device = config, plan, store, comm, device
        self._boxes: Tensor | None = None
        self._moved: tuple[int, ...] = ()
        """Blocks that have grown since their boxes were found."""
        self._views = len({camera.name for cameras in plan.train for camera in cameras})
        self._place = [{camera.name: i for i, camera in enumerate(cameras)} for cameras in plan.train]
        self._windows: dict[tuple[int, int], list[CompactWindow]] = {}
        """(Block, view) -> its windows. The first ones are kept: one is needed in every pass over the views."""
        self._window_bytes = 0

    def activate(self, round_: Round, starts: bool) -> list[Block]:
        """This rank's blocks of a round.

        Args:
            round_: The round.
            starts: The round begins; False: it is resumed, so its blocks contain their surroundings already.
        """
        cell_of, blocks = self._plan.cell_of, round_.blocks
        if cell_of is None or len(self._plan) == 1:
            return self._store.activate(blocks)
        if self._plan.windows is not None:
            rows = self._gather(blocks, None, self._grown_boxes()) if starts else {}
            self._moved += blocks
            active = self._store.activate(blocks)
            for state in active:
                state.cell_of = cell_of
                state.lr_factor = lr_factor(len(self._plan.train[state.block]), self._views)
                if starts:
                    # A checkpoint at the end of a round holds what surrounded the block in that round.
                    near = {name: row.to(self._device) for name, row in rows[state.block].items()}
                    state.around = state.AROUND.from_rows(near) if near else None
            return active
        if round_.decoder_live or not self._config.blocks.boundary_finetuning:
            return self._store.activate(blocks)
        if self._boxes is None:
            # They stay: from these rounds on, anchors inside their cell are neither moved, added nor removed.
            self._boxes = bounding_boxes(self._store, range(self._store.n), cell_of, self._comm)
        rows = self._gather(blocks, cell_of, self._boxes) if starts else {}
        active = self._store.activate(blocks)
        for state in active:
            if state.block in rows:
                surround(state, rows[state.block], cell_of)
            hold_surroundings(state, cell_of)
        return active

    def _grown_boxes(self) -> Tensor:
        """Boxes of all blocks, found anew for those that were in training since."""
        if self._boxes is None:
            self._boxes = bounding_boxes(self._store, range(self._store.n), None, self._comm)
        elif self._moved:
            moved = sorted(set(self._moved))
            self._boxes[moved] = bounding_boxes(self._store, moved, None, self._comm)[moved]
        self._moved = ()
        return self._boxes

    def window(self, state: Block, camera: Camera) -> Window | None:
        """The part of a view that a block trains on at its step; None: all of it."""
        if self._plan.windows is None:
            return None
        places = self._place[state.block]
        place = places[camera.name]
        windows = self._windows.get((state.block, place))
        if windows is None:
            windows = windows_of(self._plan.windows[state.block][place], camera, self._device)
            if self._window_bytes < WINDOW_BYTES:
                self._windows[state.block, place] = windows
                self._window_bytes += sum(window.nbytes for window in windows)
        # Views are in different passes at a time, so that each pass over all views is as much work.
        return windows[(state.step // len(places) + place) % len(windows)].expand() if windows else None

    def _gather(self, blocks: Sequence[int], cell_of: CellOf | None, boxes: Tensor) -> dict[int, dict[str, Tensor]]:
        ranks = ranks_of(blocks, self._config.blocks.groups, self._comm.world_size)
        trainers = dict(zip(blocks, ranks, strict=True))
        return gather_surroundings(self._store, cell_of, boxes, trainers, self._plan.train, self._comm)


def bounding_boxes(
    store: BlockStore, blocks: Sequence[int], cell_of: CellOf | None, comm: Comm
) -> Float[Tensor, "b 6"]:
    """Bounding boxes of some blocks' rows, inside their own cell where ``cell_of`` is given; all ranks take part.

    Returns:
        Low and high corner in the world, float64; NaN for a block without such rows, and for the other blocks.
    """
    table = torch.zeros(store.n, 7, dtype=torch.float64)
    for block in filter(store.home, blocks):
        position = store.rows(block, ["position"])["position"].double()
        if cell_of is not None:
            position = position[cell_of(position) == block]
        if len(position):
            table[block] = torch.cat([position.amin(0), position.amax(0), torch.ones(1)])
    comm.all_reduce_sum_(table)
    table[table[:, 6] == 0] = torch.nan
    return table[:, :6]


def gather_surroundings(
    store: BlockStore,
    cell_of: CellOf | None,
    boxes: Float[Tensor, "b 6"],
    trainers: Mapping[int, int],
    views: Sequence[Sequence[Camera]],
    comm: Comm,
) -> dict[int, dict[str, Tensor]]:
    """The other blocks' rows that a block's views see; all ranks take part.

    Args:
        store: All blocks, inactive.
        cell_of: If given, only rows inside their block's cell, which the merged model has.
        boxes: ``bounding_boxes``; blocks whose box no view of a trained block sees are not sent.
        trainers: Block of the coming round -> the rank that trains it.
        views: Training views by block.

    Returns:
        Block that this rank trains -> rows of the other blocks, block by block, on the host.
    """
    found: dict[int, list[dict[str, Tensor]]] = {block: [] for block, rank in trainers.items() if rank == comm.rank}
    sights = {block: Sight(views[block]) for block in trainers}
    shown = {block: sight.may_show(boxes) for block, sight in sights.items()}
    visible = {block: views_of.any(dim=1).tolist() for block, views_of in shown.items()}
    for other in range(len(boxes)):
        near = [block for block in trainers if block != other and visible[block][other]]
        rows = _share(store, other, sorted({trainers[b] for b in near}), cell_of, comm)
        for block in near:
            if block in found:
                seen = sights[block].see(rows["position"], shown[block][other]).nonzero().squeeze(1)
                found[block].append({name: row.index_select(0, seen) for name, row in rows.items()})
    return {
        block: {name: torch.cat([p[name] for p in parts]) for name in parts[0]} if parts else {}
        for block, parts in found.items()
    }


def _share(store: BlockStore, block: int, ranks: list[int], cell_of: CellOf | None, comm: Comm) -> dict[str, Tensor]:
    """A block's rows: returned on its holder and on the given ranks, empty on the others."""
    rows: dict[str, Tensor] = {}
    holder = store.holder(block)
    if ranks and holder == comm.rank:
        rows = store.rows(block)
        if cell_of is not None:
            inside = cell_of(rows["position"].double()) == block
            rows = {name: row[inside] for name, row in rows.items()}
    for rank in ranks:
        if rank != holder and comm.rank == holder:
            comm.send(rows, "", rank)
        elif rank != holder and comm.rank == rank:
            rows, _ = comm.recv(holder)
    return rows
