"""Writes the static page: the renderer (vendor/), the page's own script and style, and the data, in one HTML file."""

import base64
import importlib.resources
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs import __version__
from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.export.html.overlays import camera_values, cell_values, focus_distances, overview
from momentum_gs.export.html.spz import spz_bytes
from momentum_gs.formats.packed import read_spz
from momentum_gs.model.splats import Splats

ONE_FILE = 300 * 2**20
"""Most bytes of Gaussians, as text, in one HTML file: browsers read all of a file before they show anything of it."""
PART = 24 * 2**20
"""Bytes of Gaussians in one piece, before they become text: far below the longest string of any browser."""
_SHOWN = 0.01
"""Part of the Gaussians on each side of each axis that lies outside of what the cells enclose."""


def write_page(
    path: Path,
    splats: Splats,
    cameras: Sequence[Camera],
    *,
    title: str,
    up: Float[Tensor, "3"],
    cells: PartitionTable | None = None,
    scores: Mapping[int, float] | None = None,
    background: Sequence[float] = (0.0, 0.0, 0.0),
    one_file: int = ONE_FILE,
) -> list[Path]:
    """Writes a page that shows the Gaussians in any browser with WebGL 2, from disk or a static server.

    It makes no requests. Where the Gaussians are too many for one file they lie beside it, in the folder
    ``<stem>_files``, as scripts: browsers load those from disk, too, so that such a page needs no server either.

    Args:
        path: The HTML file; its folder is created.
        splats: At least one Gaussian, in training units.
        cameras: At least one, in the same coordinates; the page starts at the first.
        title: Any text.
        up: The direction away from the ground, of any positive length.
        cells: The partition in the coordinates of the scene (``PartitionTable.in_frame``); None: no cells.
        scores: Block -> PSNR in dB, where known.
        background: RGB in [0, 1] behind the Gaussians.
        one_file: Most bytes of Gaussians in the file itself.

    Returns:
        The files, the page first.

    Raises:
        UserError: for no Gaussians, no cameras, or positions that are not finite.
    """
    for name, found in (("Gaussians", len(splats)), ("cameras", len(cameras))):
        if not found:
            raise UserError(f"export: found no {name}, expected at least one to show on a page")
    bad = int((~splats.position.isfinite().all(dim=1)).sum())
    if bad:
        raise UserError(
            f"export: {bad} of {len(splats)} Gaussians are at NaN or infinity, expected finite positions; train again"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    up = torch.nn.functional.normalize(up.double().cpu(), dim=0)
    origin = _origin(cameras)
    scene = _scene(splats, cameras, up, origin, cells, scores or {})
    scene |= {"title": title, "version": __version__, "background": list(background)}
    data = spz_bytes(splats, origin)
    parts = [base64.b64encode(data[start : start + PART]).decode() for start in range(0, len(data), PART)]
    scene |= {"bytes": len(data), "files": []}
    beside = []
    if sum(map(len, parts)) > one_file:
        beside, parts = _write_parts(path.with_name(f"{path.stem}_files"), parts), []
        scene["files"] = [file.relative_to(path.parent).as_posix() for file in beside]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_document(scene, parts))
    return [path, *beside]


def read_page(files: Sequence[Path], cameras: Sequence[Camera]) -> Splats:
    """The Gaussians of a page, as the browser decodes them, in training units.

    Args:
        files: What ``write_page`` returned.
        cameras: What it was given.

    Raises:
        UserError: the package gsply, which reads SPZ, is missing.
    """
    # A part is text in an element of the page, or a script beside it that passes the text to a function.
    part = re.compile(r'(?:class="part">|momentumPart\(")([^<"]+)')
    texts = [text for file in files for text in part.findall(file.read_text(encoding="utf-8"))]
    with tempfile.TemporaryDirectory(prefix="momentum_gs.") as folder:
        spz = Path(folder) / "gaussians.spz"
        spz.write_bytes(b"".join(map(base64.b64decode, texts)))
        splats = read_spz(spz)
    return replace(splats, position=splats.position + _origin(cameras).to(splats.position))


def _origin(cameras: Sequence[Camera]) -> Float[Tensor, "3"]:
    """What the page's coordinates are relative to."""
    return torch.stack([camera.center for camera in cameras]).mean(dim=0)


def _write_parts(folder: Path, parts: Sequence[str]) -> list[Path]:
    """The scripts beside the page; those of a larger model that lay here before are removed."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{i:03d}.js" for i in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        with replacing(file) as temporary:
            temporary.write_text(f'momentumPart("{part}");\n', encoding="ascii")
    for old in {*folder.glob("[0-9][0-9][0-9].js")} - {*files}:
        old.unlink()
    return files


def _scene(
    splats: Splats,
    cameras: Sequence[Camera],
    up: Float[Tensor, "3"],
    origin: Float[Tensor, "3"],
    cells: PartitionTable | None,
    scores: Mapping[int, float],
) -> dict[str, Any]:
    position = splats.position.detach().cpu().double()
    focus = focus_distances(cameras, position)
    boxes = []
    if cells is not None:
        inside = cells.to_grid(position).sort(dim=0).values
        out = int(_SHOWN * (len(inside) - 1))
        boxes = cell_values(cells, scores, inside[out], inside[-1 - out], origin)
    return {
        "gaussians": len(splats),
        "up": up.tolist(),
        "overview": overview(cameras, focus, up, origin),
        "cameras": [camera_values(camera, origin, far) for camera, far in zip(cameras, focus, strict=True)],
        "cells": boxes,
    }


def _document(scene: Mapping[str, Any], parts: Sequence[str]) -> Iterator[str]:
    """The page in pieces. Its content security policy forbids every request, except for the scripts beside it."""
    # '<' could end the element; as an escape it is the same JSON.
    values = json.dumps(scene, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    # The renderer needs 'wasm-unsafe-eval' for its sorting and blob: for the worker that sorts.
    beside = " 'self' file:" if scene["files"] else ""
    policy = (
        f"default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval'{beside}; worker-src blob:; "
        "style-src 'unsafe-inline'; img-src data: blob:"
    )
    renderer = base64.b64encode(_shipped("vendor/renderer.js.gz")).decode()
    yield _shipped("page.html").decode().format(
        policy=policy, title=escape(str(scene["title"])), style=_shipped("page.css").decode(), version=__version__
    )
    yield f'<script type="application/json" id="scene">{values}</script>\n'
    yield f'<script type="text/plain" id="renderer">{renderer}</script>\n'
    for part in parts:
        yield f'<script type="text/plain" class="part">{part}</script>\n'
    yield f"<script>\n{_shipped('page.js').decode()}</script>\n</body></html>\n"


def _shipped(name: str) -> bytes:
    """A file of this package."""
    return importlib.resources.files("momentum_gs.export.html").joinpath(name).read_bytes()
