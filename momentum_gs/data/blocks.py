"""The block grid: equal cells of contracted space. The only home of the formula between block id and cell."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import SupportsFloat, SupportsInt

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import contract


@dataclass(frozen=True, init=False)
class BlockGrid:
    """``dim`` = (dx, dy, dz) equal cells of the unit cube that ``contract(points, aabb)`` maps space into.

    Cells are half-open, [low, high) on each axis, and the last also holds coordinate 1: every point is in exactly one.
    The cell (x, y, z) is block z * dx * dy + y * dx + x (Momentum-GS utils/partition_utils.py).
    """

    aabb: tuple[float, ...]
    """xmin, ymin, zmin, xmax, ymax, zmax of the core, in the grid's frame."""
    dim: tuple[int, ...]

    def __init__(self, aabb: Iterable[SupportsFloat], dim: Iterable[SupportsInt]) -> None:
        """Takes any six and three numbers.

        Raises:
            ValueError: for an empty box or a count below 1.
        """
        object.__setattr__(self, "aabb", tuple(float(v) for v in aabb))
        object.__setattr__(self, "dim", tuple(int(d) for d in dim))
        # Phrased so that NaN fails.
        if not (len(self.aabb) == 6 and all(self.aabb[i] < self.aabb[i + 3] for i in range(3))):
            raise ValueError(f"BlockGrid: aabb is {self.aabb}, expected xmin,ymin,zmin,xmax,ymax,zmax with min < max")
        if not (len(self.dim) == 3 and min(self.dim) >= 1):
            raise ValueError(f"BlockGrid: dim is {self.dim}, expected three counts of at least 1")

    @property
    def n(self) -> int:
        """Number of blocks."""
        dx, dy, dz = self.dim
        return dx * dy * dz

    def cell_of(self, points: Float[Tensor, "n 3"]) -> Int64[Tensor, "n"]:
        """Block id of every point, computed in the dtype of ``points``.

        Raises:
            UserError: for points that are NaN or infinite: they are nowhere.
        """
        bad = int((~points.isfinite().all(dim=1)).sum())
        if bad:
            raise UserError(f"blocks: {bad} of {len(points)} points are NaN or infinite, expected finite positions")
        dim = torch.tensor(self.dim, device=points.device)
        cell = (contract(points, self.aabb) * dim).floor().long()
        # At most round-off beyond the cube, and coordinate 1 itself, which belongs to the last cell.
        x, y, z = torch.minimum(cell.clamp_min(0), dim - 1).unbind(dim=1)
        dx, dy, _ = self.dim
        return z * dx * dy + y * dx + x

    def members(self, points: Float[Tensor, "n 3"], block: int) -> Bool[Tensor, "n"]:
        """Which points are in a block."""
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
        cell, dim = torch.tensor(self.cell(block), dtype=torch.float64), torch.tensor(self.dim)
        return torch.cat([cell / dim, (cell + 1) / dim])
