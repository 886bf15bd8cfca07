"""What growth of anchors and densification of Gaussians have in common: what they count, draw and report."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.model.row_model import RowTable

Draw = Callable[[int, Int[Tensor, "m"]], Float[Tensor, "m"]]
"""(Level of growth, 0 where there is one; indices) -> a uniform number in [0, 1) for each index, a multiple of 2^-24
that depends on level and index alone."""

AnyStats = TypeVar("AnyStats", bound="RowStats")


@dataclass
class RowStats(RowTable, ABC):
    """What the views since the last growth said about every row of a model."""

    @classmethod
    @abstractmethod
    def zeros(cls: type[AnyStats], model: Any) -> AnyStats:
        """Nothing seen yet."""


@dataclass(frozen=True)
class GrowthReport:
    """What one growth changed."""

    grown: tuple[int, ...]
    """Anchors added, by level from coarse to fine; Gaussians cloned and split."""
    pruned: int
    refused: int
    """Rows that would have been added had there been no cap."""
