"""MatrixCity's folders as views with COLMAP cameras.

  SRC/{train,test}/<block>/transforms.json     frames with frame_index and rot_mat, camera_angle_x
  SRC/{train,test}/<block>/0000.png            as the archive of the block unpacks; or below input/, rgb/, images/
  SRC/pose/<name>/transforms_{train,test}.json a selection: frames with file_path and transform_matrix, fl_x, cx, w, ...

Camera axes are OpenGL's (right, up, back). In the blocks positions are metres and the rotation is divided by 100; in
``pose`` both are scaled so that the unit is 100 m. The views returned here have that unit, as does the aabb in
configs/scenes/matrixcity.yaml. Source: README and scripts of city-super/MatrixCity.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch

from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera
from momentum_gs.data.images import image_size
from momentum_gs.data.prepare.files import SourceView, check_images, nearest_rotation

SPLITS = {"train": "train", "val": "test"}
"""Part of the written scene -> MatrixCity's name of the split."""
UNIT_METRES = 100.0

_SUB_FOLDERS = ("", "input", "rgb", "images")


def read_matrixcity(source: Path, pose: str = "block_all") -> dict[str, list[SourceView]]:
    """Views of both splits, in the source's order.

    For a split with a selection ``pose/<pose>``, these are its views, numbered from ``0000.png`` as in the published
    COLMAP models; for another split, those of all its blocks, with names like ``block_1/0000.png``.

    Raises:
        UserError: for missing or damaged files.
    """
    views = {}
    for part, split in SPLITS.items():
        selection = source / "pose" / pose / f"transforms_{split}.json"
        views[part] = _selected(selection, source / split) if selection.is_file() else _blocks(source / split)
    return views


def _selected(file: Path, folder: Path) -> list[SourceView]:
    record = _read(file)
    images = [_image(file, frame, folder) for frame in record["frames"]]
    check_images(images)
    return [
        _view(file, record, frame, f"{i:04d}{image.suffix.lower()}", image)
        for i, (frame, image) in enumerate(zip(record["frames"], images, strict=True))
    ]


def _blocks(folder: Path) -> list[SourceView]:
    files = sorted(folder.glob("*/transforms.json"), key=_numerically)
    if not files:
        raise UserError(
            f"prepare: no */transforms.json in {folder}; name the folder that holds train and test (small_city/aerial)"
        )
    read = []
    for file in files:
        record = _read(file)
        read += [(file, record, frame, _image(file, frame, folder)) for frame in record["frames"]]
    check_images([image for *_, image in read])
    return [
        _view(file, record, frame, f"{file.parent.name}/{image.name}", image)
        for file, record, frame, image in read
    ]


def _numerically(file: Path) -> list[str | int]:
    """Sort key by which block_2 comes before block_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.parent.name)]


def _image(file: Path, frame: dict[str, Any], folder: Path) -> Path:
    """The image file of a frame; if there is none, the first path that was tried."""
    if "file_path" in frame:
        named = Path(str(frame["file_path"]))
        block, name = folder / named.parent.name, named.name
    elif isinstance(frame.get("frame_index"), int):
        block, name = file.parent, f"{frame['frame_index']:04d}.png"
    else:
        raise UserError(f"prepare: {file} has a frame without file_path and frame_index; download it again")
    places = [block / sub / name for sub in _SUB_FOLDERS]
    return next((place for place in places if place.is_file()), places[0])


def _view(file: Path, record: dict[str, Any], frame: dict[str, Any], name: str, image: Path) -> SourceView:
    try:
        matrix = frame["transform_matrix"] if "transform_matrix" in frame else frame["rot_mat"]
        pose = torch.tensor(matrix, dtype=torch.float64)
        if pose.shape != (4, 4):
            raise ValueError(f"a pose of shape {tuple(pose.shape)}")
        axes, center = pose[:3, :3], pose[:3, 3]
        if axes.norm(dim=0).mean() < 0.1:  # A pose of a block: metres, and axes of length 0.01.
            axes, center = axes * UNIT_METRES, center / UNIT_METRES
        rotation = nearest_rotation(axes * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)).T
        if "fl_x" in record:
            width, height = int(record["w"]), int(record["h"])
            fx, fy = float(record["fl_x"]), float(record.get("fl_y", record["fl_x"]))
            cx, cy = float(record.get("cx", width / 2)), float(record.get("cy", height / 2))
        else:
            width, height = image_size(image)
            fx = fy = width / 2 / math.tan(float(record["camera_angle_x"]) / 2)
            cx, cy = width / 2, height / 2
        distortion = tuple(float(record.get(key, 0)) for key in ("k1", "k2", "p1", "p2"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"prepare: {file} has for {name} no usable camera ({error}); download it again") from error
    camera = Camera(name, width, height, fx, fy, cx, cy, rotation, -rotation @ center)
    return SourceView(camera, image, distortion)


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        frames = record["frames"]
        if not (isinstance(frames, list) and frames and all(isinstance(frame, dict) for frame in frames)):
            raise ValueError("no frames")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"prepare: {file} cannot be read ({error}), expected frames; download it again") from error
    return record
