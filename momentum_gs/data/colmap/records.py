"""Records that binary and text COLMAP models share, as plain values."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from momentum_gs.core.errors import UserError
from momentum_gs.data.lens import MODELS


class Intrinsics(NamedTuple):
    """One PINHOLE camera of a model that is written; sizes, focal lengths and principal point in pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


class Pose(NamedTuple):
    """One COLMAP image without its observations."""

    name: str
    quat: Sequence[float]
    """Rotation from world to camera: w, x, y, z."""
    translation: Sequence[float]
    """Translation from world to camera."""
    camera: int
    """Id of the image's camera."""
    number: int = 0
    """Id of the image, which tracks refer to."""


def check_model(path: Path, number: int | str, model: str) -> None:
    """Raises a UserError for a camera model that is not one of ``lens.MODELS``."""
    if model not in MODELS:
        raise UserError(
            f"{path}: camera {number} has model {model}, expected one of {', '.join(MODELS)}; convert it to one of them"
        )
