"""Anchors: the points that a decoder turns into Gaussians.

An anchor holds a place in the world, a feature, and K offsets at which it spawns Gaussians. Only the offsets, the
feature and the scales learn; positions, rotations and opacities are kept because the files of 3DGS codebases have them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEARNABLE = ("offset", "feature", "log_scale")
"""Rows that an optimizer moves; Momentum-GS freezes the position (learning rate 0) and the other two."""

INITIAL_OPACITY = 0.1
"""Of every new anchor [SGS]."""


@dataclass
class Anchors:
    """N anchors as row-aligned tensors."""

    position: Float[Tensor, "n 3"]
    """World, training units."""
    offset: Float[Tensor, "n k 3"]
    """Of the K Gaussians, in units of the anchor's first three scales. Learnable."""
    feature: Float[Tensor, "n f"]
    """Learnable."""
    log_scale: Float[Tensor, "n 6"]
    """Natural log of training units: 0-2 stretch the offsets, 3-5 bound the Gaussians' scales. Learnable."""
    rotation: Float[Tensor, "n 4"]
    """Quaternion (w, x, y, z); the identity in every model of 3DGS codebases."""
    opacity: Float[Tensor, "n 1"]
    """Logit; only files and the view test of the anchors themselves read it."""

    def __len__(self) -> int:
        return self.position.shape[0]

    @property
    def n_offsets(self) -> int:
        """K, Gaussians an anchor."""
        return self.offset.shape[1]

    @property
    def feature_dim(self) -> int:
        """F, length of a feature."""
        return self.feature.shape[1]

    @property
    def scales(self) -> Float[Tensor, "n 6"]:
        """The six scales in training units, positive."""
        return self.log_scale.exp()

    def rows(self) -> dict[str, Tensor]:
        """The tensors by name; not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_rows(cls, rows: Mapping[str, Tensor]) -> "Anchors":
        """The inverse of ``rows``; other names in ``rows`` are left aside."""
        return cls(**{field.name: rows[field.name] for field in fields(cls)})

    @classmethod
    def fresh(
        cls,
        position: Float[Tensor, "n 3"],
        feature: Float[Tensor, "n f"],
        log_scale: Float[Tensor, "n 6"],
        n_offsets: int,
    ) -> "Anchors":
        """New anchors: all offsets at the centre, no rotation, opacity 0.1."""
        n = len(position)
        rotation = position.new_zeros(n, 4)
        rotation[:, 0] = 1
        return cls(
            position=position,
            offset=position.new_zeros(n, n_offsets, 3),
            feature=feature,
            log_scale=log_scale,
            rotation=rotation,
            opacity=position.new_full((n, 1), math.log(INITIAL_OPACITY / (1 - INITIAL_OPACITY))),
        )

    def as_leaves(self) -> "Anchors":
        """The same values cut from any graph, with the learnable rows as leaves that ask for a gradient."""
        return Anchors(**{name: row.detach().requires_grad_(name in LEARNABLE) for name, row in self.rows().items()})

    def to(self, device: torch.device | str) -> "Anchors":
        """Leaves on another device; rows that are there already are shared, not copied."""
        return Anchors.from_rows({name: row.detach().to(device) for name, row in self.rows().items()}).as_leaves()

    def subset(self, rows: Bool[Tensor, "n"] | Int[Tensor, "m"]) -> "Anchors":
        """Leaves that copy the chosen rows: by mask in their order, or by index."""
        return Anchors.from_rows({name: row.detach()[rows] for name, row in self.rows().items()}).as_leaves()

    @classmethod
    def cat(cls, parts: Sequence["Anchors"]) -> "Anchors":
        """Leaves that hold the rows of all parts, one after another; the parts share K and F."""
        rows = [part.rows() for part in parts]
        return cls(**{name: torch.cat([row[name].detach() for row in rows]) for name in rows[0]}).as_leaves()
