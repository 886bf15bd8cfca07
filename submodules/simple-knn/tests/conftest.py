"""Every test that asks for ``device`` runs on each driver: the CPU's, the CUDA sources on the CPU, and a GPU's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from simple_knn._C import has_cuda

CSRC = Path(__file__).parents[1] / "csrc"


@pytest.fixture(params=["cpu", "emulated", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "emulated":
        emulator = pytest.importorskip("cuda_emulator", reason="the CUDA emulator is in the repository's tests/")
        if reason := emulator.why_not():
            pytest.skip(reason)
        emulator.load(CSRC)
        with emulator.instead_of_cpu("simple_knn"):
            yield "cpu"
        return
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if request.param == "cuda" and not has_cuda():
        pytest.skip("simple_knn was built without CUDA")
    yield request.param
