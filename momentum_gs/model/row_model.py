"""Row-aligned tensors by name, the common base of anchors and explicit Gaussians."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim import Adam

from momentum_gs.core.rows import edit_rows

INITIAL_OPACITY = 0.1
"""Opacity of every new anchor or Gaussian [SGS, 3DGS]."""

AnyTable = TypeVar("AnyTable", bound="RowTable")
AnyModel = TypeVar("AnyModel", bound="RowModel")


@dataclass
class RowTable:
    """Tensors by name; subclasses declare them as fields. Block files use the same names."""

    def rows(self) -> dict[str, Tensor]:
        """The tensors by name, not copied."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_rows(cls: type[AnyTable], rows: Mapping[str, Tensor]) -> AnyTable:
        """The inverse of ``rows``; names that are no fields are ignored."""
        return cls(**{field.name: rows[field.name] for field in fields(cls)})


@dataclass
class RowModel(RowTable):
    """The model of a scene or a block: N rows, one per anchor or Gaussian."""

    LEARNABLE: ClassVar[tuple[str, ...]]
    """Names of the tensors that are optimized, each the only parameter of the optimizer group with its name."""
    NOUN: ClassVar[str]
    """Plural noun for the rows, for messages."""

    position: Float[Tensor, "n 3"]
    """World, training units."""

    def __len__(self) -> int:
        return self.position.shape[0]

    @property
    def n_offsets(self) -> int:
        """Number of Gaussians per row."""
        return 1

    def as_leaves(self: AnyModel) -> AnyModel:
        """The same values, detached and contiguous, with the learnable tensors as leaves that require a gradient."""
        rows = {name: row.detach().contiguous() for name, row in self.rows().items()}
        return type(self)(**{name: row.requires_grad_(name in self.LEARNABLE) for name, row in rows.items()})

    def to(self: AnyModel, device: torch.device | str) -> AnyModel:
        """Leaves on another device; tensors that are on it already are shared, not copied."""
        return self.from_rows({name: row.detach().to(device) for name, row in self.rows().items()}).as_leaves()

    def subset(self: AnyModel, rows: Bool[Tensor, "n"] | Int[Tensor, "m"]) -> AnyModel:
        """Leaves that copy the chosen rows: by mask in their order, or by index."""
        return self.from_rows({name: row.detach()[rows] for name, row in self.rows().items()}).as_leaves()

    @classmethod
    def cat(cls: type[AnyModel], parts: Sequence[AnyModel]) -> AnyModel:
        """Leaves with the rows of all parts, one part after the other; row shapes must agree."""
        rows = [part.rows() for part in parts]
        return cls(**{name: torch.cat([row[name].detach() for row in rows]) for name in rows[0]}).as_leaves()

    def edited(
        self: AnyModel, kept: Int[Tensor, "m"] | None, new: Mapping[str, Tensor] | None, optimizer: Adam | None
    ) -> AnyModel:
        """The rows at ``kept`` (None: all) followed by ``new`` (None: nothing), with their moments (``edit_rows``)."""
        return self.from_rows(edit_rows(self.rows(), kept, new, optimizer))


def initial_rows(position: Float[Tensor, "n 3"]) -> dict[str, Tensor]:
    """Tensors that are the same for every new row: no rotation, opacity 0.1."""
    n = len(position)
    rotation = position.new_zeros(n, 4)
    rotation[:, 0] = 1
    return {"rotation": rotation, "opacity": position.new_full((n, 1), logit(INITIAL_OPACITY))}


def logit(share: float) -> float:
    """Inverse of the sigmoid; ``share`` in (0, 1)."""
    return math.log(share / (1 - share))
