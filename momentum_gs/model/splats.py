"""Splats: Gaussians that are learned themselves, without anchors and decoder, as 3D Gaussian Splatting has them.

The explicit primitive of the baseline (``model.primitive=gaussians``). The face is that of ``Anchors``, so that what
moves, stores or crops rows handles both.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from momentum_gs.model.anchors import Anchors

SH_CONSTANT = 0.5 / math.sqrt(math.pi)
"""The spherical harmonic of degree 0: colour = 0.5 + SH_CONSTANT * sh_dc, before higher degrees."""

INITIAL_OPACITY = 0.1
"""Of a splat at a sparse point [3DGS]."""


@dataclass
class Splats:
    """N Gaussians as row-aligned tensors, all learnable."""

    position: Float[Tensor, "n 3"]
    """World, training units."""
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

    def __len__(self) -> int:
        return self.position.shape[0]

    @property
    def n_offsets(self) -> int:
        """Gaussians a row, as ``Anchors`` has it: itself."""
        return 1

    @property
    def sh_degree(self) -> int:
        """Highest degree that there are coefficients for."""
        return math.isqrt(1 + self.sh_rest.shape[1]) - 1

    @property
    def scales(self) -> Float[Tensor, "n 3"]:
        """Standard deviations in training units, positive."""
        return self.log_scale.exp()

    def rows(self) -> dict[str, Tensor]:
        """The tensors by name; not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_rows(cls, rows: Mapping[str, Tensor]) -> "Splats":
        """The inverse of ``rows``; other names in ``rows`` are left aside."""
        return cls(**{field.name: rows[field.name] for field in fields(cls)})

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
        n = len(position)
        rotation = position.new_zeros(n, 4)
        rotation[:, 0] = 1
        return cls(
            position=position,
            sh_dc=((rgb - 0.5) / SH_CONSTANT).unsqueeze(1),
            sh_rest=position.new_zeros(n, (sh_degree + 1) ** 2 - 1, 3),
            log_scale=log_scale,
            rotation=rotation,
            opacity=position.new_full((n, 1), logit(INITIAL_OPACITY)),
        )

    def as_leaves(self) -> "Splats":
        """The same values cut from any graph, as leaves that ask for a gradient."""
        return Splats(**{name: row.detach().requires_grad_() for name, row in self.rows().items()})

    def to(self, device: torch.device | str) -> "Splats":
        """Leaves on another device; rows that are there already are shared, not copied."""
        return Splats.from_rows({name: row.detach().to(device) for name, row in self.rows().items()}).as_leaves()

    def subset(self, rows: Bool[Tensor, "n"] | Int[Tensor, "m"]) -> "Splats":
        """Leaves that copy the chosen rows: by mask in their order, or by index."""
        return Splats.from_rows({name: row.detach()[rows] for name, row in self.rows().items()}).as_leaves()

    @classmethod
    def cat(cls, parts: Sequence["Splats"]) -> "Splats":
        """Leaves that hold the rows of all parts, one after another; the parts share their degree."""
        rows = [part.rows() for part in parts]
        return cls(**{name: torch.cat([row[name].detach() for row in rows]) for name in rows[0]}).as_leaves()


Model = Anchors | Splats
"""What a scene or a block is made of."""


class Harmonics(nn.Module):
    """What splats have in the place of a decoder: the degree up to which their colours are evaluated."""

    def __init__(self, degree: int) -> None:
        """``degree``: 0 to 3, at most that of the splats."""
        super().__init__()
        self.degree = degree


def logit(share: float) -> float:
    """Inverse of the sigmoid; ``share`` in (0, 1)."""
    return math.log(share / (1 - share))
