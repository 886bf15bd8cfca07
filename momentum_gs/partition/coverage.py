"""Statistics of each block's cameras and points, from the partition alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from momentum_gs.core.geometry import in_view
from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable

SEEN_BY = 3
"""Number of views from which a point counts as well seen: two determine its depth, a third one checks it."""
MAX_POINTS = 20_000
"""Size of the sample of points that is projected into the views: the share of a block with 200 of them is accurate to
4 %."""
RASTER = 300
"""Samples along a side of the ground: the area of a cell a tenth as wide as the ground is accurate to 1 %."""


@dataclass(frozen=True)
class BlockCoverage:
    """Statistics of one block."""

    inside: int
    """Number of cameras in the block's cells."""
    views: int
    """Number of its training views."""
    points: int
    """Number of sparse points in its cells."""
    seen: float
    """Share of these points that project into at least ``SEEN_BY`` of its views, occlusion ignored; 0 without
    points."""
    area: float
    """Area of the block's ground within ``ground_box``, square training units."""


def coverage(
    table: PartitionTable, cameras: Sequence[Camera], points: Float[Tensor, "n 3"]
) -> list[BlockCoverage]:
    """The statistics of each block, in order.

    Args:
        table: The partition, with its views.
        cameras: All training cameras, among them those that the table lists.
        points: Sparse points in the world.
    """
    n = table.n
    block = table.cell_of(points)
    inside = torch.bincount(torch.tensor([table.owner(camera) for camera in cameras]), minlength=n)
    every = max(1, -(-len(points) // MAX_POINTS))
    sample, owner = points[::every], block[::every]
    trains = {camera.name: torch.zeros(n, dtype=torch.bool) for camera in cameras}
    for b, names in enumerate(table.views):
        for name in names:
            trains[name][b] = True
    times = torch.zeros(len(sample), dtype=torch.int64)
    for camera in cameras:
        times += in_view(sample, camera) & trains[camera.name][owner]
    well = torch.bincount(owner[times >= SEEN_BY], minlength=n) / torch.bincount(owner, minlength=n).clamp_min(1)

    order = ground_axes(table, cameras)
    low, high = ground_box(table.to_grid(torch.stack([c.center for c in cameras])), table.to_grid(sample))
    ground = torch.zeros(n, dtype=torch.float64)
    for cell, places in enumerate(torch.bincount(ground_raster(table, low, high, order).flatten()).tolist()):
        # Every block of the column gets the area: blocks above each other share their ground.
        ground[table.block_of(torch.tensor(table.grid.column(cell, order[2]))).unique()] += places / RASTER**2
    area = ground * float((high - low)[order[0]] * (high - low)[order[1]])
    count = torch.bincount(block, minlength=n)
    rows = zip(inside.tolist(), table.views, count.tolist(), well.tolist(), area.tolist(), strict=True)
    return [BlockCoverage(i, len(names), p, w, a) for i, names, p, w, a in rows]


def ground_axes(table: PartitionTable, cameras: Sequence[Camera]) -> tuple[int, int, int]:
    """Grid axes that point right, up and towards the viewer in a view from above: (across, along, vertical).

    With ``partition.aabb`` the grid's axes are the world's, so any of them may be vertical. The vertical axis is found
    from two facts: cameras are held upright and look along it, and their positions vary least along it. The second is
    needed for cameras that look straight down on one heading, whose up vectors lie in the ground. z wins ties.
    """
    held = torch.stack([camera.rotation[1] + camera.rotation[2] for camera in cameras]).mean(dim=0)
    along_axes = (table.rotation.double() @ held).abs()
    centers = table.to_grid(torch.stack([camera.center for camera in cameras]))
    spread = centers.amax(dim=0) - centers.amin(dim=0)
    upright = along_axes / along_axes.max().clamp_min(1e-9) - spread / spread.max().clamp_min(1e-9)
    vertical = 2 - int(upright.flip(0).argmax())
    across, along = (axis for axis in range(3) if axis != vertical)
    return across, along, vertical


def ground_box(
    centers: Float[Tensor, "m 3"], cloud: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Low and high corner of the box around the cameras and the middle 90 % of the points on each axis.

    Points extend the box beyond the cameras by at most the cameras' largest extent.

    Args:
        centers: Of the cameras, in the grid's frame.
        cloud: Sparse points, in the grid's frame.
    """
    low, high = centers.amin(dim=0), centers.amax(dim=0)
    if len(cloud):
        reach = (high - low).max()
        few, most = torch.quantile(cloud, torch.tensor([0.05, 0.95], dtype=cloud.dtype), dim=0)
        low = torch.minimum(low, torch.maximum(few, low - reach))
        high = torch.maximum(high, torch.minimum(most, high + reach))
    return low, high


def ground_raster(
    table: PartitionTable, low: Float[Tensor, "3"], high: Float[Tensor, "3"], order: tuple[int, int, int]
) -> Int64[Tensor, "r r"]:
    """The grid cell at each sample of the ground, on the middle plane of the core box; the lowest row first.

    Args:
        table: The partition.
        low: Low corner of the ground, in the grid's frame.
        high: Its high corner.
        order: ``ground_axes``.
    """
    across, along, vertical = order
    steps = (torch.arange(RASTER, dtype=torch.float64) + 0.5) / RASTER
    grid = torch.full((RASTER, RASTER, 3), middle_level(table, vertical), dtype=torch.float64)
    grid[..., across] = low[across] + steps * (high[across] - low[across])
    grid[..., along] = (low[along] + steps * (high[along] - low[along]))[:, None]
    return table.grid.cell_of(grid.reshape(-1, 3)).reshape(RASTER, RASTER)


def middle_level(table: PartitionTable, vertical: int) -> float:
    """Height of the middle plane of the core box, taken as the ground: borders are drawn as they are there."""
    return (table.aabb[vertical] + table.aabb[vertical + 3]) / 2
