"""Levels of detail of an exported model: for ``render --budget``, and as files that viewers stream."""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from momentum_gs.bake.lod import build_lod
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.core.types import Camera
from momentum_gs.export.placement import Placement
from momentum_gs.export.price import Original
from momentum_gs.formats.converter import INSTALL, device_option, find_converter
from momentum_gs.model.lod import LodTree, save_lod
from momentum_gs.model.splat_io import save_splats
from momentum_gs.model.splats import Splats
from momentum_gs.render.lod_view import render_lod

SHARES = (2, 4, 8)
"""Level i of the files has this fraction of the Gaussians."""

Score = Callable[[Callable[[Camera], Tensor]], dict[str, float]]
"""What renders a camera -> means over the held-out views (``price.scores``)."""


def export_lod(
    lod_file: Path, file: Path, splats: Splats, where: Placement, cameras: Sequence[Camera], original: Original,
    score: Score, shell: Splats,
) -> list[dict[str, Any]]:  # fmt: skip
    """Builds and writes levels of detail, and measures what they cost.

    Writes the tree for ``render --budget``; beside ``file`` the levels ``<stem>.lod1.ply`` to ``.lod3.ply``; and, where
    splat-transform is installed, ``<stem>_lod/lod-meta.json`` with all levels as chunks of SOG, which PlayCanvas's
    viewers stream.

    Args:
        lod_file: Where the tree is written.
        file: The exported file, a PLY.
        splats: Its Gaussians, in training units.
        where: The file's coordinates.
        cameras: The training cameras.
        original: The model before the bake; its background is behind all renders.
        score: Scores renders of the held-out views.
        shell: Gaussians that show the background, or none; each file has them, the tree has not.

    Returns:
        A record for the whole model and for each share of it: the budget of Gaussians in a view, scores, and views per
        second.
    """
    tree = build_lod(splats, cameras)
    save_lod(lod_file, tree)
    levels = [file]
    for number, share in enumerate(SHARES, start=1):
        levels.append(file.with_name(f"{file.stem}.lod{number}.ply"))
        level = Splats.cat([tree.level(max(1, tree.leaves // share)), shell])
        save_splats(levels[-1], where.placed(level))
    _stream(file.with_name(f"{file.stem}_lod") / "lod-meta.json", levels)
    tree = tree.to(original.background.device)
    in_view = max(len(tree.for_view(camera, tree.leaves)) for camera in cameras)
    return [_measured(tree, max(1, in_view // share), original, score) for share in (1, *SHARES)]


def _measured(tree: LodTree, budget: int, original: Original, score: Score) -> dict[str, Any]:
    seconds: list[float] = []

    def render(camera: Camera) -> Tensor:
        begun = time.perf_counter()
        image = render_lod(tree, budget, original.decoder, camera, original.background).output.image.clamp(0, 1)
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        seconds.append(time.perf_counter() - begun)
        return image

    found = score(render)
    return {"budget": budget, **found, "views_per_second": len(seconds) / sum(seconds)}


def _stream(target: Path, levels: Sequence[Path]) -> None:
    """All levels in one bundle, written by splat-transform; without it, a line that says how to get it.

    Without a GPU it takes long to compress harmonics: 83,512 Gaussians were not finished after 107 s. So the bundle has
    degree 0 there.
    """
    words = find_converter()
    if words is None:
        info(f"export: no splat-transform, so {target} is not written; {INSTALL}, and export again")
        return
    target.parent.mkdir(exist_ok=True)
    device = device_option(words)
    filters = ["-H", "0"] if device else []
    tagged = [word for number, level in enumerate(levels) for word in (str(level), "-l", str(number), *filters)]
    command = [*words, "--quiet", "--overwrite", *device, *tagged, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not target.is_file():
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(
            f"{target}: splat-transform failed ({reason[0] if reason else done.returncode}), expected it to write "
            f"levels of detail; check that '{' '.join(words)} --version' works"
        )
