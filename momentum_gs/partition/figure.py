"""A map of the partition seen from above: cells and cameras in the colours of their blocks, points and borders."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import uncontract
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.partition.coverage import RASTER, ground_axes, ground_box, ground_raster, middle_level

MAX_POINTS = 30_000
"""Most points drawn; more would only darken the map."""
MARGIN = 0.12
"""Margin around cameras and points, as a share of their extent, which shows the cells that reach beyond."""


def draw_partition(path: Path, table: PartitionTable, cameras: Sequence[Camera], points: PointCloud) -> None:
    """Writes a PNG that looks down the vertical axis of the grid.

    Args:
        path: PNG file to write.
        table: The partition, with its views.
        cameras: All training cameras, among them those that the table lists.
        points: Sparse points, for orientation.

    Raises:
        UserError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"{path}: needs matplotlib; pip install 'momentum-gs[plot]'") from error

    order = across, along, vertical = ground_axes(table, cameras)
    centers = table.to_grid(torch.stack([camera.center for camera in cameras]))
    every = max(1, -(-len(points) // MAX_POINTS))
    cloud, colors = table.to_grid(points.xyz[::every]), points.rgb[::every]
    low, high = ground_box(centers, cloud)
    margin = MARGIN * (high - low).max().clamp_min(1e-9)
    low, high = low - margin, high + margin

    shape = float((high - low)[along] / (high - low)[across])
    height = min(max(10 * shape, 4), 16)  # inches; bounded, so that a long strip does not make an endless image
    figure = Figure(figsize=(10, height + 0.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    extent = (float(low[across]), float(high[across]), float(low[along]), float(high[along]))
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_aspect("equal")

    colors_of = np.array(palette(table.n))
    cells = ground_raster(table, low, high, order)
    shown = colors_of[table.block_of(cells).numpy()]
    axes.imshow(shown, extent=extent, origin="lower", alpha=0.25, interpolation="nearest", zorder=0)
    if len(cloud):
        axes.scatter(cloud[:, across], cloud[:, along], s=1.0, c=colors.numpy() / 255, linewidths=0, zorder=1)
    for line, parts in _borders(table, order):
        axes.plot(
            line[:, across], line[:, along], color="black", linewidth=1.4 if parts else 0.5,
            linestyle="-" if parts else ":", zorder=2,
        )  # fmt: skip
    owners = np.array([table.owner(camera) for camera in cameras])
    axes.scatter(
        centers[:, across], centers[:, along], s=26, c=colors_of[owners], edgecolors="black", linewidths=0.6, zorder=3
    )
    for place, text in _labels(table, cells.numpy(), owners, extent, vertical):
        axes.annotate(
            text, place, ha="center", va="center", fontsize=11, zorder=2.5,
            bbox={"boxstyle": "round", "facecolor": "white", "alpha": 0.85, "edgecolor": "none"},
        )  # fmt: skip
    names = "xyz"
    axes.set_xlabel(f"grid {names[across]} (training units)")
    axes.set_ylabel(f"grid {names[along]} (training units)")
    axes.set_title(
        f"{table.n} blocks, grid {' x '.join(map(str, table.dim))}: cells and cameras in the colour of their block\n"
        f"seen from above, cells at {names[vertical]} = {middle_level(table, vertical):.3g}"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _borders(table: PartitionTable, order: tuple[int, int, int]) -> list[tuple[np.ndarray, bool]]:
    """Borders of the cells on the middle plane: (polyline of points in the grid's frame, whether it separates blocks).

    Borders are straight in contracted space; they end just before its faces, which lie at infinity.
    """
    grid, vertical = table.grid, order[2]
    lines = []
    for cell in range(grid.n):
        place = grid.cell(cell)
        for axis, other in ((order[0], order[1]), (order[1], order[0])):
            if place[vertical] > 0 or place[axis] + 1 == grid.dim[axis]:
                continue
            unit = torch.full((501, 3), 0.5, dtype=torch.float64)  # the middle plane stays where it is
            unit[:, axis] = grid.edges[axis][place[axis] + 1]
            low, high = grid.edges[other][place[other] : place[other] + 2]
            unit[:, other] = torch.linspace(max(low, 1e-3), min(high, 1 - 1e-3), len(unit), dtype=torch.float64)
            beyond = grid.column(cell, axis)[place[axis] + 1]
            parts = _blocks_above(table, cell, vertical) != _blocks_above(table, beyond, vertical)
            lines.append((uncontract(unit, table.aabb).numpy(), parts))
    return lines


def _blocks_above(table: PartitionTable, cell: int, vertical: int) -> tuple[int, ...]:
    """Blocks of the cells over one place of the ground."""
    return tuple(table.block_of(torch.tensor(table.grid.column(cell, vertical))).tolist())


def block_places(
    table: PartitionTable, cells: np.ndarray, vertical: int
) -> list[tuple[tuple[int, ...], np.ndarray, tuple[float, float]]]:
    """The blocks on a ``ground_raster``, blocks above each other together.

    Returns:
        For each place: its blocks, the mask of the samples that they cover, and a position for their label, as x and y
        in [0, 1] from the left and lower edge.
    """
    areas: dict[tuple[int, ...], np.ndarray] = {}
    for cell in np.unique(cells):
        blocks = tuple(dict.fromkeys(_blocks_above(table, int(cell), vertical)))
        areas[blocks] = areas.get(blocks, False) | (cells == cell)
    found = []
    for blocks, area in areas.items():
        places = np.argwhere(area)
        middle = places.mean(axis=0)  # This may lie outside, e.g. of an L shape, so the nearest sample inside is taken.
        row, column = places[((places - middle) ** 2).sum(axis=1).argmin()]
        found.append((blocks, area, ((column + 0.5) / RASTER, (row + 0.5) / RASTER)))
    return found


def _labels(
    table: PartitionTable, cells: np.ndarray, owners: np.ndarray, extent: tuple[float, ...], vertical: int
) -> list[tuple[tuple[float, float], str]]:
    """(Position, text) of the labels of all blocks in the map."""
    x0, x1, y0, y1 = extent
    labels = []
    for blocks, _, (x, y) in block_places(table, cells, vertical):
        text = "\n".join(f"block {b}\n{len(table.views[b])} views, {int((owners == b).sum())} inside" for b in blocks)
        labels.append(((x0 + x * (x1 - x0), y0 + y * (y1 - y0)), text))
    return labels


def palette(n: int) -> list[tuple[float, float, float]]:
    """Colours of the blocks; consecutive blocks differ in hue by the golden angle."""
    return [colorsys.hsv_to_rgb(block * 0.61803 % 1, 0.75, 0.85 if block % 2 else 1.0) for block in range(n)]
