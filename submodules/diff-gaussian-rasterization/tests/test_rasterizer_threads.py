"""The team of threads: callers at the same time, a forked process, and the same code in the three extensions."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diff_gaussian_rasterization import rasterize
from rasterizer_scenes import screen_scene
from torch import Tensor

FORK = """
import os, sys
import torch
from diff_gaussian_rasterization import rasterize
from rasterizer_scenes import screen_scene

torch.set_num_threads(4)
# Few pixels, so that the child calls no operator of torch that wants OpenMP's threads: those do not survive a fork.
scene = screen_scene(20000, 100, 80)
expected = rasterize(**scene).image
child = os.fork()
if child == 0:  # has none of the threads
    same = all(torch.equal(rasterize(**scene).image, expected) for _ in range(3))
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def drawn(seed: int) -> list[Tensor]:
    scene = screen_scene(9000, 200, 150, seed=seed)
    leaf = scene["means"].clone().requires_grad_()
    image = rasterize(**(scene | {"means": leaf})).image
    return [image.detach(), *torch.autograd.grad(image.square().sum(), leaf)]


def test_callers_at_the_same_time_get_what_each_gets_alone() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [drawn(seed) for seed in range(6)]
        torch.set_num_threads(4)
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(drawn, [*range(6)] * 3))
    finally:
        torch.set_num_threads(before)
    for result, expected in zip(together, alone * 3, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", FORK], env=os.environ | {"PYTHONPATH": paths}, timeout=120)
    assert done.returncode == 0


def test_the_extensions_have_the_same_team() -> None:
    """Each has a copy, as each is built on its own."""
    own = Path(__file__).parents[1] / "csrc/cpu/team.h"
    for path in Path(__file__).parents[2].glob("*/csrc/cpu/team.h"):
        assert path.read_text() == own.read_text(), path
