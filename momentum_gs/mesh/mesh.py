"""A triangle mesh, and its files: binary PLY and glTF (``.glb``)."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import Float, Int, UInt8

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing

_SUFFIXES = (".ply", ".glb")


@dataclass(frozen=True)
class Mesh:
    """Triangles with a colour at every vertex."""

    vertices: Float[np.ndarray, "v 3"]
    """float64."""
    faces: Int[np.ndarray, "f 3"]
    """Vertices of each triangle, counter-clockwise from outside."""
    colors: UInt8[np.ndarray, "v 3"]
    """RGB."""

    def keep(self, faces: Int[np.ndarray, "k 3"]) -> "Mesh":
        """These triangles with the vertices that they need, which keep their order."""
        used, numbers = np.unique(faces, return_inverse=True)
        return Mesh(self.vertices[used], numbers.reshape(faces.shape), self.colors[used])


def extra(name: str, what: str) -> ModuleType:
    """A module of the extra ``mesh``, which ``what`` needs.

    Raises:
        UserError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{what}: the package {name.partition('.')[0]} is not installed, expected it for meshes; pip install "
            "'momentum-gs[mesh]'"
        ) from error


def check_mesh_name(path: Path) -> None:
    """Raises UserError for a file name that ``write_mesh`` does not know."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"mesh: {path} ends in {path.suffix!r}, expected .ply or .glb; choose another name")


def write_mesh(path: Path, mesh: Mesh) -> None:
    """Writes ``.ply`` (float64 positions, which keep their precision far from the origin) or ``.glb`` (float32).

    Raises:
        UserError: for another suffix, or without the package that writes ``.glb``.
    """
    check_mesh_name(path)
    with replacing(path) as temporary:
        if path.suffix.lower() == ".glb":
            trimesh = extra("trimesh", "mesh")
            shape = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=mesh.colors, process=False)
            temporary.write_bytes(shape.export(file_type="glb"))
            return
        row = [("xyz", "<f8", 3), ("rgb", "u1", 3)]
        vertices = np.empty(len(mesh.vertices), dtype=row)
        vertices["xyz"], vertices["rgb"] = mesh.vertices, mesh.colors
        faces = np.empty(len(mesh.faces), dtype=[("count", "u1"), ("vertices", "<i4", 3)])
        faces["count"], faces["vertices"] = 3, mesh.faces
        names = [f"property double {c}" for c in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
        header = [
            "ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}", *names,
            f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", "",
        ]  # fmt: skip
        with temporary.open("wb") as file:
            file.write("\n".join(header).encode())
            vertices.tofile(file)
            faces.tofile(file)


def read_mesh(path: Path) -> Mesh:
    """Reads a mesh of any program as triangles, in a format that trimesh knows.

    Raises:
        UserError: the file is missing, damaged or holds no triangle, or trimesh is not installed.
    """
    trimesh = extra("trimesh", "mesh")
    if not path.is_file():
        raise UserError(f"mesh: {path} is missing, expected a mesh; run 'momentum-gs mesh OUT' first")
    try:
        found = trimesh.load_mesh(path, process=False)
        faces = np.asarray(found.faces, dtype=np.int64).reshape(-1, 3)
        vertices = np.asarray(found.vertices, dtype=np.float64)
        look = found.visual.to_color() if hasattr(found.visual, "to_color") else found.visual
        rgb = np.asarray(look.vertex_colors)[:, :3].astype(np.uint8)
    # What a damaged file raises depends on its format.
    except Exception as error:
        raise UserError(f"mesh: {path} cannot be read ({error}), expected a triangle mesh; write it again") from error
    if not len(faces):
        raise UserError(f"mesh: {path} holds no triangles, expected a mesh; a point cloud is given with --reference")
    return Mesh(vertices, faces, rgb if len(rgb) == len(vertices) else np.full(vertices.shape, 128, np.uint8))
