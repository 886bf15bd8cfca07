"""The share of an image that each block's box covers: view assignment by geometry, without a coarse model.

Source of the idea: VastGaussian's airspace-aware visibility, which projects the box of a cell. Here a raster of rays
through the image is tested against the boxes; unlike a projection, this needs no clipping at boxes that reach behind
the camera.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.core.types import Camera
from momentum_gs.core.window import RASTER
from momentum_gs.data.partition_table import PartitionTable

STRAYS = 0.01
"""Share of a block's points ignored at either end of each axis: otherwise one outlier would stretch its box."""


def block_boxes(table: PartitionTable, points: Float[Tensor, "n 3"]) -> Float[Tensor, "b 6"]:
    """Bounding box of each block's points in the grid's frame.

    Args:
        table: Gives the cells; its views are not read.
        points: Sparse points in the world.

    Returns:
        Low and high corner, float64; NaN for a block without points.
    """
    points = points.double()
    block, places = table.cell_of(points), table.to_grid(points)
    boxes = torch.full((table.n, 6), torch.nan, dtype=torch.float64)
    for b in block.unique().tolist():
        ordered = places[block == b].sort(dim=0).values
        out = int(STRAYS * len(ordered))
        boxes[b] = torch.cat([ordered[out], ordered[-1 - out]])
    return boxes


def view_cover(camera: Camera, table: PartitionTable, boxes: Float[Tensor, "b 6"]) -> dict[int, float]:
    """For each block, the share of the image that its box covers, in (0, 1]; blocks outside the image are left out.

    Occlusion is ignored, as in VastGaussian. VastGaussian's threshold, a quarter of the image, suits large cells.
    Measured: with the threshold of the SSIM test (``assign=ssim``), this test finds nearly all cameras that the SSIM
    test finds, and further ones where cameras look towards the horizon.

    Args:
        camera: The view.
        table: Gives the grid's frame.
        boxes: ``block_boxes``.
    """
    share = boxes_behind(camera, table, boxes).double().mean(dim=1)
    return {b: float(share[b]) for b in share.nonzero()[:, 0].tolist()}


def boxes_behind(camera: Camera, table: PartitionTable, boxes: Float[Tensor, "b 6"]) -> Bool[Tensor, "b rays"]:
    """Which boxes lie behind the centre of each square of the image's raster, row by row from the top."""
    steps = (torch.arange(RASTER, dtype=torch.float64) + 0.5) / RASTER
    x = (steps * camera.width - camera.cx) / camera.fx
    y = (steps * camera.height - camera.cy) / camera.fy
    rays = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(RASTER, RASTER, dtype=torch.float64)], dim=-1)
    camera_to_grid = table.rotation.double() @ camera.rotation.T
    direction, center = rays.reshape(-1, 3) @ camera_to_grid.T, table.to_grid(camera.center[None])[0]
    # Slab test: the ray is inside the box between the last entry into and the first exit from a slab of an axis. For a
    # ray parallel to a slab both are infinite, or NaN if it lies exactly on the slab's side; NaN is ignored.
    # The axes are handled in a loop: torch is ten times slower at reducing over a dimension of three numbers.
    enters, leaves = torch.tensor(-torch.inf, dtype=torch.float64), torch.tensor(torch.inf, dtype=torch.float64)
    for axis in range(3):
        low = (boxes[:, axis, None] - center[axis]) / direction[:, axis]
        high = (boxes[:, axis + 3, None] - center[axis]) / direction[:, axis]
        # fmax and fmin ignore NaN; maximum and minimum return it.
        enters, leaves = torch.fmax(enters, torch.minimum(low, high)), torch.fmin(leaves, torch.maximum(low, high))
    return (enters <= leaves) & (leaves > 0) & ~boxes.isnan().any(dim=1, keepdim=True)
