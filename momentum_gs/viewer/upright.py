"""The coordinates that the viewer shows: z up, a size that suits a browser, poses as quaternions.

A run with normalized coordinates is shown in them. Other runs train in their scene's own coordinates, which may lie far
from the origin, on their side, or be hundreds of units wide; these are shown in the normalized coordinates that
``data/frame.py`` finds for them. Models are always rendered in training coordinates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.frame import VIEW_DISTANCE, Axes, Frame, check_axes, normalized_frame

UP_AXES: dict[str, Axes] = {
    "x": ("y", "z", "x"), "-x": ("z", "y", "-x"), "y": ("z", "x", "y"), "-y": ("x", "z", "-y"), "z": ("x", "y", "z"),
    "-z": ("y", "x", "-z"),
}  # fmt: skip
"""Axis that points up -> axes that become x, y and z."""


@dataclass(frozen=True)
class Pose:
    """Where a camera stands in the viewer, as the browser has it: a turn from camera to world, and a place."""

    wxyz: tuple[float, float, float, float]
    position: tuple[float, float, float]


@dataclass(frozen=True)
class Upright:
    """Transform between training coordinates and those of the viewer."""

    frame: Frame = Frame()
    """From training coordinates to the viewer's."""

    def points(self, xyz: Float[Tensor, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Points of the training coordinates in those of the viewer, float64."""
        return self.frame.points(xyz.detach().cpu()).numpy()

    def training_points(self, xyz: Float[np.ndarray, "n 3"]) -> Float[Tensor, "n 3"]:
        """The inverse of ``points``."""
        return self.frame.scene_points(torch.as_tensor(np.asarray(xyz, dtype=np.float64)))

    def pose(self, camera: Camera) -> Pose:
        """The pose of a camera of the run."""
        moved = self.frame.camera(camera)
        x, y, z = moved.center.tolist()
        return Pose(quaternion(moved.rotation.T), (x, y, z))

    def camera(
        self, wxyz: Sequence[float] | np.ndarray, position: Sequence[float] | np.ndarray, fov: float, width: int,
        height: int,
    ) -> Camera:  # fmt: skip
        """The camera in training coordinates for a pose of the viewer.

        Args:
            wxyz: Camera to world.
            position: In the viewer.
            fov: Vertical opening angle, radians.
            width: Pixels.
            height: Pixels.
        """
        turned = quat_to_matrix(torch.as_tensor(np.asarray(wxyz, dtype=np.float64)))
        rotation = turned.T @ self.frame.rotation
        center = self.training_points(np.asarray(position, dtype=np.float64)[None])[0]
        focal = height / 2 / float(np.tan(fov / 2))
        return Camera("", width, height, focal, focal, width / 2, height / 2, rotation, -rotation @ center)


def quaternion(rotation: Float[Tensor, "3 3"]) -> tuple[float, float, float, float]:
    """The unit quaternion (w, x, y, z) of a rotation matrix, with w >= 0."""
    m = rotation.double()
    # The eigenvector of this matrix to its largest eigenvalue (Bar-Itzhack 2000); defined for every rotation.
    k = torch.zeros(4, 4, dtype=torch.float64)
    k[0, 0] = m.trace()
    k[1:, 1:] = m + m.T - torch.eye(3, dtype=torch.float64) * m.trace()
    k[0, 1:] = k[1:, 0] = torch.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    w, x, y, z = torch.linalg.eigh(k).eigenvectors[:, -1].tolist()
    sign = -1.0 if w < 0 else 1.0
    return sign * w, sign * x, sign * y, sign * z


def vertical_fov(camera: Camera) -> float:
    """Vertical opening angle, radians."""
    return float(2 * np.arctan(camera.height / 2 / camera.fy))


def upright_run(frame: Frame, cameras: Sequence[Camera], points: PointCloud) -> Upright:
    """The viewer's coordinates of a run.

    Args:
        frame: From the scene's coordinates to those of the run.
        cameras: All views, training coordinates.
        points: The sparse points, likewise.
    """
    if frame.normalized:
        return Upright()
    try:
        return Upright(replace(normalized_frame(cameras, points), normalized=False))
    except UserError:  # Without a point in view, there is no viewing distance; the model is shown as it is.
        return Upright()


def upright_cloud(means: Float[Tensor, "n 3"], up: str) -> Upright:
    """The viewer's coordinates of a model without cameras: its middle at the origin, most of it a few units around.

    Args:
        means: Centres of the Gaussians.
        up: The axis of ``means`` that points up, with its sign.

    Raises:
        UserError: for an unknown axis.
    """
    if up not in UP_AXES:
        raise UserError(f"view: --up is {up!r}, expected one of {', '.join(UP_AXES)}")
    check_axes(UP_AXES[up])
    sample = means.detach().cpu().double()[:: max(1, len(means) // 20_000)]
    x, y, z = sample.median(dim=0).values.tolist()
    reach = float((sample - sample.median(dim=0).values).norm(dim=1).quantile(0.8)) if len(sample) else 0.0
    return Upright(Frame((x, y, z), reach / VIEW_DISTANCE if reach > 0 else 1.0, UP_AXES[up]))
