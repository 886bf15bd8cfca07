"""Where a training step reads values on the host, for which it would wait on a GPU.

On a CPU they are counted by construction, on a GPU by torch. Operators read numbers of their own, behind work that they
have queued (tests/test_capacity.py), which are not among these.
"""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from host_reads import HostReads
from test_gaussians_training import GAUSSIANS
from tiny_run import make_config, train
from tiny_scene import write_tiny_scene

from momentum_gs.config.schema import Config
from momentum_gs.core.device import pick_device
from momentum_gs.model import fused
from momentum_gs.train import loop

VIEW = {"expand.py:_look nonzero": 1, "expand.py:_spawn nonzero": 1}
"""What a view reads where no operator decodes it: the numbers of anchors in view, and of their Gaussians."""

COUNTS = "optim.py:move tolist"
"""Adam's counts of steps, which lie in host memory, also with a GPU."""


def reads_of_steps(config: Config, monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """Trains, and counts the reads of every call of ``train_step``."""
    step, reads, of_steps = loop.train_step, HostReads(monkeypatch), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        before = reads.found.copy()
        with reads:
            report = step(*args, **kwargs)
        of_steps.append(reads.found - before)
        del of_steps[-1][COUNTS]
        return report

    monkeypatch.setattr(loop, "train_step", counted)
    train(config)
    return of_steps


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparse: bool) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    growth = ("growth.from_step=40", f"optim.sparse_adam={str(sparse).lower()}")  # counts from step 5, grows from 50
    steps = reads_of_steps(make_config(scene, tmp_path / "out", *growth), monkeypatch)
    assert len(steps) == 120
    # All but the steps that grow.
    assert sum(not reads for reads in steps) >= 116, [dict(reads) for reads in steps if reads]


@pytest.mark.slow
def test_a_step_that_no_operator_decodes_reads_two_numbers_for_each_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "covers", lambda *arguments: False)
    config = make_config(write_tiny_scene(tmp_path / "scene"), tmp_path / "out", "steps=30", "growth.from_step=100")
    twice = Counter({place: 2 * count for place, count in VIEW.items()})  # of the two active blocks
    assert all(reads == twice for reads in reads_of_steps(config, monkeypatch))


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [("growth.from_step=40",), (*GAUSSIANS, "gaussians.from_coarse=false")])
def test_torch_finds_no_wait_in_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    step, waits = loop.train_step, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                report = step(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append([str(w.message) for w in caught if "synchroniz" in str(w.message)])
        return report

    monkeypatch.setattr(loop, "train_step", watched)
    config = make_config(write_tiny_scene(tmp_path / "scene"), tmp_path / "out", *settings)
    train(config, device=pick_device("cuda"))
    # All but the first step of each of eight rounds, whose blocks' views are not known yet, and the steps that grow.
    assert sum(not found for found in waits) >= len(waits) - 16, [found for found in waits if found]


@pytest.mark.slow
def test_a_step_of_gaussians_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    settings = (*GAUSSIANS, "gaussians.from_coarse=false")
    steps = reads_of_steps(make_config(scene, tmp_path / "out", *settings), monkeypatch)
    assert sum(not reads for reads in steps) >= 114, [dict(reads) for reads in steps if reads]  # three times two grow


def test_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, mask = torch.arange(4.0), torch.tensor([True, False, True, True])
    with HostReads(monkeypatch) as reads:
        bool(tensor[0] > 0), float(tensor.sum()), int(tensor[1]), tensor[2].item()
        tensor.tolist(), tensor.numpy(), tensor.cpu()
        mask.nonzero(), tensor[mask], tensor.unique(), tensor.repeat_interleave(torch.tensor([1, 2, 0, 1]))
        counted = reads.found.total()
        torch.nonzero_static(mask, size=3), tensor.index_select(0, torch.tensor([1])), torch.where(mask, tensor, 0.0)
        tensor.masked_fill(mask, 0.0), tensor[1:3], tensor + 1
    assert counted == 11 and reads.found.total() == 11
