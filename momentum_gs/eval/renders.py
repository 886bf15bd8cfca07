"""Render every view of a split, write it beside its ground truth, and measure speed and memory on the way."""

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera
from momentum_gs.data.images import write_png
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.views import Views
from momentum_gs.eval.metrics import error_map
from momentum_gs.eval.results import code_version, png_names, write_json
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.io import load_ply
from momentum_gs.render.view import render_image

WARM_UP = 5
"""Views that the speed does not count: the first calls allocate and tune. MGS render.py."""


@dataclass(frozen=True)
class ModelPart:
    """A PLY file of anchors and the views that it renders."""

    ply: Path
    cameras: list[Camera]


def model_folder(out: Path, iteration: int = -1) -> Path:
    """OUT/point_cloud/iteration_<N>, the highest N for -1. Raises UserError where there is none."""
    folders = {
        int(path.name.removeprefix("iteration_")): path
        for path in (out / "point_cloud").glob("iteration_*")
        if path.name.removeprefix("iteration_").isdecimal()
    }
    if not folders:
        raise UserError(f"{out}: no trained model (point_cloud/iteration_<N>); run 'momentum-gs train' first")
    chosen = max(folders) if iteration == -1 else iteration
    if chosen not in folders:
        raise UserError(f"{out}: no iteration {iteration}, found {sorted(folders)}; leave out --iteration for the last")
    return folders[chosen]


def merged_part(folder: Path, cameras: list[Camera]) -> list[ModelPart]:
    """The merged (or coarse) model with every view."""
    ply = folder / "point_cloud.ply"
    if not ply.exists():
        raise UserError(f"{ply}: missing, the blocks are not merged yet; run 'momentum-gs merge' first")
    return [ModelPart(ply, cameras)]


def block_parts(folder: Path, table: PartitionTable, cameras: list[Camera]) -> list[ModelPart]:
    """The blocks before the merge, each with the views that it owns (their camera stands in its cell)."""
    owners = [table.owner(camera) for camera in cameras]
    parts = []
    for block in sorted(set(owners)):
        ply = folder / f"point_cloud_block{block}.ply"
        if not ply.exists():
            raise UserError(f"{ply}: missing; --blocks needs the models that block training leaves there")
        parts.append(ModelPart(ply, [camera for camera, owner in zip(cameras, owners, strict=True) if owner == block]))
    return parts


@torch.no_grad()
def render_parts(
    folder: Path,
    parts: Sequence[ModelPart],
    decoder: GaussianDecoder,
    views: Views,
    background: Tensor,
    record: dict[str, Any],
    errors: bool = False,
) -> dict[str, Any]:
    """Write ``renders/``, ``gt/`` (and ``masks/``, ``errors/``) below ``folder``, holding one part in memory at a time.

    Args:
        folder: OUT/<split>/ours_<N> or OUT/<split>/ours_<N>_blocks.
        parts: models with their views; a view belongs to one part.
        decoder: on the device that renders.
        views: gives the ground truth, on any device.
        background: [3] in [0, 1], on the device that renders.
        record: what the caller knows of the run; kept in ``render.json``.
        errors: also write error maps.

    Returns:
        The content of ``render.json``: ``record`` and names, anchors, speed, peak memory. Views per second is
        1 / (mean time of one view without the first five), as MGS render.py; decoding included, files not.
    """
    names = png_names([camera.name for part in parts for camera in part.cameras])
    if not names:
        raise UserError(f"{folder}: the split has no views; check the scene's test list or --split")
    device = background.device
    if background.is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "render.json", {**record, "complete": False})
    n_anchors, seconds = 0, []
    masked: list[str] = []
    with progress(len(names), f"rendering {folder}") as bar:
        for part in parts:
            anchors = load_ply(part.ply).to(device)
            n_anchors += len(anchors)
            for camera in part.cameras:
                image, elapsed = _timed_render(anchors, decoder, camera, background)
                seconds.append(elapsed)
                photograph = views.photograph(camera.name)
                image, truth = image.cpu(), photograph.image.cpu()
                write_png(folder / "renders" / names[camera.name], image)
                if photograph.mask is not None:
                    masked.append(names[camera.name])
                    write_png(folder / "masks" / names[camera.name], photograph.mask.expand(3, -1, -1))
                write_png(folder / "gt" / names[camera.name], truth)
                if errors:
                    write_png(folder / "errors" / names[camera.name], error_map(image, truth))
                bar.update()
            del anchors  # or two blocks would be in memory while the next one loads
    timed = seconds[min(WARM_UP, len(seconds) - 1) :]
    result = {
        **record,
        "complete": True,
        "code": code_version(),
        "anchors": n_anchors,
        "seconds_per_view": sum(timed) / len(timed),
        "views_per_second": len(timed) / sum(timed),
        "timed_views": len(timed),
        **_machine(background),
        "names": list(names.values()),
        # Of the views that have a mask: what lies in masks/ may be of an earlier rendering.
        "masked": masked,
    }
    write_json(folder / "render.json", result)
    return result


def _timed_render(
    anchors: Anchors, decoder: GaussianDecoder, camera: Camera, background: Tensor
) -> tuple[Tensor, float]:
    """The image and the seconds it took, the device's queue included."""
    if background.is_cuda:
        torch.cuda.synchronize(background.device)
    start = time.perf_counter()
    image = render_image(anchors, decoder, camera, background)
    if background.is_cuda:
        torch.cuda.synchronize(background.device)
    return image, time.perf_counter() - start


def _machine(background: Tensor) -> dict[str, Any]:
    """Where the views were rendered, and the peak memory in bytes with what it counts."""
    if background.is_cuda:
        return {
            "device": torch.cuda.get_device_name(background.device),
            "peak_memory_bytes": torch.cuda.max_memory_allocated(background.device),
            "peak_memory_of": "tensors on the GPU",
        }
    # ru_maxrss: Linux counts KiB, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "device": f"CPU, {torch.get_num_threads()} threads",
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "peak_memory_of": "process, resident, since its start",
    }
