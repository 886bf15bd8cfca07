"""Where blocks rest while others train, and how they travel to the rank that trains them next.

Each rank keeps in host memory the blocks that it trained last. Law: any number of swaps equals no swap, bit for bit.
"""

import json
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.train.block_state import BlockState, PackedBlock, pack, unpack


class BlockStore:
    """The blocks of all ranks. Every rank makes the same calls in the same order."""

    def __init__(self, n: int, config: Config, device: torch.device, comm: Comm) -> None:
        self._config, self._device, self._comm = config, device, comm
        self._holder = [block % comm.world_size for block in range(n)]
        self._held: dict[int, PackedBlock] = {}

    def home(self, block: int) -> bool:
        """Whether this rank holds the block (at the start: block mod R)."""
        return self._holder[block] == self._comm.rank

    def put(self, block: int, packed: PackedBlock) -> None:
        """Lays a block down on the rank that holds it."""
        assert self.home(block), f"block {block} is held by rank {self._holder[block]}"
        self._held[block] = packed

    def held(self) -> dict[int, PackedBlock]:
        """The blocks that rest on this rank."""
        return self._held

    def crops(
        self, cell_of: Callable[[Float[Tensor, "m 3"]], Int64[Tensor, "m"]]
    ) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The anchors of every block inside its own cell, block by block, on every rank: what the merge would keep.

        All blocks are at rest. One block's rows are in memory at a time, unless the caller keeps them.
        """
        for block, holder in enumerate(self._holder):
            if holder == self._comm.rank:
                rows = {
                    name.removeprefix("anchors."): tensor
                    for name, tensor in self._held[block].tensors.items()
                    if name.startswith("anchors.")
                }
                inside = cell_of(rows["position"].double()) == block
                rows = {name: row[inside] for name, row in rows.items()}
                for rank in range(self._comm.world_size):
                    if rank != holder:
                        self._comm.send(rows, "", rank)
            else:
                rows, _ = self._comm.recv(holder)
            yield block, rows

    def activate(self, blocks: tuple[int, ...]) -> list[BlockState]:
        """Hands this rank its share of a round's blocks (i mod R = rank), moving them between ranks where needed.

        All ranks walk the blocks in the same order, so the blocking transfers cannot wait for each other in a circle.
        """
        mine: list[BlockState] = []
        rank = self._comm.rank
        for i, block in enumerate(blocks):
            source, target = self._holder[block], i % self._comm.world_size
            if source == rank and target != rank:
                packed = self._held.pop(block)
                self._comm.send(packed.tensors, json.dumps(packed.meta), target)
            elif target == rank:
                if source == rank:
                    packed = self._held.pop(block)
                else:
                    tensors, meta = self._comm.recv(source)
                    packed = PackedBlock(tensors, json.loads(meta))
                mine.append(unpack(packed, self._config, self._device))
            self._holder[block] = target
        return mine

    def rest(self, states: list[BlockState]) -> None:
        """Takes back what ``activate`` handed out."""
        for state in states:
            self.put(state.block, pack(state))
