"""Host memory goes back to the system when it is asked for."""

import sys
from pathlib import Path

import pytest
import torch

from momentum_gs.core.memory import free_memory, keep_freed_memory, return_freed_memory


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc, and glibc is what is asked")
def test_holes_between_tensors_are_returned() -> None:
    keep_freed_memory()
    size = 1 << 20
    tensors = [torch.ones(size // 4) for _ in range(200)]
    full = resident()
    # Every second one goes: no hole is at the end of the heap, where memory could be given back without asking.
    del tensors[::2]
    return_freed_memory()
    # Of the 100 MB, pages that holes share with their neighbours stay.
    assert full - resident() > 90 * size
    assert all(bool((t == 1).all()) for t in tensors)


def test_free_memory_is_plausible() -> None:
    assert 2**20 < free_memory() < 2**50
