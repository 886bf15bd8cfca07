"""Every test with the fixture ``device`` runs on the CPU kernels, on the emulated CUDA sources, and on a GPU."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from anchor_decode import has_cuda

sys.path.insert(0, str(Path(__file__).parent))  # lets the tests import decoders.py from any working directory

CSRC = Path(__file__).parents[1] / "csrc"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: runs on a GPU, and is skipped where there is none")
    config.addinivalue_line("markers", "slow: takes seconds on a quiet machine")


# The emulator compiles the CUDA sources first.
EMULATED = pytest.param("emulated", marks=pytest.mark.slow)


@pytest.fixture(params=["cpu", EMULATED, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "emulated":
        emulator = pytest.importorskip("cuda_emulator", reason="the CUDA emulator is in the repository's tests/")
        if reason := emulator.why_not():
            pytest.skip(reason)
        emulator.load(CSRC)
        with emulator.instead_of_cpu("anchor_decode"):
            yield "cpu"
        return
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch finds none that it can use")
    if request.param == "cuda" and not has_cuda():
        pytest.skip("needs a GPU: there is one, but anchor_decode was built without CUDA")
    yield request.param
