"""Nearest points, by the exact search tree of OpenCV's FLANN."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

_TREE: dict[str, bool | int | float | str] = {"algorithm": 4, "leaf_max_size": 16}
"""FLANN_INDEX_KDTREE_SINGLE, the one that is exact."""
_EXACT: dict[str, bool | int | float | str] = {"checks": -1}


def nearest(
    points: Float[Tensor, "n d"], at: Float[Tensor, "m d"], count: int
) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
    """The nearest ``count`` of ``points``, k of them, or all of fewer, near first.

    Distances are compared in single precision, from the points' mean.

    Args:
        points: At least one, in host memory, finite.
        at: Places to search from, finite.

    Returns:
        Distances, float64, and rows of ``points``.
    """
    count, middle = min(count, len(points)), points.mean(dim=0)
    if not len(at):
        return torch.zeros(0, count, dtype=torch.float64), torch.zeros(0, count, dtype=torch.long)
    tree = cv2.flann.Index(_floats(points - middle), _TREE)
    rows, squares = tree.knnSearch(_floats(at - middle), count, params=_EXACT)
    return torch.from_numpy(squares).double().sqrt(), torch.from_numpy(rows).long()


def _floats(points: Float[Tensor, "n d"]) -> NDArray[np.float32]:
    return points.contiguous().numpy().astype(np.float32)
