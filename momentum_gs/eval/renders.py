"""Renders every view of a split, writes it beside its target image, and measures speed and memory."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from momentum_gs.core.device import device_use
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.data.images import write_png
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.views import Views
from momentum_gs.eval.cells import BORDER_SHARE, CellLabels, write_cells
from momentum_gs.eval.metrics import error_map
from momentum_gs.eval.results import code_version, png_names, write_json
from momentum_gs.model.appearance import AppearanceTable
from momentum_gs.model.io import load_model, model_file
from momentum_gs.model.lod import load_lod
from momentum_gs.model.splats import Model, Splats
from momentum_gs.render.lod_view import render_lod
from momentum_gs.render.view import ViewRender, render_view

WARM_UP = 5
"""Number of first views that are not timed, as the first calls allocate memory and tune kernels. MGS render.py."""


@dataclass(frozen=True)
class ModelPart:
    """A PLY file of anchors or splats, and the views that are rendered with it."""

    ply: Path
    cameras: list[Camera]
    lod: Path | None = None
    """Levels of detail, rendered in place of the model; None: the model itself is rendered."""
    budget: int = 0
    """With ``lod``: largest number of Gaussians in a view."""


def merged_part(folder: Path, cameras: list[Camera]) -> list[ModelPart]:
    """The merged or coarse model, with all views."""
    return [ModelPart(model_file(folder), cameras)]


def block_parts(folder: Path, table: PartitionTable, cameras: list[Camera]) -> list[ModelPart]:
    """The blocks before the merge, each with the views that it owns (those whose camera is inside its cell)."""
    owners = [table.owner(camera) for camera in cameras]
    parts = []
    for block in sorted(set(owners)):
        owned = [camera for camera, owner in zip(cameras, owners, strict=True) if owner == block]
        parts.append(ModelPart(model_file(folder, block), owned))
    return parts


@torch.no_grad()
def render_parts(
    folder: Path,
    parts: Sequence[ModelPart],
    views: Views,
    background: Tensor,
    record: dict[str, Any],
    errors: bool = False,
    cells: PartitionTable | None = None,
    appearance: AppearanceTable | None = None,
) -> dict[str, Any]:
    """Writes ``renders/``, ``gt/`` (and ``masks/``, ``errors/``, ``cells/``) below ``folder``.

    One part is in memory at a time.

    Args:
        folder: OUT/<split>/ours_<N> or OUT/<split>/ours_<N>_blocks.
        parts: Models with their views; a view belongs to one part.
        views: Gives the target images, on any device.
        background: [3] in [0, 1], on the device that renders.
        record: Facts about the run, added to ``render.json``.
        errors: Also write error maps.
        cells: A partition whose blocks label the pixels in ``cells/``; None: no maps.
        appearance: Corrects the renders of the images that it knows, as in training; not timed.

    Returns:
        The content of ``render.json``: ``record``, names, counts, storage, speed, peak memory. Views per second is
        1 / (mean time of one view without the first five), as in MGS render.py; it includes decoding, but no files. As
        the number of Gaussians depends on the view, two means over views are given: of the Gaussians with a positive
        opacity, and of those that reach the image. Storage is the size of the PLY files and decoders.

    Raises:
        UserError: if there are no views.
    """
    names = png_names([camera.name for part in parts for camera in part.cameras])
    if not names:
        raise UserError(f"{folder}: the split has no views; check the scene's test list or --split")
    device = background.device
    if background.is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "render.json", {**record, "complete": False})
    labels = None
    if cells is not None:
        labels = CellLabels(cells, device)
        cells.save(folder / "cells" / "partition.json")
    tally = _Tally()
    with progress(len(names), f"rendering {folder}") as bar:
        for part in parts:
            model, render = _loaded(part, background)
            tally.add_model(model)
            for camera in part.cameras:
                name = names[camera.name]
                view, elapsed = _timed(render, camera, background)
                tally.add_view(view, elapsed)
                if labels is not None:
                    write_cells(folder / "cells" / name, labels.of(view.output, camera))
                image = view.output.image
                if appearance is not None:
                    image = appearance.correct(image, camera.name)
                image = image.clamp(0, 1)
                del view  # Otherwise its Gaussians would be in memory together with those of the next view.
                target = views.target(camera.name)
                if target.mask is not None:
                    tally.masked.append(name)
                _write_images(folder, name, image, target, errors)
                bar.update()
            del model, render  # Otherwise two blocks would be in memory while the next one loads.
    result = {
        **record,
        "complete": True,
        "code": code_version(),
        **tally.record(),
        "storage_bytes": _storage([part.lod or part.ply for part in parts]),
        **device_use(device),
        "corrected": appearance is not None,
        "names": list(names.values()),
        # None: files in cells/, if any, are from an earlier rendering.
        "cells": None
        if cells is None
        else {"blocks": cells.n, "border_share": BORDER_SHARE, "sha256": cells.cells_sha256},
    }
    write_json(folder / "render.json", result)
    return result


@dataclass
class _Tally:
    """Counts and times during rendering."""

    anchors: int = 0
    gaussians: int = 0
    decoded: int = 0
    drawn: int = 0
    seconds: list[float] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)
    """Names of the views that have a mask; recorded because other files in masks/ may be from an earlier rendering."""

    def add_model(self, model: Model) -> None:
        if isinstance(model, Splats):
            self.gaussians += len(model)
        else:
            self.anchors += len(model)

    def add_view(self, view: ViewRender, seconds: float) -> None:
        self.seconds.append(seconds)
        self.decoded += len(view.decoded.gaussians)
        self.drawn += int((view.output.radii > 0).sum())

    def record(self) -> dict[str, Any]:
        views, timed = len(self.seconds), self.seconds[min(WARM_UP, len(self.seconds) - 1) :]
        return {
            # A model consists of one or the other.
            "anchors": self.anchors or None,
            "gaussians": self.gaussians or None,
            "gaussians_per_view": self.decoded / views,
            "gaussians_drawn_per_view": self.drawn / views,
            "seconds_per_view": sum(timed) / len(timed),
            "views_per_second": len(timed) / sum(timed),
            "timed_views": len(timed),
            "masked": self.masked,
        }


def _loaded(part: ModelPart, background: Tensor) -> tuple[Model, Callable[[Camera], ViewRender]]:
    """The part's model, and what renders it, on the device of the background."""
    model, decoder = load_model(part.ply)
    decoder = decoder.to(background.device).eval()
    if part.lod is not None:
        tree = load_lod(part.lod).to(background.device)
        return tree.level(tree.leaves), lambda camera: render_lod(tree, part.budget, decoder, camera, background)
    model = model.to(background.device)
    return model, lambda camera: render_view(model, decoder, camera, background)


def _timed(
    render: Callable[[Camera], ViewRender], camera: Camera, background: Tensor
) -> tuple[ViewRender, float]:
    """The rendered view, and the seconds until the background's device had finished it."""
    if background.is_cuda:
        torch.cuda.synchronize(background.device)
    start = time.perf_counter()
    view = render(camera)
    if background.is_cuda:
        torch.cuda.synchronize(background.device)
    return view, time.perf_counter() - start


def _write_images(folder: Path, name: str, image: Tensor, target: TargetImage, errors: bool) -> None:
    """Writes the render [3,H,W], the target image, its mask if it has one, and the error map if asked for."""
    image, truth = image.cpu(), target.image.cpu()
    write_png(folder / "renders" / name, image)
    write_png(folder / "gt" / name, truth)
    if target.mask is not None:
        write_png(folder / "masks" / name, target.mask.expand(3, -1, -1))
    if errors:
        write_png(folder / "errors" / name, error_map(image, truth))


def _storage(plys: Sequence[Path]) -> int:
    """Bytes of the models' files and of the decoder files beside them."""
    decoders = {file for ply in plys for file in ply.parent.glob("decoder*.safetensors")}
    return sum(file.stat().st_size for file in (*plys, *decoders))
