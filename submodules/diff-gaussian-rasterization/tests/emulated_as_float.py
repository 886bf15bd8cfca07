"""A second build of the emulated CUDA sources, in a process of its own: ``python emulated_as_float.py JOBS RESULTS``.

In this build, double goes through the sizes that float has on a GPU (slots, batches, features in a chunk), binning
miscounts the pairs of every third Gaussian by what the environment variable MISCOUNT says, and blocks take tiles in the
order that TILES names. ``results`` runs it.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diff_gaussian_rasterization import ops
from rasterizer_scenes import Scene
from torch import Tensor

ROOT = Path(__file__).parents[1]
EMULATOR = ROOT.parents[1] / "tests"
NAME = "diff_gaussian_rasterization"
SIZES = "-DDGR_TEST_SIZES_OF_FLOAT"
MISCOUNT = (
    '-DDGR_TEST_MISCOUNT(rank,count)=(rank%3==0&&count>0&&std::getenv("MISCOUNT")?std::atoi(std::getenv("MISCOUNT")):0)'
)
TILE_ORDERS = {"longest": "bits", "image": "0", "shortest": "kClasses-1-bits"}
"""Order of the tiles -> the class by which they are sorted."""
BY_CLASS = (
    "-DDGR_TEST_CLASS(bits)=("
    + "".join(f'!std::strcmp(std::getenv("TILES"),"{name}")?{value}:' for name, value in TILE_ORDERS.items())
    + "throw)"
)
DEFINES = {"bin.cu": [MISCOUNT, SIZES], **{f"composite{part}.cu": [SIZES, BY_CLASS] for part in ("", "_backward")}}


class Drawn(NamedTuple):
    """What ``composite`` returns."""

    image: Tensor
    alpha: Tensor
    depth: Tensor
    records: Tensor
    order: Tensor
    pair_start: Tensor
    tile_start: Tensor
    lists: Tensor


def draw(scene: Scene, capacity: int = 0, tiles: Tensor | None = None) -> Drawn:
    """The operators' own output for the scene; ``capacity``: how many pairs are expected; ``tiles``: the mask."""
    camera = [scene[k] for k in ("fx", "fy", "cx", "cy", "width", "height")]
    library = torch.ops.diff_gaussian_rasterization
    shape = [scene[k] for k in ("means", "scales", "quats")]
    projected = library.project(*shape, None, scene["world_view"], None, *camera, 1.0, 0.2)
    colors = [scene[k] for k in ("opacities", "colors", "background")]
    return Drawn(*library.composite(*projected, *colors, *camera[4:], tiles=tiles, capacity=capacity))


def results(jobs: dict[str, dict[str, Any]], folder: Path) -> dict[str, dict[str, Any]]:
    """Runs jobs on this build.

    Args:
        jobs: name -> ``scene``; ``outputs``: what has gradients; ``miscount``: pairs, 0 if absent; ``check``: whether
            binning counts what is wrong; ``capacity``: how many pairs are expected; ``tiles``: the order of tiles,
            one of ``TILE_ORDERS``.
        folder: where to leave the files.

    Returns:
        name -> ``drawn``, and ``grads`` as ``test_rasterizer_cuda.run`` returns them; or ``error``.
    """
    torch.save(jobs, folder / "jobs.pt")
    paths = [str(Path(__file__).parent), str(EMULATOR), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, __file__, str(folder / "jobs.pt"), str(folder / "results.pt")]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, check=True)
    return torch.load(folder / "results.pt", weights_only=True)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    from test_rasterizer_cuda import run

    os.environ["MISCOUNT"] = str(job.get("miscount", 0))
    os.environ["TILES"] = job.get("tiles", "longest")
    os.environ["MOMENTUM_GS_CHECK_PAIRS"] = "1" if job.get("check") else "0"
    scene, capacity = job["scene"], job.get("capacity", 0)
    try:
        drawn = tuple(draw(scene, capacity))
        return {"drawn": drawn, "grads": run(scene | {"capacity": ops.Capacity(capacity)}, "cpu", job["outputs"])}
    except RuntimeError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    import cuda_emulator

    cuda_emulator.load(ROOT / "csrc", DEFINES)
    with cuda_emulator.instead_of_cpu(NAME):
        done = {name: _run(job) for name, job in torch.load(sys.argv[1], weights_only=True).items()}
    torch.save(done, sys.argv[2])
