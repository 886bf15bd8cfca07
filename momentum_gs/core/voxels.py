"""Cells of a voxel grid, and sets of cells as sorted 64-bit keys.

Cell c of edge s holds the points nearest to c*s: ``round(point / s)``, as in Scaffold-GS.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_MAX_KEYS = 2**63 - 1


def cells_of(points: Float[Tensor, "n 3"], size: float) -> Int[Tensor, "n 3"]:
    """Cell of every point, for cells of edge ``size``; computed in the points' dtype."""
    return torch.round(points / size).long()


def cell_centers(cells: Int[Tensor, "n 3"], size: float, dtype: torch.dtype) -> Float[Tensor, "n 3"]:
    """Centres of the cells."""
    return cells.to(dtype) * size


def unique_cells(cells: Int[Tensor, "n 3"]) -> tuple[Int[Tensor, "m 3"], Int[Tensor, "n"]]:
    """The distinct cells in lexicographic order, and the index of every given cell among them.

    The same as ``torch.unique(cells, dim=0, return_inverse=True)``.
    """
    if len(cells) == 0:
        return cells, cells.new_empty(0)
    (keys,) = _pack([cells], cells.amin(0).tolist(), cells.amax(0).tolist())
    keys, inverse = torch.unique(keys, return_inverse=True)
    unique = cells.new_empty(len(keys), 3)
    unique[inverse] = cells
    return unique, inverse


def free_cells(
    cells: Int[Tensor, "n 3"], taken: Int[Tensor, "m 3"], low: Sequence[int], high: Sequence[int]
) -> tuple[Int[Tensor, "f"], Int[Tensor, "f"], Int[Tensor, "u 3"]]:
    """Which of ``cells`` are not among ``taken``.

    Two sorts and a search; the original compares all pairs (Scaffold-GS scene/gaussian_model.py::anchor_growing), as
    ``free_cells_reference`` does.

    Args:
        low, high: Bounds of ``cells``, inclusive. They may be wider than needed, but no cell may lie outside. The
            caller gives them, because finding them here would synchronize with the GPU once more per call.

    Returns:
        Row numbers of the free ``cells`` in lexicographic order, so that equal cells are adjacent; for each of them the
        index of its cell among the distinct free cells; and the distinct free cells.
    """
    keys, present = _pack([cells, taken], low, high)
    keys, order = keys.sort()
    present = present.sort().values
    is_free = torch.searchsorted(present, keys) == torch.searchsorted(present, keys, right=True)
    free = is_free.nonzero().squeeze(1)
    keys, order = keys[free], order[free]
    first = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=first[1:])
    return order, first.cumsum(0) - 1, cells[order[first]]


def free_cells_reference(
    cells: Int[Tensor, "n 3"], taken: Int[Tensor, "m 3"]
) -> tuple[Bool[Tensor, "n"], Int[Tensor, "u 3"]]:
    """Mask of the free ones among ``cells``, and the distinct free cells, by comparing all pairs, O(N*M)."""
    free = ~(cells[:, None] == taken[None]).all(dim=2).any(dim=1)
    return free, torch.unique(cells[free], dim=0)


def _pack(parts: Sequence[Int[Tensor, "_ 3"]], low: Sequence[int], high: Sequence[int]) -> Sequence[Int[Tensor, "_"]]:
    """One int64 key per cell: equal for equal cells, and in the lexicographic order of the cells.

    The key is the cell's number in the box from ``low`` to ``high``, or -1 outside. If that box has 2^63 cells or more
    (on average 21 bits per axis: 1 km at 0.5 mm), the key is the cell's rank among the cells of all ``parts``.
    """
    bases = [last - first + 1 for first, last in zip(low, high, strict=True)]
    if math.prod(bases) > _MAX_KEYS:
        return _rank(torch.cat(list(parts))).split([len(part) for part in parts])
    keys = []
    for cells in parts:
        key = cells.new_zeros(len(cells))
        inside = torch.ones_like(key, dtype=torch.bool)
        for digit, first, last, base in zip(cells.unbind(1), low, high, bases, strict=True):
            inside &= (digit >= first) & (digit <= last)
            key = key * base + (digit - first)
        keys.append(key.masked_fill_(~inside, -1))
    return keys


def _rank(cells: Int[Tensor, "n 3"]) -> Int[Tensor, "n"]:
    """Rank of every cell among the distinct ones, found axis by axis: a product of two ranks always fits 63 bits."""
    rank = cells.new_zeros(len(cells))
    for digit in cells.unbind(1):
        distinct, place = torch.unique(digit, return_inverse=True)
        rank = torch.unique(rank * len(distinct) + place, return_inverse=True)[1]
    return rank


_MORTON_BITS = 20
"""Per axis; three of them fit into 63 bits."""


def morton(points: Float[Tensor, "n 3"], shift: Float[Tensor, "3"]) -> Int[Tensor, "n"]:
    """Places of points on a space-filling curve: points that are close on it are close in space.

    The converse does not hold at the borders of its cells, which ``shift`` moves: in [0, 1), as a share of the longest
    side of the points' box.
    """
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.long, device=points.device)
    low = points.amin(dim=0)
    # Twice the longest side, so that shifted points stay on the curve.
    side = 2 * (points.amax(dim=0) - low).max().clamp_min(torch.finfo(points.dtype).tiny)
    cells = (((points - low) / side + shift.to(points) / 2) * 2**_MORTON_BITS).long().clamp_(0, 2**_MORTON_BITS - 1)
    return interleave(cells)


def interleave(cells: Int[Tensor, "n 3"]) -> Int[Tensor, "n"]:
    """The places of cells on the Morton curve: their bits interleaved. Coordinates are in [0, 2^21)."""
    x, y, z = (_spread(axis) for axis in cells.unbind(dim=1))
    return x | y << 1 | z << 2


def deinterleave(places: Int[Tensor, "n"]) -> Int[Tensor, "n 3"]:
    """The inverse of ``interleave``."""
    return torch.stack([_gather(places >> axis) for axis in range(3)], dim=1)


def _spread(bits: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Two zero bits between every two of the lowest 21 bits."""
    for shift, mask in (
        (32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F), (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):  # fmt: skip
        bits = (bits | bits << shift) & mask
    return bits


def _gather(bits: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Every third bit, the inverse of ``_spread``."""
    bits = bits & 0x1249249249249249
    for shift, mask in (
        (2, 0x10C30C30C30C30C3), (4, 0x100F00F00F00F00F), (8, 0x1F0000FF0000FF), (16, 0x1F00000000FFFF), (32, 0x1FFFFF)
    ):  # fmt: skip
        bits = (bits ^ bits >> shift) & mask
    return bits
