"""Tables of float32 numbers as the vertices of a PLY file, for anchors and explicit Gaussians."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.lib.recfunctions import structured_to_unstructured
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing


def write_vertices(path: Path, names: Sequence[str], table: Float[Tensor, "n p"]) -> None:
    """Writes, atomically, a binary PLY with one vertex per row and one property per column of ``table``."""
    layout = np.dtype([(name, "<f4") for name in names])
    vertices = np.ascontiguousarray(table.detach().cpu().numpy(), dtype="<f4").view(layout).reshape(-1)
    with replacing(path) as temporary:
        PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(temporary))


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
        raise UserError(f"{path}: not a readable PLY of {kind} ({error}); write it again") from error
    return vertices


def number_names(vertices: np.ndarray) -> set[str]:
    """Names of the properties that hold a single number."""
    return {name for name in vertices.dtype.names or () if vertices.dtype[name].kind in "fiu"}


def columns(vertices: np.ndarray, names: Sequence[str]) -> Float[Tensor, "n p"]:
    """The named properties as a float32 table; a copy."""
    return torch.from_numpy(structured_to_unstructured(vertices[list(names)], dtype=np.float32, copy=True))
