"""A map of the partition seen from above, with blocks coloured by their scores."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.eval.svg import Label, score_map
from momentum_gs.partition.coverage import ground_axes, ground_box, ground_raster
from momentum_gs.partition.figure import MARGIN, block_places


def block_map(
    table: PartitionTable,
    scores: Mapping[int, float | None],
    cameras: Sequence[Camera],
    points: Float[Tensor, "n 3"],
) -> str:
    """SVG of the cells, coloured by PSNR, with the cameras as dots.

    Where blocks lie above each other, the colour is that of the lowest PSNR; blocks without a score are grey.

    Args:
        table: The partition.
        scores: Block -> PSNR in dB; None or missing if it has no score.
        cameras: At least one; the map shows the extent of cameras and points.
        points: World points.
    """
    order = across, along, vertical = ground_axes(table, cameras)
    centers = table.to_grid(torch.stack([camera.center for camera in cameras]))
    low, high = ground_box(centers, table.to_grid(points))
    margin = MARGIN * (high - low).max().clamp_min(1e-9)
    low, high = low - margin, high + margin
    cells = ground_raster(table, low, high, order).numpy()
    shown = np.full(cells.shape, np.nan)
    labels = []
    for blocks, area, (x, y) in block_places(table, cells, vertical):
        known = [score for block in blocks if (score := scores.get(block)) is not None]
        if known:
            shown[area] = min(known)
        labels.append(Label(x, y, tuple(_line(block, scores.get(block)) for block in blocks)))
    size = high - low
    dots = [(float(x), float(y)) for x, y in ((centers - low) / size)[:, [across, along]]]
    return score_map(shown, float(size[along] / size[across]), dots, labels, "PSNR of every block, seen from above, dB")


def _line(block: int, score: float | None) -> str:
    return f"{block}: {'-' if score is None else f'{score:.2f}'}"
