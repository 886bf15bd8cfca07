"""Files of a run that the viewers of the 3DGS family look for: ``cameras.json`` and ``input.ply``."""

import json
from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement

from momentum_gs.core.types import PointCloud
from momentum_gs.data.scene import Scene

_VERTEX = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")] + [(name, "u1") for name in ("red", "green", "blue")]
)


def write_cameras_json(path: Path, scene: Scene) -> None:
    """Writes all views, test first, then train, as the family does (3DGS utils/camera_utils.py::camera_to_JSON).

    ``position`` and ``rotation`` (row by row) are camera to world; sizes and focal lengths are those of training;
    ``img_name`` keeps folders and extension, so that no two views share one.
    """
    views = [
        {
            "id": number,
            "img_name": camera.name,
            "width": camera.width,
            "height": camera.height,
            "position": camera.center.tolist(),
            "rotation": camera.rotation.T.tolist(),
            "fy": camera.fy,
            "fx": camera.fx,
        }
        for number, camera in enumerate([*scene.test, *scene.train])
    ]
    path.write_text(json.dumps(views))


def write_input_ply(path: Path, points: PointCloud) -> None:
    """Writes the initial points as a binary PLY: position, zero normals, 8-bit colour."""
    vertices = np.zeros(len(points), _VERTEX)
    for axis, name in enumerate(("x", "y", "z")):
        vertices[name] = points.xyz[:, axis].numpy()
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = points.rgb[:, channel].numpy()
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(path))
