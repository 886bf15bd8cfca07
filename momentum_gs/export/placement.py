"""Moves Gaussians from training coordinates to those of an exported file, and back."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.data.frame import normalized_frame
from momentum_gs.data.scene import Scene
from momentum_gs.model.harmonics import rotation_of_harmonics
from momentum_gs.model.splats import Splats

FAR = 1024.0
"""Training units from the origin up to which files have the scene's origin. Beyond, float32 would move a Gaussian by
up to 3e-5 units, which is a tenth of the size of the smallest ones of a scene seen from 5 units away at 2000 pixels."""
_Y_UP = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))
"""Rotation after which what pointed along z points along y."""


@dataclass(frozen=True)
class Placement:
    """A file's coordinates: ``unit * rotation @ x + shift`` for x in training coordinates."""

    rotation: Float[Tensor, "3 3"]
    """Float64; no reflection."""
    unit: float
    """The file's unit is that of the scene: this many of them are one training unit."""
    shift: Float[Tensor, "3"]
    """Float64, the file's unit."""
    to_scene: Float[Tensor, "4 4"]
    """From the file's coordinates to the scene's, for column vectors; float64."""

    def placed(self, splats: Splats) -> Splats:
        """Gaussians in training coordinates -> in the file's; positions, sizes, rotations and harmonics."""
        turn, shift = (values.to(splats.position.device) for values in (self.rotation, self.shift))
        position = self.unit * splats.position.double() @ turn.T + shift
        return self._turned(splats, position, self.rotation, math.log(self.unit))

    def back(self, splats: Splats) -> Splats:
        """The inverse of ``placed``, up to the rounding of float32."""
        turn, shift = (values.to(splats.position.device) for values in (self.rotation, self.shift))
        position = (splats.position.double() - shift) @ turn / self.unit
        return self._turned(splats, position, self.rotation.T, -math.log(self.unit))

    def record(self) -> dict[str, Any]:
        """The coordinates as JSON values."""
        return {
            "to_scene": self.to_scene.tolist(),
            "about": "to_scene @ [x, y, z, 1] are the coordinates of the scene's files for x, y, z of this file",
            "training_unit": self.unit,
        }

    @torch.no_grad()
    def _turned(self, splats: Splats, position: Tensor, rotation: Tensor, log_unit: float) -> Splats:
        sh = rotation_of_harmonics(splats.sh_degree, rotation)[1:, 1:].to(splats.sh_rest)
        return Splats(
            position=position.to(splats.position),
            sh_dc=splats.sh_dc,
            sh_rest=torch.einsum("ij,njc->nic", sh, splats.sh_rest),
            log_scale=splats.log_scale + log_unit,
            rotation=splats.rotation @ _left(_quaternion(rotation)).T.to(splats.rotation),
            opacity=splats.opacity,
        ).as_leaves()


def placement(scene: Scene, *, y_up: bool = False) -> Placement:
    """The coordinates of an exported file: those of the scene's files, or these rotated.

    Args:
        scene: The scene with its frame.
        y_up: Rotate about the origin so that up is y, as web viewers have it. Up is measured from cameras and points
            (``normalized_frame``) and is an axis of the scene.

    Raises:
        UserError: with ``y_up``, if no camera has a point in view.
    """
    frame = scene.frame
    from_scene = torch.eye(3, dtype=torch.float64)
    if y_up:
        upright = normalized_frame([*scene.train, *scene.test], scene.points).rotation
        from_scene = torch.tensor(_Y_UP, dtype=torch.float64) @ upright @ frame.rotation
    offset = torch.tensor(frame.offset, dtype=torch.float64)
    is_far = float(offset.norm()) > FAR * frame.unit
    to_scene = torch.eye(4, dtype=torch.float64)
    to_scene[:3, :3] = from_scene.T
    if is_far:
        to_scene[:3, 3] = offset
    shift = torch.zeros(3, dtype=torch.float64) if is_far else from_scene @ offset
    return Placement(from_scene @ frame.rotation.T, frame.unit, shift, to_scene)


def _quaternion(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "4"]:
    """The quaternion (w, x, y, z) of a rotation matrix, float64.

    It is the eigenvector of the largest eigenvalue of a symmetric matrix (Bar-Itzhack, J. Guidance 23(6), 2000).
    """
    m = rotation.double()
    matrix = torch.zeros(4, 4, dtype=torch.float64)
    matrix[0, 0] = m.trace()
    matrix[0, 1:] = matrix[1:, 0] = torch.stack([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    matrix[1:, 1:] = m + m.T - m.trace() * torch.eye(3, dtype=torch.float64)
    vector: Tensor = torch.linalg.eigh(matrix).eigenvectors[:, -1]
    return vector


def _left(quaternion: Float[Tensor, "4"]) -> Float[Tensor, "4 4"]:
    """The matrix of q -> quaternion * q."""
    w, x, y, z = quaternion.tolist()
    return torch.tensor([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]], dtype=torch.float64)
