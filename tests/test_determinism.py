"""A whole step gives the same bits in every run: sums of gathers by construction, and training on a device, twice.

On a GPU, a gather that repeats rows has a gradient that torch adds in the order in which threads happen to come.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from anchor_scene import random_anchors, random_decoder
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import make_config
from tiny_scene import write_tiny_scene
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from momentum_gs.core.rows import _TakeRuns, sum_runs
from momentum_gs.core.types import TargetImage
from momentum_gs.data.scene import load_scene
from momentum_gs.data.views import Views
from momentum_gs.model import expand, fused
from momentum_gs.render.view import render_view
from momentum_gs.train.losses import loss_terms

ROOT = Path(__file__).parents[1]


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=30), columns=st.integers(1, 6), seed=st.integers(0, 99))
def test_runs_are_summed_in_order(counts: list[int], columns: int, seed: int) -> None:
    index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    rows = torch.randn(len(index), columns, generator=torch.Generator().manual_seed(seed)) * 1e3
    expected = torch.zeros(len(counts), columns)
    for at, row in zip(index.tolist(), rows, strict=True):  # one after the other, each sum rounded
        expected[at] += row
    assert torch.equal(sum_runs(rows, index, len(counts)), expected)


def test_gradient_of_runs_has_the_bits_of_index_select() -> None:
    index = torch.tensor([0, 0, 0, 2, 3, 3])
    weights = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    grads = []
    for take in (_TakeRuns.apply, lambda table, index: table.index_select(0, index)):
        table = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        taken = take(table, index)
        assert torch.equal(taken, table[index])
        grads += torch.autograd.grad((taken * weights).sum(), [table])
    assert torch.equal(grads[0], grads[1])


# ----------------------------------------------------------------------------------------------- what a step calls

# Operators whose gradient or result torch sums by atomics on a GPU; those with an index do so only for equal rows.
UNORDERED = {"scatter_add", "scatter_reduce", "grid_sampler", "put", "cumsum", "histc", "embedding_dense_backward"}
BY_INDEX = {"index_add": 2, "index_copy": 2}
"""Operator -> place of its index."""


class Unordered(TorchDispatchMode):
    """Records the calls of a step that have no fixed order of sums on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        self.seen.add(name)
        if any(name.startswith(bad) for bad in UNORDERED):
            floating = isinstance(args[0], Tensor) and args[0].is_floating_point()
            amax = name == "scatter_reduce" and args[4] in ("amax", "amin")
            if floating and not amax:
                self.found.append(name)
        if name in BY_INDEX and args[0].is_floating_point():
            index = args[BY_INDEX[name]]
            if len(index.unique()) < len(index):
                self.found.append(f"{name} with equal rows")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("detach", "by_operator"), [(True, False), (False, False), (True, True)])
def test_a_step_has_no_sum_without_an_order(
    tmp_path: Path, detach: bool, by_operator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The path of a GPU, on the CPU.
    monkeypatch.setattr(expand, "take_runs", _TakeRuns.apply)
    if not by_operator:
        monkeypatch.setattr(fused, "covers", lambda *arguments: False)
    config = make_config(write_tiny_scene(tmp_path / "scene"), tmp_path / "out")
    scene = load_scene(config.scene)
    anchors, student, teacher = random_anchors(300), random_decoder(), random_decoder()
    camera = scene.train[0]
    with torch.no_grad():
        anchors.position.copy_(torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    with Views(scene, 0, torch.device("cpu")) as views, Unordered() as calls:
        target: TargetImage = views.target(camera.name)
        view = render_view(anchors, student, camera, torch.zeros(3), teacher, detach)
        terms = loss_terms(view.output.image, target, view.decoded, view.targets, config)
        torch.stack(list(terms.values())).sum().backward()
    assert view.decoded.kept.view(len(view.decoded.visible), -1).sum(1).max() > 1, "rows are taken several times"
    assert ({"decode", "decode_backward"} if by_operator else {"index_select", "segment_reduce"}) <= calls.seen
    assert calls.found == []


# ------------------------------------------------------------------------------------------------- the same run twice

RUN = """
import hashlib, sys, torch
from pathlib import Path
from tiny_run import make_config, model_of, train
from momentum_gs.core.device import pick_device
torch.use_deterministic_algorithms(True, warn_only=False)  # raises where torch knows no order
scene, out, device, steps = sys.argv[1:]
train(make_config(Path(scene), Path(out), f"steps={steps}"), device=pick_device(device))
digest = hashlib.sha256()
for name, value in sorted(model_of(Path(out)).items()):
    digest.update(name.encode() + value.cpu().numpy().tobytes())
print("bits", digest.hexdigest())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("device", "steps"), [("cpu", 31), pytest.param("cuda", 300, marks=pytest.mark.gpu)])
def test_two_runs_have_the_same_bits(tmp_path: Path, device: str, steps: int) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
    # cuBLAS: the one setting under which its sums have an order when several streams use it.
    environment = os.environ | {"PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "OMP_NUM_THREADS": "1"}
    said = []
    for run in ("first", "second"):
        command = [sys.executable, "-c", RUN, str(scene), str(tmp_path / run), device, str(steps)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(next(line for line in done.stdout.splitlines() if line.startswith("bits ")))
    assert said[0] == said[1]
