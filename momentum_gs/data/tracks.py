"""Tracks: which images observe which sparse points. They are read only on demand, since they are most of a model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.types import PointCloud
from momentum_gs.data.colmap.binary import binary_images, binary_tracks
from momentum_gs.data.colmap.model import model_file, read_points
from momentum_gs.data.colmap.text import text_images, text_tracks


@dataclass(frozen=True)
class Tracks:
    """The sparse points of a model with the images that observe them."""

    points: PointCloud
    """In the file's order."""
    error: Float[Tensor, "p"]
    """Mean reprojection error, pixels of the images that the model was made from, float64; at or below 0: unknown."""
    length: Int64[Tensor, "p"]
    """Number of observations of each point."""
    seen: dict[str, Int64[Tensor, "m"]]
    """Image name -> rows of the points that it observes, ascending; images without observations are left out."""


def read_tracks(folder: Path) -> Tracks:
    """Reads points and tracks of the COLMAP model in a folder, binary or text.

    Raises:
        UserError: for missing, truncated or inconsistent files.
    """
    path = model_file(folder, "points3D")
    error, length, images = binary_tracks(path) if path.suffix == ".bin" else text_tracks(path)
    path = model_file(folder, "images")
    names = {pose.number: pose.name for pose in (binary_images(path) if path.suffix == ".bin" else text_images(path))}
    unknown = np.setdiff1d(images, list(names))
    if len(unknown):
        raise UserError(
            f"{path}: does not list image {unknown[0]}, which observes points of {model_file(folder, 'points3D').name}"
            "; export the model again"
        )
    observed = np.repeat(np.arange(len(length)), length)
    order = np.argsort(images, kind="stable")
    ids, starts = np.unique(images[order], return_index=True)
    parts = np.split(observed[order], starts[1:]) if len(ids) else []
    seen = {names[i]: torch.from_numpy(np.unique(part)) for i, part in zip(ids.tolist(), parts, strict=True)}
    return Tracks(read_points(folder), torch.from_numpy(error), torch.from_numpy(length), seen)
