"""Storage of inactive blocks, and their transfer to the ranks that train them next.

A rank holds its inactive blocks in host memory up to a bound in bytes; the others are offloaded to files. While a round
trains, a background thread writes files of blocks that do not fit in memory, sends the next round's blocks to the
ranks that will train them, and reads these blocks from disk. Offloading and transfers do not change a bit of a block.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from momentum_gs.config.schema import Config, StoreConfig
from momentum_gs.core.comm import Comm
from momentum_gs.core.device import pins_memory
from momentum_gs.core.memory import free_memory, return_freed_memory
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.file import FileRecord, copy, link, link_or_copy, read_block, read_rows, write_block
from momentum_gs.train.blocks.packed import ROWS, PackedBlock, block_kind, pack, unpack
from momentum_gs.train.blocks.schedule import ranks_of


@dataclass
class _Inactive:
    """An inactive block on this rank: in memory, on disk, or both. Files are never modified."""

    packed: PackedBlock | None
    file: Path | None = None
    record: FileRecord | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self.packed is None else self.packed.nbytes


def ram_bound(config: StoreConfig) -> int:
    """Bytes of host memory that one process may fill with inactive blocks."""
    if config.ram_gb is not None:
        return int(config.ram_gb * 2**30)
    # Half of the free memory: images, active blocks and other programs need some, too.
    return free_memory() // 2 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class BlockStore:
    """The blocks of all ranks. Every rank makes the same calls in the same order."""

    def __init__(
        self, n: int, config: Config, device: torch.device, comm: Comm, folder: Path, ram_bytes: int | None = None
    ) -> None:
        """
        Args:
            folder: Folder for this rank's files only; its content is removed.
            ram_bytes: Bound on the host memory of inactive blocks; None: no bound. Between two rounds, the blocks that
                have just become inactive exceed it; they occupied memory before, too.
        """
        self._config, self._device, self._comm = config, device, comm
        self._holder = [block % comm.world_size for block in range(n)]
        self._inactive: dict[int, _Inactive] = {}
        self._active: set[int] = set()
        self._folder, self._bound = folder, ram_bytes
        self._files = 0
        self._background = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._job: Future[None] | None = None
        self._order: list[int] = []
        self.waited = 0.0
        """Seconds that training has waited for blocks so far."""
        shutil.rmtree(folder, ignore_errors=True)

    @property
    def n(self) -> int:
        """Number of blocks of all ranks."""
        return len(self._holder)

    @property
    def ram_bytes(self) -> int:
        """Bytes of host memory of this rank's inactive blocks."""
        return sum(inactive.nbytes for inactive in self._inactive.values())

    def home(self, block: int) -> bool:
        """Whether this rank holds the block (at the start: block mod R)."""
        return self._holder[block] == self._comm.rank

    def holder(self, block: int) -> int:
        """The rank that holds the block."""
        return self._holder[block]

    def held(self) -> list[int]:
        """The inactive blocks of this rank."""
        return sorted(self._inactive)

    def put(self, block: int, packed: PackedBlock) -> None:
        """Stores a block on the rank that holds it: in memory, or on disk if it exceeds the bound."""
        assert self.home(block), f"block {block} is held by rank {self._holder[block]}"
        self.join()
        self._inactive[block] = _Inactive(packed)
        self._make_room(0)

    def adopt(self, block: int, file: Path, record: FileRecord) -> None:
        """Stores a block from a file, as a link or copy; the file may be removed afterwards."""
        assert self.home(block), f"block {block} is held by rank {self._holder[block]}"
        own = self._new_file(block)
        link_or_copy(file, own)
        self._inactive[block] = _Inactive(None, own, record)

    def packed(self, block: int) -> PackedBlock:
        """An inactive block of this rank; if it is only on disk, it is read and not kept in memory."""
        self.join()
        inactive = self._inactive[block]
        return inactive.packed or self._read(inactive)

    def rows(self, block: int, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Rows of the model of an inactive block of this rank, by name (None: all); not to be modified."""
        self.join()
        names = [field.name for field in fields(block_kind(self._config).MODEL)] if names is None else names
        inactive = self._inactive[block]
        if inactive.packed is not None:
            return {name: inactive.packed.tensors[ROWS + name] for name in names}
        assert inactive.file is not None
        return read_rows(inactive.file, names)

    def rows_in_memory(self, block: int) -> dict[str, Tensor] | None:
        """As ``rows`` with all names, without waiting; None for a block that is not in this rank's memory."""
        inactive = self._inactive.get(block)
        packed = None if inactive is None else inactive.packed
        if packed is None:
            return None
        return {field.name: packed.tensors[ROWS + field.name] for field in fields(block_kind(self._config).MODEL)}

    def save(self, block: int, path: Path, *, share: bool) -> FileRecord:
        """Writes an inactive block of this rank to ``path``.

        Args:
            share: Share the file between the store and ``path`` by a hard link instead of copying it.
        """
        self.join()
        inactive = self._inactive[block]
        if inactive.file is not None:
            assert inactive.record is not None
            (link_or_copy if share else copy)(inactive.file, path)
            return inactive.record
        assert inactive.packed is not None
        record = write_block(path, inactive.packed)
        if share:
            inactive.file, inactive.record = link(path, self._new_file(block)), record
        return record

    def activate(self, blocks: tuple[int, ...]) -> list[Block]:
        """Returns this rank's blocks of a round, on the device; waits for those that have not arrived yet."""
        begin = time.perf_counter()
        self.join()
        self._move(blocks)
        mine = []
        for block, rank in self._trainers(blocks):
            self._active.add(block)
            if rank == self._comm.rank:
                inactive = self._inactive.pop(block)
                mine.append(unpack(inactive.packed or self._read(inactive), self._config, self._device))
                self._discard(inactive)
        self.waited += time.perf_counter() - begin
        return mine

    def rest(self, states: Iterable[Block]) -> None:
        """Takes back the blocks that ``activate`` returned; they become inactive."""
        begin = time.perf_counter()
        self.join()
        for state in states:
            self._inactive[state.block] = _Inactive(pack(state))
        self._active.clear()
        return_freed_memory()
        self.waited += time.perf_counter() - begin

    def look_ahead(self, rounds: Sequence[tuple[int, ...]]) -> None:
        """Starts fetching the next round's blocks in the background. Called while a round trains.

        Args:
            rounds: Blocks of the coming rounds, the next one first; the blocks needed last are offloaded first.
        """
        self.join()
        self._order = list(dict.fromkeys(block for blocks in rounds for block in blocks))
        self._job = self._background.submit(self._bring, rounds[0] if rounds else ())

    def join(self) -> None:
        """Waits for the background thread and raises its exception, if any."""
        job, self._job = self._job, None
        if job is not None:
            job.result()

    def close(self) -> None:
        """Ends the background thread and removes the store's files."""
        self._background.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # The parent folder holds other ranks' files, or does not exist.
            self._folder.parent.rmdir()

    def _trainers(self, blocks: tuple[int, ...]) -> list[tuple[int, int]]:
        ranks = ranks_of(blocks, self._config.blocks.groups, self._comm.world_size)
        return list(zip(blocks, ranks, strict=True))

    def _bring(self, blocks: tuple[int, ...]) -> None:
        self._make_room(0)
        self._move(blocks)
        for block in blocks:
            inactive = self._inactive.get(block)
            if inactive is not None and inactive.packed is None:
                assert inactive.file is not None
                if not self._make_room(inactive.file.stat().st_size, spare=blocks):
                    return
                inactive.packed = self._read(inactive)

    def _move(self, blocks: tuple[int, ...]) -> None:
        """Sends a round's inactive blocks to the ranks that train them; active ones are skipped.

        All ranks handle the blocks in the same order, so the blocking transfers cannot deadlock.
        """
        rank = self._comm.rank
        for block, target in self._trainers(blocks):
            source = self._holder[block]
            if block in self._active or source == target:
                continue
            if source == rank:
                inactive = self._inactive.pop(block)
                packed = inactive.packed or self._read(inactive)
                self._comm.send(packed.tensors, json.dumps(packed.meta), target)
                self._discard(inactive)
            elif target == rank:
                tensors, meta = self._comm.recv(source)
                self._inactive[block] = _Inactive(PackedBlock(tensors, json.loads(meta)))
                self._make_room(0, spare=blocks)
            self._holder[block] = target

    def _make_room(self, size: int, spare: Sequence[int] = ()) -> bool:
        """Offloads blocks, but not those in ``spare``, until ``size`` more bytes fit; false if they do not."""
        if self._bound is None:
            return True
        last = len(self._order)
        place = {block: i for i, block in enumerate(self._order)}
        held = [b for b, r in self._inactive.items() if r.packed is not None and b not in spare]
        # The block needed last is offloaded first, which minimizes reads (Belady's algorithm).
        leaving = sorted(held, key=lambda b: (place.get(b, last), b))
        while self.ram_bytes + size > self._bound and leaving:
            block = leaving.pop()
            inactive = self._inactive[block]
            if inactive.file is None:
                assert inactive.packed is not None
                path = self._new_file(block)
                inactive.record, inactive.file = write_block(path, inactive.packed), path
            inactive.packed = None
        return self.ram_bytes + size <= self._bound

    def _read(self, inactive: _Inactive) -> PackedBlock:
        assert inactive.file is not None
        return read_block(inactive.file, pin=pins_memory(self._device))

    def _new_file(self, block: int) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._files += 1
        return self._folder / f"block_{block}.{self._files}.safetensors"

    def _discard(self, inactive: _Inactive) -> None:
        if inactive.file is not None:
            inactive.file.unlink()
