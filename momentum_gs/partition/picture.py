"""The partition seen from above: cells, cameras in the colour of the block that owns them, points."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import uncontract
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.partition_table import PartitionTable

MAX_POINTS = 30_000
"""Dots drawn; more only darken the picture."""
MARGIN = 0.12
"""Border around the cameras, as a share of what they cover: room for cells that reach beyond."""
RASTER = 300
"""Samples along a side of the picture to find which cell is where: labels need no more."""


def draw_partition(path: Path, table: PartitionTable, cameras: Sequence[Camera], points: PointCloud) -> None:
    """Writes a PNG that looks down the vertical axis of the grid.

    Args:
        path: Where to.
        table: The partition, with its views.
        cameras: Training cameras, those that the table lists.
        points: Sparse points, for orientation.

    Raises:
        UserError: where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"{path}: needs matplotlib; pip install 'momentum-gs[plot]'") from error

    across, along, vertical = _picture_axes(table, cameras)
    centers = table.to_grid(torch.stack([camera.center for camera in cameras]))
    every = max(1, -(-len(points) // MAX_POINTS))
    cloud, colors = table.to_grid(points.xyz[::every]), points.rgb[::every]
    low, high = _view_box(centers, cloud)

    shape = float((high - low)[along] / (high - low)[across])
    height = min(max(10 * shape, 4), 16)  # inches; a long strip keeps a margin instead of an endless picture
    figure = Figure(figsize=(10, height + 0.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    extent = (float(low[across]), float(high[across]), float(low[along]), float(high[along]))
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_aspect("equal")

    palette = np.array(_palette(table.n))
    level = (table.aabb[vertical] + table.aabb[vertical + 3]) / 2
    cells = _raster(table, low, high, level, (across, along, vertical))
    axes.imshow(palette[cells], extent=extent, origin="lower", alpha=0.25, interpolation="nearest", zorder=0)
    if len(cloud):
        axes.scatter(cloud[:, across], cloud[:, along], s=1.0, c=colors.numpy() / 255, linewidths=0, zorder=1)
    for line in _borders(table, level, (across, along, vertical)):
        axes.plot(line[:, across], line[:, along], color="black", linewidth=1.4, zorder=2)
    owners = np.array([table.owner(camera) for camera in cameras])
    axes.scatter(
        centers[:, across], centers[:, along], s=26, c=palette[owners], edgecolors="black", linewidths=0.6, zorder=3
    )
    for place, text in _labels(table, cells, owners, extent, vertical):
        axes.annotate(
            text, place, ha="center", va="center", fontsize=11, zorder=2.5,
            bbox={"boxstyle": "round", "facecolor": "white", "alpha": 0.85, "edgecolor": "none"},
        )  # fmt: skip
    names = "xyz"
    axes.set_xlabel(f"grid {names[across]} (scene units)")
    axes.set_ylabel(f"grid {names[along]} (scene units)")
    axes.set_title(
        f"{table.n} blocks, grid {' x '.join(map(str, table.dim))}: a camera has the colour of the block that it "
        f"stands in\nseen from above, cells as they are at {names[vertical]} = {level:.3g}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _picture_axes(table: PartitionTable, cameras: Sequence[Camera]) -> tuple[int, int, int]:
    """Grid axes that run right, up and towards the eye; a grid over a given aabb may have any axis upright."""
    held = -torch.stack([camera.rotation[1] + camera.rotation[2] for camera in cameras]).mean(dim=0)
    vertical = int((table.rotation.double() @ held).abs().argmax())
    across, along = (axis for axis in range(3) if axis != vertical)
    return across, along, vertical


def _view_box(centers: Float[Tensor, "m 3"], cloud: Float[Tensor, "n 3"]) -> tuple[Tensor, Tensor]:
    """What is shown: the cameras and nine tenths of the points, without those far beyond the cameras."""
    low, high = centers.amin(dim=0), centers.amax(dim=0)
    if len(cloud):
        reach = (high - low).max()
        few, most = torch.quantile(cloud, torch.tensor([0.05, 0.95], dtype=cloud.dtype), dim=0)
        low = torch.minimum(low, torch.maximum(few, low - reach))
        high = torch.maximum(high, torch.minimum(most, high + reach))
    margin = MARGIN * (high - low).max().clamp_min(1e-9)
    return low - margin, high + margin


def _raster(table: PartitionTable, low: Tensor, high: Tensor, level: float, order: tuple[int, int, int]) -> np.ndarray:
    """Block of every pixel of the picture on the plane at ``level``, [RASTER, RASTER], first row at the bottom."""
    across, along, vertical = order
    steps = (torch.arange(RASTER, dtype=torch.float64) + 0.5) / RASTER
    grid = torch.full((RASTER, RASTER, 3), level, dtype=torch.float64)
    grid[..., across] = low[across] + steps * (high[across] - low[across])
    grid[..., along] = (low[along] + steps * (high[along] - low[along]))[:, None]
    return table.grid.cell_of(grid.reshape(-1, 3)).reshape(RASTER, RASTER).numpy()


def _borders(table: PartitionTable, level: float, order: tuple[int, int, int]) -> list[np.ndarray]:
    """Borders between cells on the middle plane, as lines of points in the grid's frame.

    Straight in contracted space; the ends stop short of its faces, which lie at infinity.
    """
    run = torch.linspace(1e-3, 1 - 1e-3, 2001, dtype=torch.float64)
    lines = []
    for axis, other in ((order[0], order[1]), (order[1], order[0])):
        for cut in range(1, table.dim[axis]):
            unit = torch.full((len(run), 3), 0.5, dtype=torch.float64)  # the middle plane stays where it is
            unit[:, axis] = cut / table.dim[axis]
            unit[:, other] = run
            lines.append(uncontract(unit, table.aabb).numpy())
    return lines


def _labels(
    table: PartitionTable,
    cells: np.ndarray,
    owners: np.ndarray,
    extent: tuple[float, float, float, float],
    vertical: int,
) -> list[tuple[tuple[float, float], str]]:
    """(place, text) of every cell in the picture; cells above it are named with it."""
    x0, x1, y0, y1 = extent
    stride = int(np.prod(table.dim[:vertical], dtype=int))
    labels = []
    for block in np.unique(cells):
        layer = block // stride % table.dim[vertical]
        column = [int(block + (other - layer) * stride) for other in range(table.dim[vertical])]
        rows, columns = np.nonzero(cells == block)
        place = (x0 + (columns.mean() + 0.5) / RASTER * (x1 - x0), y0 + (rows.mean() + 0.5) / RASTER * (y1 - y0))
        text = "\n".join(f"block {b}\n{len(table.views[b])} views, {int((owners == b).sum())} inside" for b in column)
        labels.append((place, text))
    return labels


def _palette(n: int) -> list[tuple[float, float, float]]:
    """Colours of the blocks; neighbours in number are far apart in hue (steps of the golden angle)."""
    return [colorsys.hsv_to_rgb(block * 0.61803 % 1, 0.75, 0.85 if block % 2 else 1.0) for block in range(n)]
