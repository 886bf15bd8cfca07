"""Splats: Gaussians that are learned themselves, without anchors and decoder, as 3D Gaussian Splatting has them.

The explicit primitive of the baseline (``model.primitive=gaussians``).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from momentum_gs.model.anchors import Anchors
from momentum_gs.model.row_model import RowModel, initial_rows

SH_CONSTANT = 0.5 / math.sqrt(math.pi)
"""The spherical harmonic of degree 0: colour = 0.5 + SH_CONSTANT * sh_dc, before higher degrees."""


@dataclass
class Splats(RowModel):
    """N Gaussians as row-aligned tensors, all learnable."""

    LEARNABLE: ClassVar[tuple[str, ...]] = ("position", "sh_dc", "sh_rest", "log_scale", "rotation", "opacity")
    NOUN: ClassVar[str] = "Gaussians"

    sh_dc: Float[Tensor, "n 1 3"]
    """Spherical harmonics of degree 0, RGB."""
    sh_rest: Float[Tensor, "n rest 3"]
    """Those of the higher degrees, (degree + 1)^2 - 1 of them."""
    log_scale: Float[Tensor, "n 3"]
    """Natural log of the standard deviations in training units."""
    rotation: Float[Tensor, "n 4"]
    """Quaternion (w, x, y, z) of any positive length; normalised where used."""
    opacity: Float[Tensor, "n 1"]
    """Logit."""

    @property
    def sh_degree(self) -> int:
        """Highest degree that there are coefficients for."""
        return math.isqrt(1 + self.sh_rest.shape[1]) - 1

    @property
    def scales(self) -> Float[Tensor, "n 3"]:
        """Standard deviations in training units, positive."""
        return self.log_scale.exp()

    @classmethod
    def fresh(
        cls, position: Float[Tensor, "n 3"], rgb: Float[Tensor, "n 3"], log_scale: Float[Tensor, "n 3"], sh_degree: int
    ) -> "Splats":
        """New splats of one colour from all sides: no rotation, opacity 0.1.

        Args:
            position: World, training units; the others have its dtype and device.
            rgb: In [0, 1].
            log_scale: Natural log of training units.
            sh_degree: 0 to 3; the coefficients above 0 are zero.
        """
        return cls(
            position=position,
            sh_dc=((rgb - 0.5) / SH_CONSTANT).unsqueeze(1),
            sh_rest=position.new_zeros(len(position), (sh_degree + 1) ** 2 - 1, 3),
            log_scale=log_scale,
            **initial_rows(position),
        )


Model = Anchors | Splats
"""What a scene or a block is made of."""


class Harmonics(nn.Module):
    """What splats have in the place of a decoder: the degree up to which their colours are evaluated."""

    def __init__(self, degree: int) -> None:
        """``degree``: 0 to 3, at most that of the splats."""
        super().__init__()
        self.degree = degree
