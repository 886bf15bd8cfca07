"""What both forms of a COLMAP model hold, as plain values."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from momentum_gs.core.errors import UserError
from momentum_gs.data.lens import MODELS


class Intrinsics(NamedTuple):
    """What one COLMAP camera of a written model holds."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


class Pose(NamedTuple):
    """What one COLMAP image holds, its observations left aside."""

    name: str
    quat: Sequence[float]
    """Rotation from world to camera: w, x, y, z."""
    translation: Sequence[float]
    """From world to camera."""
    camera: int
    """Id of its camera."""
    number: int = 0
    """The image's own id, which tracks name."""


def check_model(path: Path, number: int | str, model: str) -> None:
    """Raises a UserError for a camera model that is not one of ``lens.MODELS``."""
    if model not in MODELS:
        raise UserError(
            f"{path}: camera {number} has model {model}, expected one of {', '.join(MODELS)}; convert it to one of them"
        )
