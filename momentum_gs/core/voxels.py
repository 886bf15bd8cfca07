"""Points to the cells of a grid, and sets of cells by sorted 64-bit keys.

Cell c of edge s holds the points nearer to c*s than to any other multiple: ``round(point / s)`` as the original does.
"""

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
    keys, inverse = torch.unique(_pack(cells), return_inverse=True)
    unique = cells.new_empty(len(keys), 3)
    unique[inverse] = cells
    return unique, inverse


def occupied(unique: Int[Tensor, "m 3"], others: Int[Tensor, "n 3"]) -> Bool[Tensor, "m"]:
    """Which of the distinct, sorted cells ``unique`` are among ``others``.

    The others are looked up in the sorted keys: O(N log M) time and O(N) memory, where the original compares each with
    each (scene/gaussian_model.py::anchor_growing). ``occupied_reference`` is that compare.
    """
    hit = torch.zeros(len(unique), dtype=torch.bool, device=unique.device)
    if len(unique) == 0:
        return hit
    near = ((others >= unique.amin(0)) & (others <= unique.amax(0))).all(dim=1)
    others = others[near]
    keys = _pack(torch.cat([unique, others]))
    wanted, present = keys[: len(unique)], keys[len(unique) :]
    place = torch.searchsorted(wanted, present).clamp_(max=len(wanted) - 1)
    hit[place[wanted[place] == present]] = True
    return hit


def occupied_reference(unique: Int[Tensor, "m 3"], others: Int[Tensor, "n 3"]) -> Bool[Tensor, "m"]:
    """``occupied`` in the plain way, O(N*M)."""
    return (unique[:, None] == others[None]).all(dim=2).any(dim=1)


def _pack(cells: Int[Tensor, "n 3"]) -> Int[Tensor, "n"]:
    """One int64 a cell: equal for equal cells, and ordered as the cells are lexicographically.

    The key is the cell's number in the box of all given cells. Where that box has 2^63 cells or more (on average 21
    bits an axis: 1 km at 0.5 mm), coordinates are replaced by their ranks, which keeps the order and always fits.
    """
    key = torch.zeros(len(cells), dtype=torch.int64, device=cells.device)
    if len(cells) == 0:
        return key
    count = 1
    low = cells.amin(0)
    bases = (cells.amax(0) - low + 1).tolist()
    for digit, base in zip((cells - low).unbind(1), bases, strict=True):
        if count * base > _MAX_KEYS:
            key, count = _rank(key)
            digit, base = _rank(digit)
        key = key * base + digit
        count *= base
    return key


def _rank(values: Int[Tensor, "n"]) -> tuple[Int[Tensor, "n"], int]:
    """Place of every value among the distinct ones, and their number."""
    distinct, rank = torch.unique(values, return_inverse=True)
    return rank, len(distinct)
