"""COLMAP models, binary and text: ``cameras``, ``images`` and ``points3D`` in one folder.

Layouts as COLMAP's documentation gives them (https://colmap.github.io/format.html). Only what training needs is read:
observations and tracks are skipped unparsed, newer companions (``frames``, ``rigs``) are not opened. A file is never
believed about its own size: every count is compared with the bytes that are there before memory is taken for it.
"""

import math
import mmap
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.lens import MODELS, Lens, parameter_count

# Wider than any image that the decoders open (JPEG ends at 65,535); a forged size must not reach an allocation.
MAX_SIDE = 2**20
# Longer than any path a file system takes; bounds the search for the end of a name in a damaged file.
MAX_NAME = 4096

_COUNT = struct.Struct("<Q")
_CAMERA = struct.Struct("<iiQQ")  # id, model, width, height; then the parameters
_IMAGE = struct.Struct("<i7di")  # id, quaternion, translation, camera id; then the name, a zero byte, the observations
_OBSERVATION_BYTES = 24  # x, y as doubles and a 64-bit point id
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])
_TRACK_AT = _POINT.itemsize - _COUNT.size  # where the length of the track stands
_TRACK_BYTES = 8  # image id and observation index, 32 bits each


@dataclass(frozen=True)
class ColmapModel:
    """What a COLMAP model says about a scene."""

    cameras: list[Camera]
    """Sorted by name, sizes as COLMAP saw the images."""
    points: PointCloud


class _Intrinsics(NamedTuple):
    """What one COLMAP camera of a written model holds."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


class _Pose(NamedTuple):
    name: str
    quat: Sequence[float]
    translation: Sequence[float]
    camera: int


def find_model(scene: Path) -> Path:
    """The model's folder in a scene: ``sparse/0``, else ``sparse``.

    Raises:
        UserError: where neither holds a ``cameras`` file.
    """
    for folder in (scene / "sparse" / "0", scene / "sparse"):
        if any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return folder
    raise UserError(f"{scene}: no COLMAP model found, expected sparse/0/cameras.bin (or .txt); check the path (-s)")


def read_model(folder: Path) -> ColmapModel:
    """Reads the model in a folder; of each of the three files the binary form is preferred.

    Raises:
        UserError: for missing, truncated or inconsistent files, impossible values and lenses that bend rays.
    """
    return ColmapModel(read_cameras(folder), read_points(folder))


def read_cameras(folder: Path) -> list[Camera]:
    """Posed views of a model, sorted by name; errors as ``read_model``."""
    return [camera for camera, _ in read_views(folder)]


def read_views(
    folder: Path, distorted: bool = False, bad: dict[str, UserError] | None = None
) -> list[tuple[Camera, Lens]]:
    """Posed views of a model with their lenses, sorted by name.

    Args:
        folder: Holds the model.
        distorted: Whether lenses may bend rays; the camera is then only the pinhole part of the view.
        bad: Takes the images with impossible names, poses or cameras, by name, which are then left out.

    Raises:
        UserError: as ``read_model``.
    """
    path = _file(folder, "cameras")
    lenses: dict[int, Lens] = {}
    for number, lens in _cameras_binary(path) if path.suffix == ".bin" else _cameras_text(path):
        if number in lenses:
            raise UserError(f"{path}: camera {number} is listed twice, expected unique ids; export the model again")
        lenses[number] = _checked_lens(path, number, lens)
        if not (distorted or lens.is_pinhole):
            raise UserError(
                f"{path}: camera {number} has model {lens.model}, which is distorted, expected a pinhole camera; "
                "set scene.undistort=true, or run: colmap image_undistorter --image_path IMAGES "
                f"--input_path {path.parent} --output_path NEW_SCENE"
            )
    path = _file(folder, "images")
    poses: dict[str, _Pose] = {}
    for pose in _images_binary(path) if path.suffix == ".bin" else _images_text(path):
        if pose.name in poses:
            raise UserError(f"{path}: image {pose.name!r} is listed twice, expected unique names; rename one of them")
        try:
            if pose.camera not in lenses:
                raise UserError(
                    f"{path}: image {pose.name!r} uses camera {pose.camera}, which "
                    f"cameras{_file(folder, 'cameras').suffix} does not list (it has {sorted(lenses)[:8]}); export the "
                    "model again"
                )
            poses[pose.name] = _checked_pose(path, pose)
        except UserError as error:
            if bad is None:
                raise
            bad[pose.name] = error
    if not poses:
        raise UserError(f"{path}: holds no images, expected at least one; run the reconstruction again")
    ordered = [poses[name] for name in sorted(poses)]
    rotations = quat_to_matrix(torch.tensor([pose.quat for pose in ordered], dtype=torch.float64))
    translations = torch.tensor([pose.translation for pose in ordered], dtype=torch.float64)
    views = []
    for pose, rotation, translation in zip(ordered, rotations, translations, strict=True):
        lens = lenses[pose.camera]
        camera = Camera(pose.name, lens.width, lens.height, *lens.focal, *lens.center, rotation, translation)
        views.append((camera, lens))
    return views


def read_points(folder: Path) -> PointCloud:
    """The sparse points of a model, in the file's order; errors as ``read_model``."""
    path = _file(folder, "points3D")
    xyz, rgb = _points_binary(path) if path.suffix == ".bin" else _points_text(path)
    bad = int((~np.isfinite(xyz).all(axis=1)).sum())
    if bad:
        raise UserError(f"{path}: {bad} of {len(xyz)} points have NaN or infinite coordinates; export the model again")
    return PointCloud(torch.from_numpy(xyz), torch.from_numpy(rgb))


def write_model(folder: Path, cameras: Sequence[Camera], points: PointCloud, binary: bool = True) -> None:
    """Writes a model that ``read_model`` and COLMAP read: PINHOLE cameras, no observations, no tracks.

    Cameras of equal intrinsics share one COLMAP camera; images are numbered from 1 in the given order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for camera in cameras:
        checked_name(folder, camera.name)
    ids: dict[_Intrinsics, int] = {}
    for c in cameras:
        ids.setdefault(_Intrinsics(c.width, c.height, c.fx, c.fy, c.cx, c.cy), len(ids) + 1)
    quats = _matrix_to_quat(np.stack([camera.rotation.numpy() for camera in cameras])).tolist() if cameras else []
    poses = [
        _Pose(c.name, quat, c.translation.tolist(), ids[_Intrinsics(c.width, c.height, c.fx, c.fy, c.cx, c.cy)])
        for c, quat in zip(cameras, quats, strict=True)
    ]
    xyz, rgb = points.xyz.numpy(), points.rgb.numpy()
    if binary:
        _write_binary(folder, ids, poses, xyz, rgb)
    else:
        _write_text(folder, ids, poses, xyz, rgb)


# Binary files.


class _Reader:
    """A cursor over a mapped file that reports the file's end as the user's problem."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            with path.open("rb") as file:
                # A file of no bytes cannot be mapped.
                empty = path.stat().st_size == 0
                self.data = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from error

    def __len__(self) -> int:
        return len(self.data)

    def short(self, expected: int) -> NoReturn:
        raise UserError(
            f"{self.path}: truncated or damaged, found {len(self)} bytes, expected at least {expected}; "
            "copy or export the model again"
        )

    def take(self, layout: struct.Struct) -> tuple:
        self.skip(layout.size)
        return layout.unpack_from(self.data, self.at - layout.size)

    def skip(self, size: int) -> None:
        if self.at + size > len(self):
            self.short(self.at + size)
        self.at += size

    def count(self, smallest: int) -> int:
        """Number of records, at least ``smallest`` bytes each, believed only where the file can hold them."""
        (count,) = self.take(_COUNT)
        if self.at + count * smallest > len(self):
            self.short(self.at + count * smallest)
        return count

    def name(self) -> str:
        """Text up to the next zero byte."""
        end = self.data.find(b"\0", self.at, self.at + MAX_NAME)
        if end < 0:
            raise UserError(
                f"{self.path}: the image name at byte {self.at} does not end within {MAX_NAME} bytes; "
                "copy or export the model again"
            )
        raw, self.at = self.data[self.at : end], end + 1
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: image name {raw!r} is not UTF-8; rename the image") from error

    def end(self) -> None:
        """Checks that nothing follows: a file longer than its count says is as damaged as a shorter one."""
        if self.at != len(self):
            raise UserError(
                f"{self.path}: damaged, found {len(self)} bytes, expected {self.at} by its own counts; "
                "copy or export the model again"
            )


def _cameras_binary(path: Path) -> Iterator[tuple[int, Lens]]:
    reader = _Reader(path)
    for _ in range(reader.count(_CAMERA.size)):
        number, model, width, height = reader.take(_CAMERA)
        name = MODELS[model] if 0 <= model < len(MODELS) else f"number {model}"
        _check_model(path, number, name)
        parameters = reader.take(struct.Struct(f"<{parameter_count(name)}d"))
        yield number, Lens.from_parameters(name, width, height, parameters)
    reader.end()


def _images_binary(path: Path) -> Iterator[_Pose]:
    reader = _Reader(path)
    # The smallest record has an empty name, its zero byte and no observation.
    for _ in range(reader.count(_IMAGE.size + 1 + _COUNT.size)):
        _, *pose, camera = reader.take(_IMAGE)
        name = reader.name()
        (observations,) = reader.take(_COUNT)
        reader.skip(observations * _OBSERVATION_BYTES)
        yield _Pose(name, pose[:4], pose[4:], camera)
    reader.end()


def _points_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    reader = _Reader(path)
    count = reader.count(_POINT.itemsize)
    starts = _point_starts(reader, count)
    reader.end()
    if count == 0:
        return np.empty((0, 3)), np.empty((0, 3), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(reader.data, np.uint8), _POINT.itemsize)
    records = windows[starts].view(_POINT)[:, 0]
    # Copies, since torch takes no strides of 51 bytes (and ascontiguousarray leaves those of a single point).
    return records["xyz"].astype(np.float64), records["rgb"].copy()


def _point_starts(reader: _Reader, count: int) -> np.ndarray:
    """Where each point begins, [count]. A record's length hangs on its track, so this walk is sequential, and bare."""
    length, data, size = _COUNT.unpack_from, reader.data, len(reader)
    record, at, starts = _POINT.itemsize, reader.at, array("q")
    for _ in range(count):
        if at + record > size:
            reader.short(at + record)
        starts.append(at)
        at += record + _TRACK_BYTES * length(data, at + _TRACK_AT)[0]
    if at > size:
        reader.short(at)
    reader.at = at
    return np.array(starts)


def _write_binary(
    folder: Path, ids: dict[_Intrinsics, int], poses: Sequence[_Pose], xyz: np.ndarray, rgb: np.ndarray
) -> None:
    pinhole = MODELS.index("PINHOLE")
    cameras = [_CAMERA.pack(i, pinhole, c.width, c.height) + struct.pack("<4d", *c[2:]) for c, i in ids.items()]
    images = [
        _IMAGE.pack(i, *p.quat, *p.translation, p.camera) + p.name.encode() + b"\0" + _COUNT.pack(0)
        for i, p in enumerate(poses, start=1)
    ]
    points = np.zeros(len(xyz), _POINT)
    points["id"], points["xyz"], points["rgb"] = np.arange(1, len(xyz) + 1), xyz, rgb
    (folder / "cameras.bin").write_bytes(_COUNT.pack(len(ids)) + b"".join(cameras))
    (folder / "images.bin").write_bytes(_COUNT.pack(len(poses)) + b"".join(images))
    (folder / "points3D.bin").write_bytes(_COUNT.pack(len(points)) + points.tobytes())


# Text files.


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number from 1 and text of every line."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from enumerate((line.rstrip("\r\n") for line in file), start=1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8 ({error.reason}); export the model again") from error


def _holds_data(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _bad_line(path: Path, number: int, line: str, expected: str) -> UserError:
    return UserError(f"{path}: line {number} is {line[:80]!r}, expected {expected}; export the model again")


def _cameras_text(path: Path) -> Iterator[tuple[int, Lens]]:
    for at, line in _lines(path):
        if not _holds_data(line):
            continue
        fields = line.split()
        if len(fields) > 1:
            _check_model(path, fields[0], fields[1])
        try:
            number, name, width, height, *parameters = fields
            if len(parameters) != parameter_count(name):
                raise ValueError(name)
            lens = Lens.from_parameters(name, int(width), int(height), [float(p) for p in parameters])
            camera = int(number), lens
        except ValueError as error:
            raise _bad_line(path, at, line, "CAMERA_ID MODEL WIDTH HEIGHT PARAMS") from error
        yield camera


def _images_text(path: Path) -> Iterator[_Pose]:
    lines = _lines(path)
    for at, line in lines:
        if not _holds_data(line):
            continue
        try:
            # The name comes last and may contain spaces.
            _, *numbers, camera, name = line.strip().split(maxsplit=9)
            values = [float(v) for v in numbers]
            pose = _Pose(name, values[:4], values[4:], int(camera))
            if len(values) != 7:
                raise ValueError(line)
        except ValueError as error:
            raise _bad_line(path, at, line, "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME") from error
        # Each image has a second line with its observations, empty if it has none. Only its last word is looked at: a
        # point's number there, where a file without second lines would have a name and lose every other image.
        at, line = next(lines, (at, ""))
        try:
            int(line.rsplit(maxsplit=1)[-1] if line.strip() else 0)
        except ValueError as error:
            expected = f"the 2D points of image {name!r} (an empty line if it has none)"
            raise _bad_line(path, at, line, expected) from error
        yield pose


def _points_text(path: Path) -> tuple[np.ndarray, np.ndarray]:
    xyz, rgb = array("d"), array("B")
    for at, line in _lines(path):
        if not _holds_data(line):
            continue
        try:
            _, x, y, z, r, g, b, *_ = line.split(maxsplit=7)
            xyz.extend((float(x), float(y), float(z)))
            rgb.extend((int(r), int(g), int(b)))
        except (ValueError, OverflowError) as error:
            raise _bad_line(path, at, line, "POINT3D_ID X Y Z R G B ERROR TRACK with R, G, B in 0..255") from error
    return np.array(xyz).reshape(-1, 3), np.array(rgb).reshape(-1, 3)


def _write_text(
    folder: Path, ids: dict[_Intrinsics, int], poses: Sequence[_Pose], xyz: np.ndarray, rgb: np.ndarray
) -> None:
    cameras = (f"{i} PINHOLE {_words(c)}\n" for c, i in ids.items())
    images = (
        f"{i} {_words(p.quat)} {_words(p.translation)} {p.camera} {p.name}\n\n" for i, p in enumerate(poses, start=1)
    )
    rows = zip(xyz.tolist(), rgb.tolist(), strict=True)
    points = (f"{i} {_words(x)} {_words(c)} 0\n" for i, (x, c) in enumerate(rows, start=1))
    for name, header, lines in (
        ("cameras.txt", "# CAMERA_ID MODEL WIDTH HEIGHT PARAMS\n", cameras),
        ("images.txt", "# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of POINTS2D\n", images),
        ("points3D.txt", "# POINT3D_ID X Y Z R G B ERROR TRACK\n", points),
    ):
        with (folder / name).open("w", encoding="utf-8", newline="\n") as file:
            file.write(header)
            file.writelines(lines)


def _words(values: Iterable[float | int]) -> str:
    """Numbers as text that reads back to the same bits."""
    return " ".join(str(v) for v in values)


# What both forms share.


def _file(folder: Path, stem: str) -> Path:
    for suffix in (".bin", ".txt"):
        if (folder / (stem + suffix)).is_file():
            return folder / (stem + suffix)
    raise UserError(f"{folder}: no {stem}.bin and no {stem}.txt, expected one of them; check the scene's path (-s)")


def _check_model(path: Path, number: int | str, model: str) -> None:
    if model not in MODELS:
        raise UserError(
            f"{path}: camera {number} has model {model}, expected one of {', '.join(MODELS)}; convert it to one of them"
        )


def _checked_lens(path: Path, number: int, lens: Lens) -> Lens:
    (fx, fy), (cx, cy) = lens.focal, lens.center
    # Phrased so that NaN fails.
    size_ok = 1 <= lens.width <= MAX_SIDE and 1 <= lens.height <= MAX_SIDE
    if not (size_ok and fx > 0 and fy > 0 and all(math.isfinite(v) for v in (fx, fy, cx, cy, *lens.extra))):
        raise UserError(
            f"{path}: camera {number} is {lens.width}x{lens.height} with fx={fx}, fy={fy}, cx={cx}, cy={cy}"
            f"{', distortion ' + str(list(lens.extra)) if lens.extra else ''}, expected a size of 1 to {MAX_SIDE} and "
            "finite values with focal lengths above 0; export the model again"
        )
    return lens


def _checked_pose(path: Path, pose: _Pose) -> _Pose:
    checked_name(path, pose.name)
    length = math.hypot(*pose.quat)
    # COLMAP writes unit quaternions; near 0 a direction is round-off, and what is not finite fails the comparison.
    if not (1e-6 < length < math.inf and all(math.isfinite(v) for v in pose.translation)):
        raise UserError(
            f"{path}: image {pose.name!r} has quaternion {list(pose.quat)} and translation {list(pose.translation)}, "
            "expected finite numbers and a quaternion of length 1; take the image out of the model"
        )
    return pose


def checked_name(where: Path | str, name: str) -> None:
    """Names are joined to the image folder, so none may lead out of it, on any system.

    Raises:
        UserError: for one that does; ``where`` says what names it.
    """
    parts = name.replace("\\", "/").split("/")
    # Half of a surrogate pair, which JSON can hold, has no encoding; parts of over 255 bytes no file system takes.
    encodable = not any(0xD800 <= ord(c) < 0xE000 for c in name)
    long = encodable and any(len(part.encode()) > 255 for part in parts)
    if (
        any(part in ("", ".", "..") for part in parts)
        or name[1:2] == ":"
        or any(ord(c) < 32 for c in name)
        or not encodable
        or long
    ):
        raise UserError(
            f"{where}: image name {name[:80]!r} is not a plain path below the image folder (absolute, empty, '.' or "
            "'..' parts, control characters, over 255 bytes); rename the image in the model"
        )


def _matrix_to_quat(rotations: np.ndarray) -> np.ndarray:
    """Quaternions (w, x, y, z) of rotation matrices [M,3,3], w >= 0.

    The quaternion is the eigenvector of the largest eigenvalue of a symmetric 4x4 matrix (Bar-Itzhack 2000): no case
    distinction, and exact to round-off for every angle.
    """
    xx, xy, xz, yx, yy, yz, zx, zy, zz = rotations.reshape(-1, 9).T
    zero = np.zeros_like(xx)
    # eigh reads the lower triangle.
    rows = [
        [xx + yy + zz, zero, zero, zero],
        [zy - yz, xx - yy - zz, zero, zero],
        [xz - zx, xy + yx, yy - xx - zz, zero],
        [yx - xy, xz + zx, yz + zy, zz - xx - yy],
    ]
    quats = np.linalg.eigh(np.stack([np.stack(row, axis=-1) for row in rows], axis=-2))[1][..., -1]
    return quats * np.where(quats[:, :1] < 0, -1.0, 1.0)
