"""Files of explicit Gaussians, written and read in parts, so that memory does not grow with their number."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from plyfile import PlyData, PlyElement, PlyParseError

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.formats.kinds import format_of
from momentum_gs.formats.write import with_degree, write_splats
from momentum_gs.model.ply import columns
from momentum_gs.model.splats import Splats

FORMATS = ("ply", "compressed.ply", "splat", "spz", "sog")
"""Formats that ``write_parts`` writes; the file's suffix is the format."""
PART = 1 << 17
"""Gaussians that are read at a time: 30 MB."""


def write_parts(file: Path, parts: Iterable[Splats], count: int, sh_degree: int) -> None:
    """Writes Gaussians, atomically, in the format of the file's suffix.

    Args:
        file: Its folder exists.
        parts: The Gaussians; of a PLY, one part at a time is in memory.
        count: Number of Gaussians of all parts together.
        sh_degree: Their degree. A PLY has degree 0 or 3, which is what viewers read: 1 and 2 are filled with zeros.

    Raises:
        UserError: as ``write_splats``.
    """
    if format_of(file) != ".ply":
        write_splats(file, Splats.cat(list(parts)))
        return
    sh_degree = 3 if sh_degree else 0
    # The columns are those of model/splat_io.py.
    names = _names(sh_degree)
    element = PlyElement.describe(np.empty(0, [(name, "<f4") for name in names]), "vertex")
    header = PlyData([element], byte_order="<").header.replace("element vertex 0", f"element vertex {count}")
    with replacing(file) as temporary, temporary.open("wb") as stream:
        stream.write(header.encode("ascii") + b"\n")
        for splats in parts:
            for start in range(0, len(splats), PART):
                rows = torch.arange(start, min(start + PART, len(splats)), device=splats.position.device)
                stream.write(_table(with_degree(splats.subset(rows), sh_degree)).data)


def read_parts(file: Path) -> Iterator[Splats]:
    """The Gaussians of a PLY of ``write_parts``, ``PART`` at a time, on the CPU.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        vertices = PlyData.read(str(file), mmap="r")["vertex"].data
    except (OSError, PlyParseError, KeyError, ValueError) as error:
        raise UserError(f"{file}: not a readable PLY of Gaussians ({error}); export it again") from error
    # Read instead of mapped: pages of a mapped file would count as memory of the process.
    layout, count, start = vertices.dtype, len(vertices), vertices.offset
    del vertices
    names = [name for name in layout.names if name not in ("nx", "ny", "nz")]
    n_rest = sum(name.startswith("f_rest_") for name in names)
    for first in range(0, count, PART):
        rows = np.fromfile(file, layout, min(PART, count - first), offset=start + first * layout.itemsize)
        pieces = columns(rows, names).split((3, 3, n_rest, 1, 3, 4), dim=1)
        position, dc, rest, opacity, log_scale, rotation = (piece.contiguous() for piece in pieces)
        rest = rest.unflatten(1, (3, n_rest // 3)).transpose(1, 2).contiguous()
        yield Splats(position, dc.unsqueeze(1), rest, log_scale, rotation, opacity)


def _names(sh_degree: int) -> list[str]:
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(3 * ((sh_degree + 1) ** 2 - 1))),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]


@torch.no_grad()
def _table(splats: Splats) -> np.ndarray:
    rows = [
        splats.position,
        torch.zeros_like(splats.position),
        splats.sh_dc.flatten(1),
        splats.sh_rest.transpose(1, 2).flatten(1),
        splats.opacity,
        splats.log_scale,
        splats.rotation,
    ]
    return np.ascontiguousarray(torch.cat(rows, dim=1).cpu().numpy(), dtype="<f4")
