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


class PointTree:
    """Points among which nearest ones are searched. Distances are compared in single precision, from their mean."""

    def __init__(self, points: Float[Tensor, "n d"]) -> None:
        """``points``: at least one, in host memory, finite."""
        self._count, self._middle = len(points), points.mean(dim=0)
        self._tree = cv2.flann.Index(self._floats(points), _TREE)

    def nearest(self, at: Float[Tensor, "m d"], count: int) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"]]:
        """The nearest ``count`` points, k of them, or all of fewer, near first.

        Args:
            at: Places to search from, in host memory, finite.

        Returns:
            Distances, float64, and rows of the points.
        """
        count = min(count, self._count)
        if not len(at):
            return torch.zeros(0, count, dtype=torch.float64), torch.zeros(0, count, dtype=torch.long)
        rows, squares = self._tree.knnSearch(self._floats(at), count, params=_EXACT)
        return torch.from_numpy(squares).double().sqrt(), torch.from_numpy(rows).long()

    def _floats(self, places: Float[Tensor, "m d"]) -> NDArray[np.float32]:
        return np.ascontiguousarray((places - self._middle).numpy(), np.float32)
