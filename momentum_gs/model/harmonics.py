"""Real spherical harmonics up to degree 3 in the order and signs of 3DGS: their values, and their rotation.

Source: utils/sh_utils.py of 3DGS (which took it from PlenOctrees).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

MAX_DEGREE = 3
_SAMPLES = 64
"""Directions on which a rotated function is fitted; degree 3 needs 7."""


def basis(degree: int, directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n k"]:
    """The (degree + 1)^2 harmonics of unit vectors, degree 0 to 3.

    A colour is 0.5 plus their sum with the coefficients; directions point from the camera to the Gaussian.
    """
    x, y, z = directions.unbind(1)
    values = [torch.full_like(x, 0.5 / math.sqrt(math.pi))]
    if degree > 0:
        c1 = math.sqrt(3 / (4 * math.pi))
        values += [-c1 * y, c1 * z, -c1 * x]
    if degree > 1:
        c2 = math.sqrt(15 / (4 * math.pi))
        values += [c2 * x * y, -c2 * y * z, math.sqrt(5 / (16 * math.pi)) * (2 * z * z - x * x - y * y)]
        values += [-c2 * x * z, c2 / 2 * (x * x - y * y)]
    if degree > 2:
        a, b = math.sqrt(35 / (32 * math.pi)), math.sqrt(21 / (32 * math.pi))
        c = math.sqrt(105 / (4 * math.pi))
        values += [-a * y * (3 * x * x - y * y), c * x * y * z, -b * y * (4 * z * z - x * x - y * y)]
        values += [math.sqrt(7 / (16 * math.pi)) * z * (2 * z * z - 3 * x * x - 3 * y * y)]
        values += [-b * x * (4 * z * z - x * x - y * y), c / 2 * z * (x * x - y * y)]
        values += [-a * x * (x * x - 3 * y * y)]
    return torch.stack(values, dim=1)


def bands(degree: int) -> list[int]:
    """The degree of each of the (degree + 1)^2 harmonics."""
    return [band for band in range(degree + 1) for _ in range(2 * band + 1)]


def rotation_of_harmonics(degree: int, rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "k k"]:
    """The matrix that rotates coefficients: ``matrix @ coefficients`` describes the function that the coefficients
    describe, rotated by ``rotation``. Float64, orthogonal, one block per degree.

    The value of the rotated function in direction d is that of the function in direction ``rotation.T @ d``. This
    holds for every direction; solving it for ``_SAMPLES`` random ones gives the matrix (Wigner's, in real form) without
    formulas that depend on order and signs.
    """
    rng = torch.Generator().manual_seed(0)
    directions = torch.randn(_SAMPLES, 3, generator=rng, dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    # (rotation.T @ d) for rows d is d @ rotation.
    here, there = basis(degree, directions), basis(degree, directions @ rotation.double())
    matrix: Tensor = torch.linalg.lstsq(here, there).solution
    return matrix
