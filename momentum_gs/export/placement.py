"""Moves Gaussians from training coordinates to those of an exported file, and back."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.data.frame import normalized_frame
from momentum_gs.data.scene import Scene
from momentum_gs.model.similarity import transformed
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
        return transformed(splats, position, self.rotation, self.unit)

    def back(self, splats: Splats) -> Splats:
        """The inverse of ``placed``, up to the rounding of float32."""
        turn, shift = (values.to(splats.position.device) for values in (self.rotation, self.shift))
        position = (splats.position.double() - shift) @ turn / self.unit
        return transformed(splats, position, self.rotation.T, 1 / self.unit)

    def record(self) -> dict[str, Any]:
        """The coordinates as JSON values."""
        return {
            "to_scene": self.to_scene.tolist(),
            "about": "to_scene @ [x, y, z, 1] are the coordinates of the scene's files for x, y, z of this file",
            "training_unit": self.unit,
        }


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


def georeference(scene: Scene) -> dict[str, Any]:
    """The place on the Earth and the unit that ``momentum-gs prepare`` recorded.

    Raises:
        UserError: it recorded none.
    """
    path = scene.path / "scene.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"export: cannot read the georeference in {path} ({error}); leave out --georeference"
        ) from error
    if not isinstance(record, dict) or not record.get("georeference"):
        raise UserError(
            f"{path}: no georeference, expected one from GPS positions of the images; leave out --georeference"
        )
    return {"origin": record["georeference"], "unit_metres": record.get("unit_metres"), "up": record.get("up")}
