"""Outlines of a partition's cells, for the viewer."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.geometry import uncontract
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.partition.coverage import ground_axes, ground_box
from momentum_gs.viewer.run import ViewerRun

_SAMPLES = 24
"""Points along one side of an outline: beyond the core box borders are curved."""
_EDGE = 1e-3
"""Outlines end this far from the faces of contracted space, which lie at infinity; then at the box of the scene."""
_INSET = 0.006
"""Outlines are drawn this share smaller, so that neighbours do not lie in each other."""
_MOST_POINTS = 100_000
_MARGIN = 0.05
"""Of the box around cameras and points, as a share of its size."""


@dataclass(frozen=True)
class Outline:
    """One cell of the grid, as it lies on the ground."""

    block: int
    floor: Float[np.ndarray, "p 3"]
    """Corners of a closed line on the ground, viewer coordinates."""
    ceiling: Float[np.ndarray, "p 3"]
    """The same above the model."""

    @property
    def middle(self) -> Float[np.ndarray, "3"]:
        """Where its label stands."""
        middle: np.ndarray = (self.ceiling.min(axis=0) + self.ceiling.max(axis=0)) / 2
        return middle

    @property
    def segments(self) -> Float[np.ndarray, "s 2 3"]:
        """Lines along floor and ceiling, and posts between them."""
        rings = [np.stack([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in (self.floor, self.ceiling)]
        posts = np.stack([self.floor, self.ceiling], axis=1)[:: _SAMPLES // 4]
        return np.concatenate([*rings, posts])


def outlines(run: ViewerRun) -> list[Outline]:
    """The cells of a run's partition, clipped to the box around its cameras and points; none without a partition."""
    table = run.table
    if table is None or run.points is None or not run.cameras:
        return []
    centers = table.to_grid(torch.stack([camera.center for camera in run.cameras]))
    cloud = table.to_grid(run.points.xyz.double())
    low, high = ground_box(centers, cloud)
    margin = _MARGIN * (high - low).max()
    across, along, vertical = ground_axes(table, run.cameras)
    levels = torch.quantile(cloud[:: -(-len(cloud) // _MOST_POINTS), vertical], torch.tensor([0.05, 0.98]).double())
    grid = table.grid
    found = []
    for cell in range(grid.n):
        ring = _ring(table, cell, (across, along))
        for axis in (across, along):
            ring[:, axis] = ring[:, axis].clamp(low[axis] - margin, high[axis] + margin)
        middle = (ring.amin(dim=0) + ring.amax(dim=0)) / 2
        ring = middle + (1 - _INSET) * (ring - middle)
        rings = []
        for level in levels if grid.dim[vertical] == 1 else _levels(table, cell, vertical, levels):
            ring[:, vertical] = level
            rings.append(run.upright.points(ring @ table.rotation.double()))
        block = int(table.block_of(torch.tensor([cell]))[0])
        found.append(Outline(block, *sorted(rings, key=lambda points: float(points[:, 2].mean()))))
    return found


def _ring(table: PartitionTable, cell: int, axes: tuple[int, int]) -> Float[Tensor, "p 3"]:
    """The border of a cell on the middle plane of the core box, in the grid's frame."""
    bounds = table.grid.cell_bounds(cell).view(2, 3).clamp(_EDGE, 1 - _EDGE)
    (a0, b0), (a1, b1) = (bounds[i, list(axes)].tolist() for i in (0, 1))
    steps = torch.linspace(0, 1, _SAMPLES + 1, dtype=torch.float64)[:-1]
    forth_a, forth_b = a0 + steps * (a1 - a0), b0 + steps * (b1 - b0)
    back_a, back_b = a1 + steps * (a0 - a1), b1 + steps * (b0 - b1)
    unit = torch.full((4 * _SAMPLES, 3), 0.5, dtype=torch.float64)
    unit[:, axes[0]] = torch.cat([forth_a, torch.full_like(steps, a1), back_a, torch.full_like(steps, a0)])
    unit[:, axes[1]] = torch.cat([torch.full_like(steps, b0), forth_b, torch.full_like(steps, b1), back_b])
    return uncontract(unit, table.aabb)


def _levels(table: PartitionTable, cell: int, vertical: int, bounds: Float[Tensor, "2"]) -> Float[Tensor, "2"]:
    """Floor and ceiling of a cell, where several lie above each other."""
    unit = torch.full((2, 3), 0.5, dtype=torch.float64)
    unit[:, vertical] = table.grid.cell_bounds(cell).view(2, 3)[:, vertical].clamp(_EDGE, 1 - _EDGE)
    return uncontract(unit, table.aabb)[:, vertical].clamp(bounds[0], bounds[1])
