"""Point cloud files as initial points: PLY, and LAS or LAZ from surveys.

A scan may hold a thousand times as many points as anchors can start from. It is read in pieces and thinned while it is
read: whenever more than twice ``MAX_POINTS`` are held, only the first point in every voxel is kept, with voxels so
large that at most ``MAX_POINTS`` remain. So memory does not depend on the size of the file.
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
"""Largest number of points that are kept of a larger cloud; usually more than half as many are."""
_PIECE = 1_000_000
_PIECE_BYTES = 1 << 24
# Growth of a voxel's edge per pass: the area of its side doubles, which halves a cloud of a surface.
_GROW = 2**0.5
_MAX_HEADER = 1 << 16
# Header sizes, and so minimum sizes, of the variable-length records before and after the points of a LAS file.
_LAS_RECORD, _LAS_EXTENDED = 54, 60
# Larger than the coordinates of any scene, but so small that differences of coordinates are finite.
_FARTHEST = 1e30
_GREY = 128
"""Grey level of points without a colour."""
_COLOURS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))

Piece = tuple[np.ndarray, np.ndarray | None]
"""Positions float64 [m,3] and colours [m,3] of any number type, or None."""


def read_point_file(path: Path, limit: int = MAX_POINTS) -> PointCloud:
    """Reads a point cloud, thinned to at most ``limit`` points, which keep their order.

    PLY: vertices x, y, z with red, green, blue, binary or text. LAS and LAZ (they need the extra ``las``): scaled
    coordinates, colours of 8 or 16 bits.

    Raises:
        UserError: the file is missing, damaged, empty or of another kind, or the extra is not installed.
    """
    kinds = {".ply": _ply_pieces, ".las": _las_pieces, ".laz": _las_pieces}
    if path.suffix.lower() not in kinds:
        raise UserError(f"data: point file {path} ends in {path.suffix!r}, expected .ply, .las or .laz; convert it")
    xyz, rgb, size = np.empty((0, 3)), np.empty((0, 3)), 0.0
    for points, colours in kinds[path.suffix.lower()](path):
        bad = int((~(np.abs(points) < _FARTHEST).all(axis=1)).sum())  # written so that NaN is bad
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
    """The first point in each voxel, for voxels of edge ``size`` or larger that leave at most ``limit`` points.

    Returns:
        Positions, colours, and the edge of the voxels.
    """
    low = xyz.min(axis=0)
    # With this edge a plane of the cloud's extent has 16 * limit voxels, so few passes follow.
    size = max(size, float((xyz.max(axis=0) - low).max()) / limit**0.5 / 4, np.finfo(np.float64).tiny)
    while len(xyz) > limit:
        place = unique_cells(torch.from_numpy(np.floor((xyz - low) / size)).long())[1]
        first = torch.full((int(place.max()) + 1,), len(xyz)).scatter_reduce(0, place, torch.arange(len(xyz)), "amin")
        keep = first.sort().values.numpy()
        xyz, rgb = xyz[keep], rgb[keep]
        size *= _GROW
    return xyz, rgb, size / _GROW


def _eight_bits(rgb: np.ndarray) -> np.ndarray:
    """Colours as uint8, [n,3]. Files do not state the range: it is 1, 255 or 65535, the smallest that fits all."""
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
            with np.errstate(invalid="ignore"):  # Signalling NaNs; the caller rejects all NaNs.
                xyz = np.stack([axis[part].astype(np.float64) for axis in axes], axis=1)
            yield xyz, None if colours is None else np.stack([vertex[name][part] for name in colours], axis=1)
    except Exception as error:  # plyfile and numpy raise many kinds of exceptions for a damaged file.
        raise UserError(
            f"data: point file {path} is damaged or no point cloud ({' '.join(str(error).split())[:200]}), expected a "
            "PLY with vertices x, y, z; export it again"
        ) from error


def _check_ply_counts(path: Path) -> None:
    """Compares the counts in a PLY header with the file's size before memory is allocated for them."""
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
        # A row has at least one byte. (The number of digits is limited, since Python refuses to parse thousands.)
        fits = len(words) == 3 and words[2].isdigit() and len(words[2]) < 20 and int(words[2]) <= size
        if words[:1] == [b"element"] and not fits:
            raise UserError(
                f"data: point file {path} says {line[:80]!r} in {size} bytes, expected a count that fits; copy or "
                "export it again"
            )


def _check_las_counts(path: Path) -> None:
    """Compares the counts in a LAS header (ASPRS LAS 1.4 R15) with the file's size before they are used.

    Raises:
        ValueError, OSError, struct.error: for counts that the file cannot hold, and offsets outside of it.
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
    # Bit 7 of the format marks compressed points: any number may fit into few bytes, but they are read in pieces.
    held = 0 if form & 0x80 else points * length
    if max(header + records * _LAS_RECORD, start + held, after + extended * _LAS_EXTENDED, chunks) > size:
        raise ValueError(f"{points} points and {records} + {extended} other records in {size} bytes")


def _laz_chunks(file: BinaryIO, head: bytes, size: int) -> int:
    """Number of chunks, each of at least one byte, in the chunk table of a compressed file; 0 for other files.

    The offset of the table precedes the points; it is -1 there, and at the end of the file, if the writer could not
    seek back.
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
        # Single-threaded: the parallel decompressor divides by a number from the file, and panics if it is damaged.
        with laspy.open(path, laz_backend=laspy.LazBackend.Lazrs) as file:
            # A record may have up to 65,535 bytes, and laspy allocates memory for all records of a piece first.
            for points in file.chunk_iterator(max(_PIECE_BYTES // file.header.point_format.size, 1)):
                coloured = {"red", "green", "blue"} <= set(points.point_format.dimension_names)
                colours = np.stack([points.red, points.green, points.blue], axis=1) if coloured else None
                yield np.stack([points.x, points.y, points.z], axis=1).astype(np.float64), colours
    except BaseException as error:
        # laspy raises many kinds of exceptions for a damaged file, and panics of its decompressor are no Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"data: point file {path} cannot be read ({' '.join(str(error).split())[:200]}), expected a whole LAS or "
            "LAZ file; copy it again"
        ) from error
