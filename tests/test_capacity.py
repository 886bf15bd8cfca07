"""Views that are decoded and drawn before the host knows their numbers: whole trainings on the CUDA sources, emulated.

Whatever capacity a view is given, by what came before it or by a process that has just resumed, training has the same
bits.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cuda_emulator
import pytest
from tiny_run import assert_same_bits, make_config, model_of, train
from tiny_scene import write_tiny_scene

from momentum_gs.model.fused import Capacity as AnchorCapacity
from momentum_gs.render.rasterize import Capacity as PairCapacity

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(cuda_emulator.why_not() is not None, reason=cuda_emulator.why_not() or ""),
]

SUBMODULES = Path(__file__).parents[1] / "submodules"
LIBRARIES = {
    "anchor-decode": "anchor_decode",
    "diff-gaussian-rasterization": "diff_gaussian_rasterization",
}
"""Those that know how much capacity there is."""
SHORT = ("steps=12", "blocks.interval=6", "growth.from_step=4", "growth.interval=5", "growth.start_stat=2")
"""Twelve steps of each of four blocks, in two rounds, with growth."""
STEPS, BLOCKS, ROUNDS = 12, 4, 2


@pytest.fixture
def emulated() -> Iterator[None]:
    with ExitStack() as stack:
        for folder, name in LIBRARIES.items():
            cuda_emulator.load(SUBMODULES / folder / "csrc")
            stack.enter_context(cuda_emulator.instead_of_cpu(name))
        yield


def never(capacity: Any, *seen: int) -> None:
    """All is counted before it is written."""


def too_little(capacity: Any, *seen: int) -> None:
    for name, value in zip(vars(capacity), seen, strict=True):
        setattr(capacity, name, value // 3 + 1)


def exactly(capacity: Any, *seen: int) -> None:
    """Of the last view: the next one often has more."""
    for name, value in zip(vars(capacity), seen, strict=True):
        setattr(capacity, name, value)


def policy(monkeypatch: pytest.MonkeyPatch, after: Callable[..., None] | None) -> None:
    for kind in (AnchorCapacity, PairCapacity):
        if after is not None:
            monkeypatch.setattr(kind, "after", after)


def test_trainings_with_any_capacity_have_the_same_bits(
    emulated: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    models = {}
    for after in (never, None, too_little, exactly):
        name = "usual" if after is None else after.__name__
        waits = tmp_path / f"waits_{name}"
        with monkeypatch.context() as patch:
            policy(patch, after)
            patch.setenv("CUDA_EMULATOR_WAITS", str(waits))
            train(make_config(scene, tmp_path / name, *SHORT))
        models[name] = model_of(tmp_path / name)
        assert_same_bits(models[name], models["never"])
        # Decoding and drawing wait once each, with work behind it, but in the first view of a block and round.
        launched = waits.read_text().split() if waits.exists() else []
        assert all(int(behind) > 0 for behind in launched)
        assert len(launched) == (0 if after is never else 2 * BLOCKS * (STEPS - ROUNDS)), name
