"""Which block each pixel of a view shows, and whether it lies near a border between blocks.

A pixel shows the block whose cell holds its world point, found from the rendered depth of the merged model. The map is
stored beside the render, so that scores by block need no model.

A point is *near* a border if its distance to a face of its cell behind which another block begins is less than
``BORDER_SHARE`` of the cell's width. Distances are measured in contracted space, where the outer cells have a finite
width, too. A distance in pixels would be unsuitable: it would mean another strip of ground in every view, and would
join pixels on both sides of a roof's edge that are far apart in the scene.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import contract
from momentum_gs.core.types import Camera, RenderOutput
from momentum_gs.data.images import stored_pixels
from momentum_gs.data.partition_table import PartitionTable

BORDER_SHARE = 0.025
"""Width of the strip on either side of a border, as a share of the cell's width. With two cells along an axis, half of
each lies inside the core box, and the strip is 5 % of that half. Seams are narrower, but a thinner strip would hold too
few pixels to score in a small scene."""
MIN_ALPHA = 0.1
"""Accumulated opacity below which a pixel belongs to no block. The bound is low, so that thin spots, which are faults
of a block, and dark places left nearly empty before a black background still count for the block."""
MAX_BLOCKS = (2**16 - 1) // 2
"""Largest number of blocks that a 16-bit map can hold."""


class CellLabels:
    """Labels pixels with the blocks of a partition: 0: no surface; 1 + 2 * block: inside; 2 + 2 * block: near a
    border."""

    def __init__(self, table: PartitionTable, device: torch.device) -> None:
        """Raises UserError for a partition of more blocks than a 16-bit map holds."""
        if table.n > MAX_BLOCKS:
            raise UserError(f"render: {table.n} blocks, expected at most {MAX_BLOCKS}; maps of blocks have 16 bits")
        grid = table.grid
        bounds = torch.stack([grid.cell_bounds(cell) for cell in range(grid.n)]).to(device)
        self._low, self._high = bounds.split(3, dim=1)
        block = table.block_of(torch.arange(grid.n))
        parts = torch.zeros(grid.n, 2, 3, dtype=torch.bool)
        for cell in range(grid.n):
            for axis, place in enumerate(grid.cell(cell)):
                line = grid.column(cell, axis)
                for side, beyond in enumerate((place - 1, place + 1)):
                    parts[cell, side, axis] = 0 <= beyond < len(line) and bool(block[line[beyond]] != block[cell])
        self._parts_low, self._parts_high = parts.to(device).unbind(dim=1)
        self._block = block.to(device)
        self._table = table

    def near_border(self, points: Float[Tensor, "n 3"]) -> Bool[Tensor, "n"]:
        """Which world points lie near a face of their cell behind which another block begins."""
        return self._place(points)[1]

    def _place(self, points: Float[Tensor, "n 3"]) -> tuple[Int64[Tensor, "n"], Bool[Tensor, "n"]]:
        inside = self._table.to_grid(points.double())
        cell, unit = self._table.grid.cell_of(inside), contract(inside, self._table.aabb)
        low, high = self._low[cell], self._high[cell]
        strip = BORDER_SHARE * (high - low)
        near = (unit - low < strip) & self._parts_low[cell] | (high - unit < strip) & self._parts_high[cell]
        return self._block[cell], near.any(dim=1)

    def of(self, output: RenderOutput, camera: Camera) -> Int64[Tensor, "h w"]:
        """The map of a rendered view, on the device of the render."""
        there = output.alpha >= MIN_ALPHA
        labels = torch.zeros(there.shape, dtype=torch.int64, device=there.device)
        points = world_points(output.depth[there] / output.alpha[there], there.nonzero(), camera)
        block, near = self._place(points)
        labels[there] = 1 + 2 * block + near
        return labels


def world_points(
    depth: Float[Tensor, "n"], pixels: Int64[Tensor, "n 2"], camera: Camera
) -> Float[Tensor, "n 3"]:
    """World points of pixels, float64.

    Args:
        depth: Camera z of each, scene units.
        pixels: Row and column of each.
        camera: The view.
    """
    row, column = (pixels.double() + 0.5).unbind(dim=1)
    z = depth.double()
    seen = torch.stack([(column - camera.cx) / camera.fx * z, (row - camera.cy) / camera.fy * z, z], dim=1)
    return seen @ camera.rotation.to(seen) + camera.center.to(seen)


def write_cells(path: Path, labels: Int64[Tensor, "h w"]) -> None:
    """Writes a map as a 16-bit grey PNG, making its folder."""
    _, data = cv2.imencode(".png", labels.cpu().numpy().astype(np.uint16))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def read_cells(path: Path, width: int, height: int) -> Int64[Tensor, "h w"]:
    """Reads what ``write_cells`` wrote. Raises UserError for a map that is missing, damaged or of another size."""
    pixels = stored_pixels(path)
    if pixels.dtype != np.uint16 or pixels.shape != (height, width):
        raise UserError(
            f"{path}: {'x'.join(map(str, reversed(pixels.shape)))} of {pixels.dtype}, expected a 16-bit map of "
            f"{width}x{height}; run 'momentum-gs render' again"
        )
    return torch.from_numpy(pixels.astype(np.int64))
