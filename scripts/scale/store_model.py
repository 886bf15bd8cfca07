"""Predicts the time of rounds of k-of-n training from bytes and bandwidths, by simulating the schedule."""

from collections.abc import Sequence
from dataclasses import dataclass

from momentum_gs.train.blocks.schedule import Round


@dataclass(frozen=True)
class Parts:
    """Measured parts of the prediction: seconds, bytes, bytes per second."""

    compute: float
    """Seconds of a round whose blocks are all in memory."""
    neighbour: float
    """Additional seconds of a round for each pair of a block in boundary fine-tuning and another block that it sees."""
    fresh: int
    """Bytes of a block before it has trained."""
    trained: int
    rows: int
    """Bytes of its anchors alone, which its neighbours read."""
    write: float
    read: float


class StoreModel:
    """Follows which blocks are in memory and on disk, as ``train/blocks/store.py`` does, and sums the costs.

    A background thread writes and reads while a round computes, so a round takes the longer of the two.
    """

    def __init__(self, parts: Parts, n: int, ram_bytes: float) -> None:
        self.written = self.read = 0
        """Bytes so far."""
        self._parts, self._n, self._bound = parts, n, ram_bytes
        self._size = dict.fromkeys(range(n), parts.fresh)
        self._memory = set(range(min(n, int(ram_bytes // parts.fresh))))
        self._on_disk = set(range(n)) - self._memory

    def round(self, of: Round, later: Sequence[Round], near: int, checkpoint: bool) -> float:
        """Seconds of a round.

        Args:
            later: The rounds after it.
            near: How often a block of it sees another block while its borders are fine-tuned.
            checkpoint: One is written in it, which shares the files of blocks that have not trained.
        """
        parts = self._parts
        place: dict[int, int] = {}
        for i, block in enumerate(b for other in later for b in other.blocks):
            place.setdefault(block, i)
        wait = sum(self._read(self._size[b]) for b in of.blocks if b not in self._memory)
        wait += self._read(near * parts.rows * (1 - len(self._memory) / self._n))
        self._memory -= set(of.blocks)
        self._on_disk -= set(of.blocks)

        background = self._make_room(0, (), place)
        following = later[0].blocks if later else ()
        for block in following:
            if block not in self._memory and block not in of.blocks:
                background += self._make_room(self._size[block], following, place) + self._read(self._size[block])
                self._memory.add(block)
        self._size |= dict.fromkeys(of.blocks, parts.trained)
        if checkpoint:
            unsaved = (self._memory - self._on_disk) | set(of.blocks)
            wait += self._write(sum(self._size[b] for b in unsaved))
            self._on_disk |= self._memory
        self._memory |= set(of.blocks)
        return max(parts.compute, background) + near * parts.neighbour + wait

    def _make_room(self, wanted: int, spare: Sequence[int], place: dict[int, int]) -> float:
        seconds = 0.0
        while sum(self._size[b] for b in self._memory) + wanted > self._bound:
            leaving = max(self._memory - set(spare), key=lambda b: (place.get(b, self._n), b))
            self._memory.remove(leaving)
            if leaving not in self._on_disk:
                self._on_disk.add(leaving)
                seconds += self._write(self._size[leaving])
        return seconds

    def _read(self, size: float) -> float:
        self.read += int(size)
        return size / self._parts.read

    def _write(self, size: float) -> float:
        self.written += int(size)
        return size / self._parts.write
