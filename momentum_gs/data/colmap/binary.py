"""Binary COLMAP files, memory-mapped; only the parts of records that training needs are parsed.

Counts in a file are not trusted: each is compared with the size of the file before memory is allocated for it.
"""

import mmap
import struct
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from momentum_gs.core.errors import UserError
from momentum_gs.data.colmap.records import Intrinsics, Pose, check_model
from momentum_gs.data.lens import MODELS, Lens, parameter_count

# Longer than any path that a file system accepts; limits the search for the end of a name in a damaged file.
MAX_NAME = 4096

_COUNT = struct.Struct("<Q")
_CAMERA = struct.Struct("<iiQQ")  # id, model, width, height; then the parameters
_IMAGE = struct.Struct("<i7di")  # id, quaternion, translation, camera id; then the name, a zero byte, the observations
_OBSERVATION_BYTES = 24  # x, y as doubles and a 64-bit point id
_POINT = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])
_TRACK_AT = _POINT.itemsize - _COUNT.size  # offset of the length of the track in a record
_TRACK_BYTES = 8  # image id and observation index, 32 bits each


class _Reader:
    """A cursor over a mapped file; reading past the end raises a UserError."""

    def __init__(self, path: Path) -> None:
        self.path, self.at = path, 0
        try:
            with path.open("rb") as file:
                # An empty file cannot be mapped.
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
        """Number of records of at least ``smallest`` bytes each; an error if the file is too small for them."""
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
        """Checks that nothing follows: a file longer than its counts imply is damaged, too."""
        if self.at != len(self):
            raise UserError(
                f"{self.path}: damaged, found {len(self)} bytes, expected {self.at} by its own counts; "
                "copy or export the model again"
            )


def binary_cameras(path: Path) -> Iterator[tuple[int, Lens]]:
    """Id and lens of every camera in ``cameras.bin``; UserError if the file is damaged."""
    reader = _Reader(path)
    for _ in range(reader.count(_CAMERA.size)):
        number, model, width, height = reader.take(_CAMERA)
        name = MODELS[model] if 0 <= model < len(MODELS) else f"number {model}"
        check_model(path, number, name)
        parameters = reader.take(struct.Struct(f"<{parameter_count(name)}d"))
        yield number, Lens.from_parameters(name, width, height, parameters)
    reader.end()


def binary_images(path: Path) -> Iterator[Pose]:
    """The images of ``images.bin``; UserError if the file is damaged."""
    reader = _Reader(path)
    # The smallest record has an empty name with its zero byte, and no observations.
    for _ in range(reader.count(_IMAGE.size + 1 + _COUNT.size)):
        number, *pose, camera = reader.take(_IMAGE)
        name = reader.name()
        (observations,) = reader.take(_COUNT)
        reader.skip(observations * _OBSERVATION_BYTES)
        yield Pose(name, pose[:4], pose[4:], camera, number)
    reader.end()


def binary_points(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions [P,3] and colours [P,3] (bytes) of ``points3D.bin``; UserError if the file is damaged."""
    reader = _Reader(path)
    count = reader.count(_POINT.itemsize)
    starts = _point_starts(reader, count)
    reader.end()
    if count == 0:
        return np.empty((0, 3)), np.empty((0, 3), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(reader.data, np.uint8), _POINT.itemsize)
    records = windows[starts].view(_POINT)[:, 0]
    # Copies, since torch does not accept strides of 51 bytes (and ascontiguousarray keeps those of a single point).
    return records["xyz"].astype(np.float64), records["rgb"].copy()


def binary_tracks(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reprojection errors [P], track lengths [P] and the concatenated image ids of all tracks in ``points3D.bin``.

    Raises:
        UserError: the file is damaged.
    """
    reader = _Reader(path)
    starts = _point_starts(reader, reader.count(_POINT.itemsize))
    reader.end()
    data = np.frombuffer(reader.data, np.uint8)
    error, length = np.empty(len(starts)), np.empty(len(starts), np.int64)
    images = [np.empty(0, np.int32)]
    for row, start in enumerate(starts.tolist()):
        point = data[start : start + _POINT.itemsize].view(_POINT)[0]
        error[row], length[row] = point["error"], point["track"]
        at = start + _POINT.itemsize
        images.append(data[at : at + _TRACK_BYTES * int(point["track"])].view("<i4")[::2])
    return error, length, np.concatenate(images)


def _point_starts(reader: _Reader, count: int) -> np.ndarray:
    """Byte offset of each point, [count]. Record lengths depend on the tracks, so this loop is sequential."""
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


def write_binary(
    folder: Path, ids: dict[Intrinsics, int], poses: Sequence[Pose], xyz: np.ndarray, rgb: np.ndarray
) -> None:
    """Writes the three files of a model: cameras with their ids, images numbered from 1, points and colours [P,3]."""
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
