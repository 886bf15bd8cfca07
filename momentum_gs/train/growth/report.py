"""Types shared by growth of anchors and densification of splats: statistics, random draws, reports."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.model.row_model import RowTable

Draw = Callable[[int, Int[Tensor, "m"]], Float[Tensor, "m"]]
"""(Level of growth, 0 for splats; indices) -> a uniform random number in [0, 1) for each index, a multiple of 2^-24
that depends only on level and index."""

AnyStats = TypeVar("AnyStats", bound="RowStats")


@dataclass
class RowStats(RowTable, ABC):
    """Statistics of every row of a model over the views since the last growth."""

    @classmethod
    @abstractmethod
    def zeros(cls: type[AnyStats], model: Any) -> AnyStats:
        """Statistics of a model that no view has been counted for."""


@dataclass(frozen=True)
class GrowthReport:
    """What one growth changed."""

    grown: tuple[int, ...]
    """Anchors added at each level, coarse to fine; for splats: number cloned, number split."""
    pruned: int
    """Rows removed; a splat that was split does not count."""
    refused: int
    """Rows that would have been added without the cap."""
