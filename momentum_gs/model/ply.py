"""Tables of float32 numbers as the vertices of a PLY file, for anchors and explicit Gaussians."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib.recfunctions import structured_to_unstructured
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing

CHUNK = 1 << 16
"""Rows that are converted at a time, so that memory does not grow with the number of rows: 16 MB of 62 numbers each."""


def write_vertices(path: Path, names: Sequence[str], tables: Iterable[Float[Tensor, "n p"]], count: int) -> None:
    """Writes, atomically, a binary PLY with one vertex per row and one property per column.

    Args:
        names: Property of each column.
        tables: The rows, in any number of parts, of which one at a time is in memory (``chunks``).
        count: Number of rows of all parts together.
    """
    element = PlyElement.describe(np.empty(0, [(name, "<f4") for name in names]), "vertex")
    header = PlyData([element], byte_order="<").header.replace("element vertex 0", f"element vertex {count}")
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header.encode("ascii") + b"\n")
        for table in tables:
            file.write(np.ascontiguousarray(table.detach().cpu().numpy(), dtype="<f4").data)


def chunks(count: int) -> Iterator[slice]:
    """Consecutive slices of at most ``CHUNK`` rows that together cover ``count`` rows."""
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


def read_vertices(path: Path, kind: str) -> np.ndarray:
    """The vertices as a structured array.

    Args:
        kind: What the vertices are expected to be, for messages.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a PLY of {kind}; train and merge first")
    try:
        vertices: np.ndarray = PlyData.read(str(path))["vertex"].data
    except (PlyParseError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not a readable PLY ({error}), expected a complete one of {kind}; write it again"
        ) from error
    return vertices


def number_names(vertices: np.ndarray) -> set[str]:
    """Names of the properties that hold a single number."""
    return {name for name in vertices.dtype.names or () if vertices.dtype[name].kind in "fiu"}


def columns(vertices: np.ndarray, names: Sequence[str]) -> Float[Tensor, "n p"]:
    """The named properties as a float32 table; a copy."""
    return torch.from_numpy(structured_to_unstructured(vertices[list(names)], dtype=np.float32, copy=True))
