"""Anchors: the points that a decoder turns into Gaussians.

An anchor has a position, a feature, and K offsets at which it spawns Gaussians. Only the offsets, the feature and the
scales are learned; rotations and opacities are kept because the files of 3DGS codebases have them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from momentum_gs.model.row_model import RowModel, initial_rows


@dataclass
class Anchors(RowModel):
    """N anchors as row-aligned tensors."""

    # Momentum-GS does not train positions (learning rate 0), rotations and opacities.
    LEARNABLE: ClassVar[tuple[str, ...]] = ("offset", "feature", "log_scale")
    NOUN: ClassVar[str] = "anchors"

    offset: Float[Tensor, "n k 3"]
    """Offsets of the K Gaussians, in units of the anchor's first three scales. Learnable."""
    feature: Float[Tensor, "n f"]
    """Learnable."""
    log_scale: Float[Tensor, "n 6"]
    """Natural log of training units: 0-2 stretch the offsets, 3-5 bound the Gaussians' scales. Learnable."""
    rotation: Float[Tensor, "n 4"]
    """Quaternion (w, x, y, z); the identity in every model of 3DGS codebases."""
    opacity: Float[Tensor, "n 1"]
    """Logit; used only in files and in the visibility test of the anchors themselves."""

    @property
    def n_offsets(self) -> int:
        """K, the number of Gaussians per anchor."""
        return self.offset.shape[1]

    @property
    def feature_dim(self) -> int:
        """F, the length of a feature."""
        return self.feature.shape[1]

    @property
    def scales(self) -> Float[Tensor, "n 6"]:
        """The six scales in training units, positive."""
        return self.log_scale.exp()

    @property
    def reach(self) -> Float[Tensor, "n 3"]:
        """The first three scales, contiguous: how far the offsets are stretched, training units."""
        return self.log_scale[:, :3].contiguous().exp()

    @classmethod
    def fresh(
        cls,
        position: Float[Tensor, "n 3"],
        feature: Float[Tensor, "n f"],
        log_scale: Float[Tensor, "n 6"],
        n_offsets: int,
    ) -> "Anchors":
        """New anchors with zero offsets, no rotation and opacity 0.1."""
        return cls(
            position=position,
            offset=position.new_zeros(len(position), n_offsets, 3),
            feature=feature,
            log_scale=log_scale,
            **initial_rows(position),
        )


@dataclass
class FixedAnchors(Anchors):
    """Anchors that nothing changes, so that what every view needs of them is computed once."""

    @cached_property
    def reach(self) -> Float[Tensor, "n 3"]:
        """As of other anchors."""
        return super().reach
