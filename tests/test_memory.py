"""Freed host memory is returned to the system on request."""

import sys
from pathlib import Path

import pytest
import torch

from momentum_gs.core.memory import free_memory, keep_freed_memory, return_freed_memory


def resident() -> int:
    """Resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and glibc is what is asked")
def test_holes_between_tensors_are_returned() -> None:
    keep_freed_memory()
    size = 1 << 20
    tensors = [torch.ones(size // 4) for _ in range(200)]
    full = resident()
    # Every second tensor is freed: only freed memory at the end of the heap is returned to the system by itself.
    del tensors[::2]
    return_freed_memory()
    # Of the 100 MB, pages that are shared with tensors that remain are not returned.
    assert full - resident() > 90 * size
    assert all(bool((t == 1).all()) for t in tensors)


def test_free_memory_is_plausible() -> None:
    assert 2**20 < free_memory() < 2**50
