"""Splats: explicit Gaussians, which are learned themselves, without anchors and decoder, as in 3D Gaussian Splatting.

They are the primitive of the baseline (``model.primitive=gaussians``).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from momentum_gs.model.anchors import Anchors
from momentum_gs.model.background import Background
from momentum_gs.model.row_model import RowModel, initial_rows

SH_CONSTANT = 0.5 / math.sqrt(math.pi)
"""The spherical harmonic of degree 0: colour = 0.5 + SH_CONSTANT * sh_dc + terms of higher degrees."""


@dataclass
class Splats(RowModel):
    """N Gaussians as row-aligned tensors, all learnable."""

    LEARNABLE: ClassVar[tuple[str, ...]] = ("position", "sh_dc", "sh_rest", "log_scale", "rotation", "opacity")
    NOUN: ClassVar[str] = "Gaussians"

    sh_dc: Float[Tensor, "n 1 3"]
    """Coefficients of the spherical harmonic of degree 0, RGB."""
    sh_rest: Float[Tensor, "n rest 3"]
    """Coefficients of the higher degrees, (degree + 1)^2 - 1 per channel."""
    log_scale: Float[Tensor, "n 3"]
    """Natural log of the standard deviations in training units."""
    rotation: Float[Tensor, "n 4"]
    """Quaternion (w, x, y, z) of any positive length; normalised where used."""
    opacity: Float[Tensor, "n 1"]
    """Logit."""

    @property
    def sh_degree(self) -> int:
        """Highest degree of the coefficients."""
        return math.isqrt(1 + self.sh_rest.shape[1]) - 1

    @property
    def scales(self) -> Float[Tensor, "n 3"]:
        """Standard deviations in training units, positive."""
        return self.log_scale.exp()

    @classmethod
    def fresh(
        cls, position: Float[Tensor, "n 3"], rgb: Float[Tensor, "n 3"], log_scale: Float[Tensor, "n 3"], sh_degree: int
    ) -> "Splats":
        """New splats whose colour does not depend on direction, without rotation and with opacity 0.1.

        Args:
            position: World, training units; new tensors have its dtype and device.
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
"""The model of a scene or a block."""


class Harmonics(nn.Module):
    """Takes the place of a decoder for splats: holds the degree up to which their colours are evaluated, and what is
    behind them."""

    def __init__(self, degree: int, background: Background | None = None) -> None:
        """
        Args:
            degree: 0 to 3, at most that of the splats.
            background: A learned one, which a student takes over from its teacher; None: there is none.
        """
        super().__init__()
        self.degree = degree
        self.background = background
