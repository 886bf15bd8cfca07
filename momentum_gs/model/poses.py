"""Small corrections of the training images' poses (docs/poses.md).

A row of the table is the camera's motion from its given pose: a rotation (axis-angle, radians) about the camera's
centre, then a translation (training units), both in world axes. In world axes, a motion of the whole scene is nearly
the same row for all images, which ``image_table.pin`` removes; in camera axes it would differ with the heading.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.types import Camera
from momentum_gs.model.image_table import ImageTable, load_table, save_table

POSES_FILE = "poses.safetensors"
ROW_SHAPE = (6,)
"""Rotation, translation."""


@dataclass(frozen=True)
class PoseTable(ImageTable):
    """The pose corrections of a scene's training images; their mean is no motion."""

    def camera(self, camera: Camera) -> Camera:
        """The view with its corrected pose; unchanged if the table has no such image."""
        return moved(camera, self.rows[self.names.index(camera.name)]) if camera.name in self.names else camera


def moved(camera: Camera, row: Float[Tensor, "6"]) -> Camera:
    """The camera after a motion: rotation R exp([w])^T and centre c + v for a row (w, v). Zeros change no bit."""
    turn, shift = row.detach().double().cpu().split(3)
    back = torch.matrix_exp(skew(turn)).T - torch.eye(3, dtype=torch.float64)
    difference = camera.rotation @ back
    rotation = camera.rotation + difference
    # t' = -R' (c + v), computed from the difference of the rotations, so that zeros leave the translation's bits.
    return replace(
        camera, rotation=rotation, translation=camera.translation - difference @ camera.center - rotation @ shift
    )


def skew(vector: Float[Tensor, "3"]) -> Float[Tensor, "3 3"]:
    """The matrix [w] with [w] x = w cross x."""
    x, y, z = vector.unbind()
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)


def save_poses(folder: Path, table: PoseTable) -> None:
    """Writes ``poses.safetensors`` into an existing model folder: rows, flags, and the names as metadata."""
    save_table(folder / POSES_FILE, table)


def load_poses(folder: Path) -> PoseTable | None:
    """The table in a model folder, on the CPU; None for a model that was trained with the poses as given.

    Raises:
        UserError: the file is damaged.
    """
    return load_table(folder / POSES_FILE, PoseTable, [ROW_SHAPE])
