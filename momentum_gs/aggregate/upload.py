"""What a device or an edge sends: a folder with its Gaussians, its cameras, and a manifest with sizes and hashes.

    manifest.json    written last: blocks, sizes and SHA-256 of the other files, what was measured
    gaussians.xz     the compressed model (``wire``)
    cells.json       the partition, with the names of the sender's views alone
    cameras/         the poses of these views, without images, as a COLMAP model
    images/          images of some of them, if ``aggregate.images`` allows
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from momentum_gs.aggregate.wire import decode
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera, PointCloud, TargetImage
from momentum_gs.data.colmap.model import read_views, write_model
from momentum_gs.data.images import read_image
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.eval.results import write_json
from momentum_gs.model.splats import Splats

MANIFEST, MODEL, CELLS, CAMERAS, IMAGES = "manifest.json", "gaussians.xz", "cells.json", "cameras", "images"
_VERSION = 1
_JPEG_QUALITY = 95
_AGAIN = "expected a complete upload; send it again"


@dataclass(frozen=True, eq=False)
class Upload:
    """What was received from a device or an edge."""

    name: str
    """Of the sender, for messages."""
    splats: Splats
    """Training coordinates, shared by all senders."""
    blocks: tuple[int, ...]
    """The blocks that it is made of, ascending."""
    table: PartitionTable
    """Cells of all blocks, and the names of its views."""
    cameras: list[Camera]
    """Its views, in order of name."""
    digest: str
    """SHA-256 of the sizes and hashes of its files."""
    images: dict[str, Path] = field(default_factory=dict)
    """Files of the images that came with it, by name of the view."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the sender measured."""
    folder: Path | None = None

    def target(self, camera: Camera) -> TargetImage | None:
        """The image of a view; None: it was not sent."""
        path = self.images.get(camera.name)
        if path is None:
            return None
        return TargetImage(read_image(path, camera.width, camera.height).float() / 255)


def write_upload(
    folder: Path,
    name: str,
    data: bytes,
    table: PartitionTable,
    blocks: Sequence[int],
    cameras: Sequence[Camera],
    images: Mapping[str, UInt8[Tensor, "3 h w"] | Path],
    report: Mapping[str, Any],
) -> int:
    """Writes an upload, so that the folder appears under its name when it is complete; an earlier one is replaced.

    Args:
        folder: The upload.
        name: Of the sender.
        data: ``wire.encode`` of the model.
        table: The partition.
        blocks: Blocks of the sender.
        cameras: Its views, at training resolution, training coordinates.
        images: Some of their images by name, as pixels or as JPEG files.
        report: JSON values for the receiver's record.

    Returns:
        Bytes of all files.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / MODEL).write_bytes(data)
    views = [[camera.name for camera in cameras] if block in blocks else [] for block in range(table.n)]
    replace(table, views=views, windows=None, meta={}).save(part / CELLS)
    nothing = PointCloud(torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 3, dtype=torch.uint8))
    write_model(part / CAMERAS, cameras, nothing)
    sent = {image: f"{i}.jpg" for i, image in enumerate(sorted(images))}
    (part / IMAGES).mkdir()
    for image, file in sent.items():
        pixels = images[image]
        (part / IMAGES / file).write_bytes(pixels.read_bytes() if isinstance(pixels, Path) else _jpeg(pixels))
    files = {path.relative_to(part).as_posix(): _described(path) for path in sorted(part.rglob("*")) if path.is_file()}
    manifest = {
        "version": _VERSION, "name": name, "blocks": sorted(blocks), "files": files, "images": sent,
        "report": dict(report),
    }  # fmt: skip
    write_json(part / MANIFEST, manifest)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    return sent_bytes(folder)


def copy_upload(source: Path, folder: Path) -> None:
    """Copies an upload unchanged, so that it appears under its name when it is complete."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def sent_bytes(folder: Path) -> int:
    """Bytes of an upload's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_upload(folder: Path) -> Upload:
    """Reads an upload and checks the size and hash of every file.

    Raises:
        UserError: a file is missing, truncated, changed, or not what the manifest says.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, blocks = dict(manifest["files"]), tuple(int(block) for block in manifest["blocks"])
        name, images = str(manifest["name"]), dict(manifest["images"])
        if manifest["version"] != _VERSION or not {MODEL, CELLS} <= set(files):
            raise ValueError("another version")
        for file, described in files.items():
            if ".." in Path(file).parts or Path(file).is_absolute():
                raise ValueError(f"file {file[:80]!r}")
            found = _described(folder / file)
            if found != described:
                raise UserError(
                    f"{folder / file}: {found['bytes']} bytes that are not the {described['bytes']} of the manifest, "
                    f"{_AGAIN}"
                )
        wrong = [file for file in images.values() if f"{IMAGES}/{file}" not in files]
        if wrong:
            raise ValueError(f"image {wrong[0]!r} is not listed")
    except OSError as error:
        raise UserError(f"{folder}: {Path(error.filename or '').name} is missing or unreadable, {_AGAIN}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{folder / MANIFEST}: damaged ({type(error).__name__}: {error}), {_AGAIN}") from error
    table = PartitionTable.load(folder / CELLS)
    if not blocks or list(blocks) != sorted(set(blocks)) or not 0 <= blocks[0] <= blocks[-1] < table.n:
        raise UserError(f"{folder / MANIFEST}: blocks {list(blocks)} of {table.n}, {_AGAIN}")
    return Upload(
        name, decode((folder / MODEL).read_bytes(), folder / MODEL), blocks, table,
        [camera for camera, _ in read_views(folder / CAMERAS)],
        hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
        {image: folder / IMAGES / file for image, file in images.items()}, dict(manifest["report"]), folder,
    )  # fmt: skip


def receive(inbox: Path) -> tuple[list[Upload], list[str]]:
    """The intact uploads in a folder, in the order of their blocks, and a line on each that is left out.

    Of several uploads of one block the one with the smallest hash is used, so that the order of their arrival does not
    matter; equal ones are one.

    Raises:
        UserError: no intact upload is there.
    """
    uploads: list[Upload] = []
    lines: list[str] = []
    for folder in sorted(path for path in inbox.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            uploads.append(read_upload(folder))
        except UserError as error:
            lines.append(f"left out: {error}")
    uploads.sort(key=lambda upload: (upload.blocks, upload.digest, str(upload.folder)))
    taken: dict[int, Upload] = {}
    used: list[Upload] = []
    for upload in uploads:
        before = next((taken[block] for block in upload.blocks if block in taken), None)
        if before is not None:
            same = "the same as" if before.digest == upload.digest else "another model than"
            lines.append(f"left out: {upload.folder}: {upload.name} was sent twice, this is {same} {before.folder}")
        elif used and upload.table.cells_sha256 != used[0].table.cells_sha256:
            lines.append(f"left out: {upload.folder}: of another partition than {used[0].folder}; send it again")
        else:
            used.append(upload)
            taken |= dict.fromkeys(upload.blocks, upload)
    if not used:
        raise UserError(f"{inbox}: {len(lines)} uploads, none of them intact, expected at least one; send them again")
    return used, lines


def _described(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _jpeg(pixels: UInt8[Tensor, "3 h w"]) -> bytes:
    bgr = np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()[:, :, ::-1])
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return bytes(data.tobytes())
