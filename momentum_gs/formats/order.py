"""The Morton order of points, in which neighbours in space are mostly neighbours in the file."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BITS = 21
"""Bits of each coordinate: three of them are the most that a signed 64-bit key holds."""


def morton_order(points: Float[Tensor, "n 3"]) -> Int[Tensor, "n"]:
    """The order of the points along the Morton (Z) curve through the cube around them."""
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.long)
    low = points.amin(dim=0)
    edge = (points.amax(dim=0) - low).amax().clamp_min(torch.finfo(points.dtype).tiny)
    cells = ((points - low) / edge * (2**_BITS - 1)).long()
    return (_spread(cells[:, 0]) << 2 | _spread(cells[:, 1]) << 1 | _spread(cells[:, 2])).argsort()


def _spread(bits: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """The 21 bits of a number, with two zero bits between neighbours."""
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        bits = (bits | bits << shift) & mask
    return bits
