"""What is behind everything, learned: the colour of the light that meets no Gaussian, by its direction."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

DEGREE = {"constant": 0, "directional": 2}
"""Highest degree of the spherical harmonics of each kind. Two is a sky with a horizon and a bright side; more would
learn the outlines of what only a few views show."""


class Background(nn.Module):
    """RGB by direction: real spherical harmonics up to degree 0 or 2, plus 0.5. Begins grey."""

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree
        self.sh = nn.Parameter(torch.zeros((degree + 1) ** 2, 3))

    def forward(self, direction: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Colours of unit vectors from the camera into the world. Not clamped, as images are at the very end: a bound
        here would take the gradient from what lies beyond it."""
        return sh_basis(self.degree, direction) @ self.sh + 0.5


def sh_basis(degree: int, direction: Float[Tensor, "n 3"]) -> Float[Tensor, "n k"]:
    """The (degree + 1)^2 orthonormal real spherical harmonics of unit vectors, degree 0 to 2."""
    x, y, z = direction.unbind(1)
    values = [torch.full_like(x, math.sqrt(1 / (4 * math.pi)))]
    if degree > 0:
        values += [math.sqrt(3 / (4 * math.pi)) * axis for axis in (y, z, x)]
    if degree > 1:
        values += [math.sqrt(15 / (4 * math.pi)) * product for product in (x * y, y * z, x * z)]
        values += [math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1), math.sqrt(15 / (16 * math.pi)) * (x * x - y * y)]
    return torch.stack(values, dim=1)
