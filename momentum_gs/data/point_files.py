"""Point clouds in files of their own, as initial points: PLY, and LAS or LAZ from surveys.

A scan may hold a thousand times more points than anchors can start from. It is read piece by piece and thinned on the
way: as soon as more than twice ``MAX_POINTS`` are held, only the first point in every voxel stays, and voxels grow
until ``MAX_POINTS`` suffice. Memory is bounded by that, not by the file.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from plyfile import PlyData

from momentum_gs.core.errors import UserError
from momentum_gs.core.types import PointCloud
from momentum_gs.core.voxels import unique_cells

MAX_POINTS = 5_000_000
"""Points that stay of a larger cloud, at most; more than half of them do."""
_PIECE = 1_000_000
_PIECE_BYTES = 1 << 24
# Twice the area of a voxel's side: a cloud of a surface is halved.
_GROW = 2**0.5
_MAX_HEADER = 1 << 16
# Heads of the records that stand before and after the points of a LAS file, the least that each has.
_LAS_RECORD, _LAS_EXTENDED = 54, 60
# Farther than any scene, and near enough that differences of coordinates are finite.
_FARTHEST = 1e30
_GREY = 128
"""Colour of points without one."""
_COLOURS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))

Piece = tuple[np.ndarray, np.ndarray | None]
"""Positions float64 [m,3] and colours [m,3] of any number type, or None."""


def read_point_file(path: Path, limit: int = MAX_POINTS) -> PointCloud:
    """Reads a point cloud, thinned to at most ``limit`` points; those that stay keep their order.

    PLY: vertices x, y, z with red, green, blue, binary or text. LAS and LAZ (with the extra ``las``): scaled
    coordinates, colours of 8 or 16 bits.

    Raises:
        UserError: for a file that is missing, damaged, empty or of another kind, and for a missing extra.
    """
    kinds = {".ply": _ply_pieces, ".las": _las_pieces, ".laz": _las_pieces}
    if path.suffix.lower() not in kinds:
        raise UserError(f"data: point file {path} ends in {path.suffix!r}, expected .ply, .las or .laz; convert it")
    xyz, rgb, size = np.empty((0, 3)), np.empty((0, 3)), 0.0
    for points, colours in kinds[path.suffix.lower()](path):
        bad = int((~(np.abs(points) < _FARTHEST).all(axis=1)).sum())  # phrased so that NaN is bad
        if bad:
            raise UserError(f"data: point file {path} has {bad} points that are NaN or infinite; export it again")
        xyz = np.concatenate([xyz, points])
        rgb = np.concatenate([rgb, np.full(points.shape, np.nan) if colours is None else colours.astype(np.float64)])
        if len(xyz) > 2 * limit:
            xyz, rgb, size = _thinned(xyz, rgb, size, limit)
    if len(xyz) > limit:
        xyz, rgb, size = _thinned(xyz, rgb, size, limit)
    if len(xyz) == 0:
        raise UserError(f"data: point file {path} holds no points, expected at least one; use another file")
    return PointCloud(torch.from_numpy(xyz), torch.from_numpy(_eight_bits(rgb)))


def _thinned(xyz: np.ndarray, rgb: np.ndarray, size: float, limit: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The first point in each voxel of edge ``size`` (0: none yet), grown until at most ``limit`` stay; that edge."""
    low = xyz.min(axis=0)
    # A plane of this size has about as many voxels as points may stay, so few rounds are left.
    size = max(size, float((xyz.max(axis=0) - low).max()) / limit**0.5 / 4, np.finfo(np.float64).tiny)
    while len(xyz) > limit:
        place = unique_cells(torch.from_numpy(np.floor((xyz - low) / size)).long())[1]
        first = torch.full((int(place.max()) + 1,), len(xyz)).scatter_reduce(0, place, torch.arange(len(xyz)), "amin")
        keep = first.sort().values.numpy()
        xyz, rgb = xyz[keep], rgb[keep]
        size *= _GROW
    return xyz, rgb, size / _GROW


def _eight_bits(rgb: np.ndarray) -> np.ndarray:
    """[n,3] uint8. The range is not written anywhere: 1, 255 or 65535, the smallest that holds all values."""
    known = rgb[np.isfinite(rgb)]
    largest = float(known.max()) if len(known) else 0.0
    scale = 255.0 if largest <= 1 and not (known == known.round()).all() else 1.0 if largest <= 255 else 1 / 257
    return np.nan_to_num(rgb * scale, nan=_GREY).round().clip(0, 255).astype(np.uint8)


def _ply_pieces(path: Path) -> Iterator[Piece]:
    _check_ply_counts(path)
    try:
        vertex = PlyData.read(str(path), mmap="c")["vertex"].data
        names = vertex.dtype.names or ()
        axes = [vertex[name] for name in ("x", "y", "z")]
        colours = next((group for group in _COLOURS if set(group) <= set(names)), None)
        for start in range(0, len(vertex), _PIECE):
            part = slice(start, start + _PIECE)
            with np.errstate(invalid="ignore"):  # Signalling NaNs; the caller refuses all.
                xyz = np.stack([axis[part].astype(np.float64) for axis in axes], axis=1)
            yield xyz, None if colours is None else np.stack([vertex[name][part] for name in colours], axis=1)
    except Exception as error:  # plyfile and numpy raise whatever they stumble over in a damaged file.
        raise UserError(
            f"data: point file {path} is damaged or no point cloud ({' '.join(str(error).split())[:200]}), expected a "
            "PLY with vertices x, y, z; export it again"
        ) from error


def _check_ply_counts(path: Path) -> None:
    """Compares the counts in a PLY header with the file's size before anybody takes memory for them."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_MAX_HEADER)
    except OSError as error:
        raise UserError(f"data: point file {path} cannot be read ({error.strerror}); check scene.points") from error
    if not head.startswith(b"ply") or b"end_header" not in head:
        raise UserError(f"data: point file {path} has no PLY header, expected one that ends within {_MAX_HEADER} bytes;"
                        " export it again")  # fmt: skip
    for line in head[: head.index(b"end_header")].splitlines():
        words = line.split()
        # A row has at least one byte. (Python refuses to read thousands of digits.)
        fits = len(words) == 3 and words[2].isdigit() and len(words[2]) < 20 and int(words[2]) <= size
        if words[:1] == [b"element"] and not fits:
            raise UserError(
                f"data: point file {path} says {line[:80]!r} in {size} bytes, expected a count that fits; copy or "
                "export it again"
            )


def _check_las_counts(path: Path) -> None:
    """Compares the counts in a LAS header (ASPRS LAS 1.4 R15) with the file's size before anybody counts to them.

    Raises:
        ValueError, OSError, struct.error: for counts that the file cannot hold, and places that it does not have.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(375)
        if not head.startswith(b"LASF") or len(head) < 227:
            raise ValueError("no LAS header")
        chunks = _laz_chunks(file, head, size)
    header, start, records, form, length, points = struct.unpack_from("<HIIBHI", head, 94)
    after, extended = 0, 0
    if head[25] >= 4 and len(head) >= 255:
        after, extended, points = struct.unpack_from("<QIQ", head, 235)
    # Bit 7 of the format: compressed points, which may be any number in few bytes, but come piece by piece.
    held = 0 if form & 0x80 else points * length
    if max(header + records * _LAS_RECORD, start + held, after + extended * _LAS_EXTENDED, chunks) > size:
        raise ValueError(f"{points} points and {records} + {extended} other records in {size} bytes")


def _laz_chunks(file: BinaryIO, head: bytes, size: int) -> int:
    """How many pieces the table of a compressed file lists, each of at least one byte; 0 for other files.

    Its place stands before the points, or where the writer could not go back (-1) at the end.
    """
    if not head[104] & 0x80:
        return 0
    table = -1
    for place in (struct.unpack_from("<I", head, 96)[0], size - 8):
        if table == -1:
            file.seek(place)
            (table,) = struct.unpack("<q", file.read(8))
    file.seek(table)
    return struct.unpack("<II", file.read(8))[1]


def _las_pieces(path: Path) -> Iterator[Piece]:
    try:
        import laspy
    except ImportError as error:
        raise UserError(
            f"data: point file {path} needs laspy, which is not installed; pip install 'momentum-gs[las]'"
        ) from error
    try:
        _check_las_counts(path)
        # One thread: the parallel decompressor divides by what a damaged file says, and panics.
        with laspy.open(path, laz_backend=laspy.LazBackend.Lazrs) as file:
            # A record may have up to 65,535 bytes, and laspy asks for the memory of all before it reads the first.
            for points in file.chunk_iterator(max(_PIECE_BYTES // file.header.point_format.size, 1)):
                coloured = {"red", "green", "blue"} <= set(points.point_format.dimension_names)
                colours = np.stack([points.red, points.green, points.blue], axis=1) if coloured else None
                yield np.stack([points.x, points.y, points.z], axis=1).astype(np.float64), colours
    except BaseException as error:
        # laspy raises whatever it stumbles over in a damaged file, and panics of its decompressor are no Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"data: point file {path} cannot be read ({' '.join(str(error).split())[:200]}), expected a whole LAS or "
            "LAZ file; copy it again"
        ) from error
