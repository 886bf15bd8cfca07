"""Files of a run that the viewers of 3DGS codebases read: ``cameras.json`` and ``input.ply``."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plyfile import PlyData, PlyElement

from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.scene import Scene

_VERTEX = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")] + [(name, "u1") for name in ("red", "green", "blue")]
)


def write_cameras_json(path: Path, scene: Scene) -> None:
    """Writes all views, held-out views first, as 3DGS does (utils/camera_utils.py::camera_to_JSON).

    ``position`` and ``rotation`` (row by row) are camera to world; sizes and focal lengths are those of training;
    ``img_name`` includes folders and suffix, so that it is unique.
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


def read_cameras_json(path: Path) -> list[Camera]:
    """Reads a file of ``write_cameras_json``. It has no principal point, so that is set to the image's centre.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return [_camera(view) for view in json.loads(path.read_text())]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); train the run again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: holds no cameras ({type(error).__name__}: {error}); train the run again") from error


def _camera(view: dict[str, Any]) -> Camera:
    rotation = torch.tensor(view["rotation"], dtype=torch.float64).T
    position = torch.tensor(view["position"], dtype=torch.float64)
    if rotation.shape != (3, 3) or position.shape != (3,):
        raise ValueError("a pose is no 3x3 rotation with a position")
    width, height = view["width"], view["height"]
    return Camera(
        view["img_name"], width, height, view["fx"], view["fy"], width / 2, height / 2, rotation, -rotation @ position
    )


def write_input_ply(path: Path, points: PointCloud) -> None:
    """Writes the initial points as a binary PLY: position, zero normals, 8-bit colour."""
    vertices = np.zeros(len(points), _VERTEX)
    for axis, name in enumerate(("x", "y", "z")):
        vertices[name] = points.xyz[:, axis].numpy()
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = points.rgb[:, channel].numpy()
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(path))
