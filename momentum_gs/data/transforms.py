"""``transforms.json``: poses as NeRF tools write them (nerfstudio, Blender's NeRF-synthetic, MatrixCity).

Intrinsics are given once for the file or per frame: ``fl_x fl_y cx cy w h``, or ``camera_angle_x`` and the image's
size; distortion as ``k1 k2 k3 k4 p1 p2`` of the ``camera_model``. Poses are camera to world in OpenGL's axes (x right,
y up, z backward); world coordinates are kept. nerfstudio's ``applied_transform`` has been applied to its point cloud,
too, so there is nothing to undo. A uniform scale in the rotation (MatrixCity's 0.01) is removed.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera
from momentum_gs.data.colmap.model import MAX_SIDE, checked_name
from momentum_gs.data.images import image_size
from momentum_gs.data.lens import Lens

WHOLE, TRAIN, TEST = "transforms.json", "transforms_train.json", "transforms_test.json"
# Tried if a frame names its image without a suffix, as in NeRF-synthetic.
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".tif", ".webp")
# Tolerance of rotations, since poses may have been float32 and text with six digits.
_ORTHONORMAL = 1e-3


@dataclass(frozen=True)
class Frame:
    """One image with its pose."""

    camera: Camera
    """The pinhole part, at the image size in the file."""
    lens: Lens
    path: Path
    mask: Path | None
    """The frame's own ``mask_path``."""


@dataclass(frozen=True)
class Transforms:
    """The contents of a scene's pose files."""

    frames: list[Frame]
    """In order of name."""
    held_out: list[str] | None
    """Names of the held-out views; None if the files do not list them."""
    cloud: Path | None
    """The point cloud (``ply_file_path``)."""
    file: Path
    """The first pose file, for messages."""


def find_transforms(scene: Path) -> list[Path]:
    """The pose files of a scene: ``transforms.json``, or else ``transforms_train.json`` and ``transforms_test.json``
    as far as they exist."""
    if (scene / WHOLE).is_file():
        return [scene / WHOLE]
    return [scene / name for name in (TRAIN, TEST) if (scene / TRAIN).is_file() and (scene / name).is_file()]


def read_transforms(scene: Path, images: str = "images") -> Transforms:
    """Reads the pose files of a scene.

    Args:
        scene: The folder that holds them; every path in them is below it.
        images: Folder that replaces ``images/`` in the files' paths (nerfstudio's images_2, images_4, ...).

    Raises:
        UserError: for damaged files, impossible values, paths that lead out of the scene and names that occur twice.
    """
    files = find_transforms(scene)
    frames: dict[str, Frame] = {}
    held_out: list[str] | None = None
    cloud: Path | None = None
    for file in files:
        record = _load(file)
        names = []
        for number, entry in enumerate(_list(record, "frames", file)):
            where = f"{file}: frame {number}"
            if not isinstance(entry, dict):
                raise UserError(f"{where} is {str(entry)[:80]!r}, expected an object; export it again")
            frame = _frame(scene, {**record, **entry}, where, images)
            if frame.camera.name in frames:
                raise UserError(f"{where}: image {frame.camera.name!r} is listed twice, expected unique names; "
                                "remove one of them")  # fmt: skip
            frames[frame.camera.name] = frame
            names.append(frame.camera.name)
        if file.name == TEST:
            held_out = names
        elif file.name == WHOLE:
            held_out = _named_test(scene, record, file, images)
        if "ply_file_path" in record and cloud is None:
            cloud = scene / _inside(record["ply_file_path"], f"{file}: ply_file_path")
    if not frames:
        raise UserError(f"{files[0]}: holds no frames, expected at least one; export it again")
    return Transforms([frames[name] for name in sorted(frames)], held_out, cloud, files[0])


def _load(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON ({error}); copy or export it again") from error
    if not isinstance(record, dict):
        raise UserError(f"{file}: holds {str(record)[:80]!r}, expected an object with 'frames'; export it again")
    return record


def _list(record: Mapping[str, Any], key: str, file: Path) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list):
        raise UserError(f"{file}: {key} is {str(value)[:80]!r}, expected a list; export it again")
    return value


def _named_test(scene: Path, record: Mapping[str, Any], file: Path, images: str) -> list[str] | None:
    """Held-out images in nerfstudio's lists; None if there is no list."""
    for key in ("test_filenames", "val_filenames"):
        if key in record:
            return [_image(scene, path, f"{file}: {key}", images)[0] for path in _list(record, key, file)]
    return None


def _frame(scene: Path, entry: Mapping[str, Any], where: str, images: str) -> Frame:
    if "file_path" in entry:
        name, path = _image(scene, entry["file_path"], where, images)
    elif isinstance(entry.get("frame_index"), int):  # MatrixCity's blocks number their images.
        folder = "rgb/" if (scene / "rgb").is_dir() else ""
        name, path = _image(scene, f"{folder}{entry['frame_index']:04d}.png", where, images)
    else:
        raise UserError(f"{where} has no file_path, expected the path of its image; export it again")
    where = f"{where} ({name})"
    lens = _lens(entry, path, where)
    rotation, center = _pose(entry, where)
    camera = Camera(name, lens.width, lens.height, *lens.focal, *lens.center, rotation, -rotation @ center)
    mask = entry.get("mask_path")
    return Frame(camera, lens, path, None if mask is None else scene / _inside(mask, where))


def _inside(value: object, where: str) -> str:
    """A path below the scene, as a POSIX path; UserError for paths that lead out of the scene."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {str(value)[:80]!r} is no path, expected text; export it again")
    while value.startswith("./"):
        value = value[2:]
    checked_name(where, value)
    return value


def _image(scene: Path, value: object, where: str, images: str) -> tuple[str, Path]:
    """Name and file of an image. A leading ``images/`` is removed from the name, as COLMAP's names have none."""
    name = _inside(value, where)
    below = name.startswith("images/")
    folder, name = (scene / images, name.removeprefix("images/")) if below else (scene, name)
    candidates = (name, *(name + extension for extension in _EXTENSIONS))
    name = next((candidate for candidate in candidates if (folder / candidate).is_file()), name)
    return name, folder / name


def _number(entry: Mapping[str, Any], key: str, where: str) -> float | None:
    """A finite number, or None if there is no such key."""
    value = entry.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not abs(value) < 1e30:  # Excludes NaN, and integers too large for a float.
        raise UserError(f"{where}: {key} is {str(value)[:80]}, expected a finite number; export it again")
    return float(value)


def _lens(entry: Mapping[str, Any], path: Path, where: str) -> Lens:
    w, h = (_number(entry, key, where) for key in ("w", "h"))
    width, height = image_size(path) if w is None or h is None else (int(w), int(h))
    angle_x, angle_y = (_number(entry, f"camera_angle_{axis}", where) for axis in "xy")
    fx, fy = _number(entry, "fl_x", where), _number(entry, "fl_y", where)
    fx = fx if fx is not None else _focal(width, angle_x)
    fy = fy if fy is not None else _focal(height, angle_y)
    fx, fy = fy if fx is None else fx, fx if fy is None else fy
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE and fx and fy and fx > 0 and fy > 0):
        raise UserError(
            f"{where}: size {width}x{height}, focal lengths {fx} and {fy}, expected a size of 1 to {MAX_SIDE} and fl_x "
            "or camera_angle_x; export it again"
        )
    cx, cy = _number(entry, "cx", where), _number(entry, "cy", where)
    center = (width / 2 if cx is None else cx, height / 2 if cy is None else cy)
    model, extra = _distortion(entry, where)
    return Lens(model, width, height, (fx, fy), center, extra)


def _focal(side: int, angle: float | None) -> float | None:
    """Focal length in pixels from a field of view in radians; None if the angle is missing or impossible."""
    return 0.5 * side / math.tan(0.5 * angle) if angle is not None and 0 < angle < math.pi else None


def _distortion(entry: Mapping[str, Any], where: str) -> tuple[str, tuple[float, ...]]:
    """COLMAP's name of the camera model, and its distortion parameters."""
    k1, k2, k3, k4, p1, p2 = (_number(entry, key, where) or 0.0 for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    model = "OPENCV_FISHEYE" if entry.get("is_fisheye") else entry.get("camera_model", "OPENCV")
    if model == "OPENCV_FISHEYE" and not (p1 or p2):
        return "OPENCV_FISHEYE", (k1, k2, k3, k4)
    if model in ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV") and not k4:
        # Only FULL_OPENCV has k3; the others are special cases of it.
        if k3:
            return "FULL_OPENCV", (k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)
        return ("OPENCV", (k1, k2, p1, p2)) if k1 or k2 or p1 or p2 else ("PINHOLE", ())
    raise UserError(
        f"{where}: camera_model {str(model)[:40]!r} with k1..k4 = {k1}, {k2}, {k3}, {k4}, p1, p2 = {p1}, {p2}, "
        "expected OPENCV (k1, k2, k3, p1, p2) or OPENCV_FISHEYE (k1 to k4); undistort the images first"
    )


def _pose(entry: Mapping[str, Any], where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """World-to-camera rotation, for camera axes as COLMAP has them, and the camera's position; float64."""
    rows = entry.get("transform_matrix", entry.get("rot_mat"))
    good = isinstance(rows, list) and len(rows) in (3, 4)
    good = good and all(isinstance(row, list) and len(row) == 4 for row in rows)
    good = good and all(type(v) in (int, float) and abs(v) < 1e30 for row in rows for v in row)
    if not good:
        raise UserError(
            f"{where}: transform_matrix is {str(rows)[:80]}, expected 4x4 finite numbers; remove the frame"
        )
    matrix = torch.tensor(rows, dtype=torch.float64)[:3]
    scale = torch.linalg.det(matrix[:, :3]).abs() ** (1 / 3)
    rotation = matrix[:, :3] / scale
    off = (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max()
    # The condition is written so that NaN fails it.
    if not (off < _ORTHONORMAL and torch.linalg.det(rotation) > 0):
        raise UserError(f"{where}: transform_matrix {rows} holds no rotation, expected one; remove the frame")
    # The nearest exact rotation: rounding errors of the file in it would be multiplied by the camera's distance from
    # the origin.
    u, _, v = torch.linalg.svd(rotation)
    flipped = u @ v * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)  # OpenGL's y is up, its z backward.
    return flipped.T.contiguous(), matrix[:, 3]
