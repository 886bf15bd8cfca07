"""Row-aligned tensors by name, and models made of them: what anchors and explicit Gaussians have in common."""

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
"""Of every new row [SGS, 3DGS]."""

AnyTable = TypeVar("AnyTable", bound="RowTable")
AnyModel = TypeVar("AnyModel", bound="RowModel")


@dataclass
class RowTable:
    """Tensors by name; subclasses declare them as fields. Files keep the names."""

    def rows(self) -> dict[str, Tensor]:
        """The tensors by name; not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_rows(cls: type[AnyTable], rows: Mapping[str, Tensor]) -> AnyTable:
        """The inverse of ``rows``; other names in ``rows`` are left aside."""
        return cls(**{field.name: rows[field.name] for field in fields(cls)})


@dataclass
class RowModel(RowTable):
    """What a scene or a block is made of: N rows, one for each anchor or Gaussian."""

    LEARNABLE: ClassVar[tuple[str, ...]]
    """Rows that an optimizer moves, each the only parameter of the group of its name."""
    NOUN: ClassVar[str]
    """What the rows are called in messages, in the plural."""

    position: Float[Tensor, "n 3"]
    """World, training units."""

    def __len__(self) -> int:
        return self.position.shape[0]

    @property
    def n_offsets(self) -> int:
        """Gaussians that a row stands for."""
        return 1

    def as_leaves(self: AnyModel) -> AnyModel:
        """The same values cut from any graph, with the learnable rows as leaves that ask for a gradient."""
        return type(self)(
            **{name: row.detach().requires_grad_(name in self.LEARNABLE) for name, row in self.rows().items()}
        )

    def to(self: AnyModel, device: torch.device | str) -> AnyModel:
        """Leaves on another device; rows that are there already are shared, not copied."""
        return self.from_rows({name: row.detach().to(device) for name, row in self.rows().items()}).as_leaves()

    def subset(self: AnyModel, rows: Bool[Tensor, "n"] | Int[Tensor, "m"]) -> AnyModel:
        """Leaves that copy the chosen rows: by mask in their order, or by index."""
        return self.from_rows({name: row.detach()[rows] for name, row in self.rows().items()}).as_leaves()

    @classmethod
    def cat(cls: type[AnyModel], parts: Sequence[AnyModel]) -> AnyModel:
        """Leaves that hold the rows of all parts, one after another; the parts share the shape of a row."""
        rows = [part.rows() for part in parts]
        return cls(**{name: torch.cat([row[name].detach() for row in rows]) for name in rows[0]}).as_leaves()

    def edited(
        self: AnyModel, kept: Int[Tensor, "m"] | None, new: Mapping[str, Tensor] | None, optimizer: Adam | None
    ) -> AnyModel:
        """The rows at ``kept`` (None: all) followed by ``new`` (None: nothing), with their moments (``edit_rows``)."""
        return self.from_rows(edit_rows(self.rows(), kept, new, optimizer))


def initial_rows(position: Float[Tensor, "n 3"]) -> dict[str, Tensor]:
    """What every new row has: no rotation, opacity 0.1."""
    n = len(position)
    rotation = position.new_zeros(n, 4)
    rotation[:, 0] = 1
    return {"rotation": rotation, "opacity": position.new_full((n, 1), logit(INITIAL_OPACITY))}


def logit(share: float) -> float:
    """Inverse of the sigmoid; ``share`` in (0, 1)."""
    return math.log(share / (1 - share))
