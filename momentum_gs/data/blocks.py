"""The block grid: cells of contracted space. Only this file maps between positions, cells and block ids."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import SupportsFloat, SupportsInt

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import contract

Cuts = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]
"""Positions of the cuts along x, y and z, contracted coordinates in (0, 1), ascending."""


@dataclass(frozen=True, init=False)
class BlockGrid:
    """``dim`` = (dx, dy, dz) cells of the unit cube that ``contract(points, aabb)`` maps space into.

    Cells have equal sizes if no ``cuts`` are given. They are half-open, [low, high) on each axis, and the last one
    includes coordinate 1, so every point is in exactly one. The cell (x, y, z) is block z * dx * dy + y * dx + x
    (Momentum-GS utils/partition_utils.py). A partition may join cells to larger blocks (``PartitionTable``); in the
    grid alone every cell is a block.
    """

    aabb: tuple[float, ...]
    """xmin, ymin, zmin, xmax, ymax, zmax of the core, in the grid's frame."""
    dim: tuple[int, ...]
    cuts: Cuts | None
    """One number fewer than there are cells on each axis; None: cells of equal size."""

    def __init__(
        self, aabb: Iterable[SupportsFloat], dim: Iterable[SupportsInt], cuts: Cuts | None = None
    ) -> None:
        """Checks six numbers for ``aabb``, three for ``dim`` and the cuts.

        Raises:
            ValueError: for an empty box, a count below 1, or cuts that do not make ``dim`` cells.
        """
        object.__setattr__(self, "aabb", tuple(float(v) for v in aabb))
        object.__setattr__(self, "dim", tuple(int(d) for d in dim))
        object.__setattr__(self, "cuts", cuts)
        # The condition is written so that NaN fails it.
        if not (len(self.aabb) == 6 and all(self.aabb[i] < self.aabb[i + 3] for i in range(3))):
            raise ValueError(f"BlockGrid: aabb is {self.aabb}, expected xmin,ymin,zmin,xmax,ymax,zmax with min < max")
        if not (len(self.dim) == 3 and min(self.dim) >= 1):
            raise ValueError(f"BlockGrid: dim is {self.dim}, expected three counts of at least 1")
        if cuts is not None and not (
            [len(axis) + 1 for axis in cuts] == list(self.dim)
            and all(low < high for axis in cuts for low, high in pairwise((0.0, *axis, 1.0)))
        ):
            raise ValueError(f"BlockGrid: cuts are {cuts}, expected ascending numbers in (0, 1), {self.dim} less 1")

    @property
    def n(self) -> int:
        """Number of blocks."""
        dx, dy, dz = self.dim
        return dx * dy * dz

    def cell_of(self, points: Float[Tensor, "n 3"]) -> Int64[Tensor, "n"]:
        """Block id of every point, computed in the dtype of ``points``.

        Raises:
            UserError: for points that are NaN or infinite.
        """
        bad = int((~points.isfinite().all(dim=1)).sum())
        if bad:
            raise UserError(f"blocks: {bad} of {len(points)} points are NaN or infinite, expected finite positions")
        unit = contract(points, self.aabb)
        if self.cuts is None:
            dim = torch.tensor(self.dim, device=points.device)
            cell = (unit * dim).floor().long()
            # Clamped for round-off, and for coordinate 1, which belongs to the last cell.
            x, y, z = torch.minimum(cell.clamp_min(0), dim - 1).unbind(dim=1)
        else:
            columns = zip(unit.unbind(dim=1), self.cuts, strict=True)
            x, y, z = (torch.bucketize(column.contiguous(), column.new_tensor(axis), right=True)
                       for column, axis in columns)  # fmt: skip
        dx, dy, _ = self.dim
        return z * dx * dy + y * dx + x

    def members(self, points: Float[Tensor, "n 3"], block: int) -> Bool[Tensor, "n"]:
        """Which points are in a block; errors as ``cell`` and ``cell_of``."""
        self.cell(block)
        return self.cell_of(points) == block

    def cell(self, block: int) -> tuple[int, int, int]:
        """The cell (x, y, z) of a block id.

        Raises:
            ValueError: for an id outside [0, n).
        """
        if not 0 <= block < self.n:
            raise ValueError(f"BlockGrid: block is {block}, expected 0..{self.n - 1}")
        dx, dy, _ = self.dim
        return block % dx, block // dx % dy, block // (dx * dy)

    def cell_bounds(self, block: int) -> Float[Tensor, "6"]:
        """Low and high corner of a block's cell in contracted space, float64: xmin, ymin, zmin, xmax, ymax, zmax."""
        spans = [edges[place : place + 2] for edges, place in zip(self.edges, self.cell(block), strict=True)]
        return torch.tensor(spans, dtype=torch.float64).T.flatten()

    @property
    def edges(self) -> tuple[list[float], ...]:
        """Borders of the cells on each axis in contracted space, from 0 to 1."""
        if self.cuts is None:
            return tuple([i / count for i in range(count + 1)] for count in self.dim)
        return tuple([0.0, *axis, 1.0] for axis in self.cuts)

    def column(self, block: int, axis: int) -> list[int]:
        """The blocks whose cells lie in one line with this block's along an axis, including it, from low to high."""
        stride = (1, self.dim[0], self.dim[0] * self.dim[1])[axis]
        first = block - stride * self.cell(block)[axis]
        return [first + stride * place for place in range(self.dim[axis])]

    def beside(self, block: int) -> list[int]:
        """The blocks whose cells share a face with this block's."""
        lines = ((self.column(block, axis), place) for axis, place in enumerate(self.cell(block)))
        return [line[i] for line, place in lines for i in (place - 1, place + 1) if 0 <= i < len(line)]
