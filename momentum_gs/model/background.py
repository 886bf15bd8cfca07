"""The learned background: what a ray shows where no Gaussian covers it, as a function of its direction."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

DEGREE = {"constant": 0, "directional": 2}
"""Degree of the spherical harmonics of each kind. Degree 2 suffices for a sky with a horizon and a bright side; higher
degrees would learn the shapes of objects that only a few views show."""

_SH0 = math.sqrt(1 / (4 * math.pi))
"""The harmonic of degree 0."""


class Background(nn.Module):
    """RGB by direction: real spherical harmonics up to degree 0, 1 or 2, plus 0.5. Initially grey."""

    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree
        self.sh = nn.Parameter(torch.zeros((degree + 1) ** 2, 3))

    @property
    def constant(self) -> Float[Tensor, "3"] | None:
        """The one colour of all directions, where the degree is 0."""
        return self.sh[0] * _SH0 + 0.5 if self.degree == 0 else None

    def forward(self, direction: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Colours for unit vectors from the camera into the world. Not clamped, since clamping would zero the gradient
        of colours beyond the bounds; images are clamped only when they are written."""
        return sh_basis(self.degree, direction) @ self.sh + 0.5


def sh_basis(degree: int, direction: Float[Tensor, "n 3"]) -> Float[Tensor, "n k"]:
    """The (degree + 1)^2 orthonormal real spherical harmonics of unit vectors, degree 0 to 2."""
    x, y, z = direction.unbind(1)
    values = [torch.full_like(x, _SH0)]
    if degree > 0:
        values += [math.sqrt(3 / (4 * math.pi)) * axis for axis in (y, z, x)]
    if degree > 1:
        values += [math.sqrt(15 / (4 * math.pi)) * product for product in (x * y, y * z, x * z)]
        values += [math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1), math.sqrt(15 / (16 * math.pi)) * (x * x - y * y)]
    return torch.stack(values, dim=1)
