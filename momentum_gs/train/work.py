"""How much work a training has done, over all processes that have trained it."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from momentum_gs.core.comm import Comm


@dataclass(frozen=True)
class Work:
    """Work from step 0 on; what was done after the checkpoint from which a run was resumed is counted once."""

    seconds: float = 0.0
    """Training time of rank 0, without the time spent on scoring held-out views."""
    cpu_seconds: float = 0.0
    """CPU time of all threads of rank 0."""
    pixels: float = 0.0
    """Pixels that counted in a loss, over all blocks and ranks."""


class WorkMeter:
    """Measures the work of this process and adds it to that of earlier ones."""

    def __init__(self, before: dict[str, float], comm: Comm) -> None:
        """``before``: ``as_dict`` of the checkpoint that is resumed; empty for a new run."""
        self._before, self._comm = Work(**before), comm
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        self._untimed = 0.0
        self.pixels = 0.0
        """Pixels that counted in a loss on this rank since this process began."""

    @property
    def seconds(self) -> float:
        """Seconds since this process began, without those that were paused."""
        return time.perf_counter() - self._started - self._untimed

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Seconds inside do not count."""
        now = time.perf_counter()
        try:
            yield
        finally:
            self._untimed += time.perf_counter() - now

    def total(self) -> Work:
        """The work so far; all ranks have to call it."""
        pixels = torch.tensor([self.pixels], dtype=torch.float64)
        self._comm.all_reduce_sum_(pixels)
        return Work(
            self._before.seconds + self.seconds,
            self._before.cpu_seconds + time.process_time() - self._cpu_started,
            self._before.pixels + float(pixels),
        )

    def as_dict(self) -> dict[str, float]:
        """``total`` for a checkpoint."""
        return asdict(self.total())
