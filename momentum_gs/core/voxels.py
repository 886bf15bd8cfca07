"""Points to the cells of a grid, and sets of cells by sorted 64-bit keys.

Cell c of edge s holds the points nearer to c*s than to any other multiple: ``round(point / s)`` as the original does.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_MAX_KEYS = 2**63 - 1


def cells_of(points: Float[Tensor, "n 3"], size: float) -> Int[Tensor, "n 3"]:
    """Cell of every point for cells of edge ``size``, in the rounding of the points' own dtype."""
    return torch.round(points / size).long()


def cell_centers(cells: Int[Tensor, "n 3"], size: float, dtype: torch.dtype) -> Float[Tensor, "n 3"]:
    """Where the cells lie."""
    return cells.to(dtype) * size


def unique_cells(cells: Int[Tensor, "n 3"]) -> tuple[Int[Tensor, "m 3"], Int[Tensor, "n"]]:
    """The distinct cells in lexicographic order, and the place of every given one among them.

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

    Two sorts and a search, where the original compares each with each (scene/gaussian_model.py::anchor_growing).
    ``free_cells_reference`` is that compare.

    Args:
        low, high: Bounds of ``cells``, inclusive. They may be wide, but no cell may lie outside. Asked for, because to
            find them here would make a GPU wait once more for each call.

    Returns:
        Rows of ``cells`` that are free, equal cells beside each other, in lexicographic order; for each of them the
        place of its cell among the distinct free ones; and those.
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
    """Mask of the free ones among ``cells``, and the distinct free cells: in the plain way, O(N*M)."""
    free = ~(cells[:, None] == taken[None]).all(dim=2).any(dim=1)
    return free, torch.unique(cells[free], dim=0)


def _pack(parts: Sequence[Int[Tensor, "_ 3"]], low: Sequence[int], high: Sequence[int]) -> Sequence[Int[Tensor, "_"]]:
    """One int64 a cell: equal for equal cells, and ordered as the cells are lexicographically.

    The key is the cell's number in the box from ``low`` to ``high``, -1 outside. Where that box has 2^63 cells or more
    (on average 21 bits an axis: 1 km at 0.5 mm), it is the cell's rank among all of ``parts``.
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
    """Place of every cell among the distinct ones, axis by axis: a product of two ranks always fits 63 bits."""
    rank = cells.new_zeros(len(cells))
    for digit in cells.unbind(1):
        distinct, place = torch.unique(digit, return_inverse=True)
        rank = torch.unique(rank * len(distinct) + place, return_inverse=True)[1]
    return rank
