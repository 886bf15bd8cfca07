"""How much of an image each block lies behind, by geometry alone: for scenes without a coarse model.

Source of the idea: VastGaussian's airspace-aware visibility, which projects the box of a cell. Here a raster of the
image's rays is tested against the boxes instead, which needs no clipping where a box reaches behind the camera.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.core.types import Camera
from momentum_gs.core.window import RASTER
from momentum_gs.data.partition_table import PartitionTable

STRASTER = 0.01
"""Share of a block's points left out at either end of each axis: one stray point would stretch its box."""


def block_boxes(table: PartitionTable, points: Float[Tensor, "n 3"]) -> Float[Tensor, "b 6"]:
    """The box around each block's points in the grid's frame: low and high corner, NaN where it has no points.

    Args:
        table: The cells; its views are not read.
        points: Sparse points in the world.
    """
    points = points.double()
    block, places = table.cell_of(points), table.to_grid(points)
    boxes = torch.full((table.n, 6), torch.nan, dtype=torch.float64)
    for b in block.unique().tolist():
        ordered = places[block == b].sort(dim=0).values
        out = int(STRASTER * len(ordered))
        boxes[b] = torch.cat([ordered[out], ordered[-1 - out]])
    return boxes


def view_cover(camera: Camera, table: PartitionTable, boxes: Float[Tensor, "b 6"]) -> dict[int, float]:
    """Share of the image behind which each block's box lies, by block; blocks out of the image are left out.

    A block that another one hides counts as if it were seen, as in VastGaussian. Its threshold, a quarter of the
    image, is for large cells; measured against the SSIM test, the same threshold as there finds nearly all of its
    cameras, and more where cameras look towards the horizon.
    """
    share = boxes_behind(camera, table, boxes).double().mean(dim=1)
    return {b: float(share[b]) for b in share.nonzero()[:, 0].tolist()}


def boxes_behind(camera: Camera, table: PartitionTable, boxes: Float[Tensor, "b 6"]) -> Bool[Tensor, "b rays"]:
    """Which boxes lie behind the centre of each square of the image's raster, row by row from the top."""
    steps = (torch.arange(RASTER, dtype=torch.float64) + 0.5) / RASTER
    x = (steps * camera.width - camera.cx) / camera.fx
    y = (steps * camera.height - camera.cy) / camera.fy
    rays = torch.stack([*torch.meshgrid(x, y, indexing="xy"), torch.ones(RASTER, RASTER, dtype=torch.float64)], dim=-1)
    turn = table.rotation.double() @ camera.rotation.T
    direction, center = rays.reshape(-1, 3) @ turn.T, table.to_grid(camera.center[None])[0]
    # The ray is inside of a slab between two depths; inside of the box between the last entry and the first exit.
    # Parallel to a slab these are infinite, or NaN exactly on its side, which then tells nothing.
    # Axis by axis: torch reduces over a dimension of two or three numbers ten times slower.
    enters, leaves = torch.tensor(-torch.inf, dtype=torch.float64), torch.tensor(torch.inf, dtype=torch.float64)
    for axis in range(3):
        low = (boxes[:, axis, None] - center[axis]) / direction[:, axis]
        high = (boxes[:, axis + 3, None] - center[axis]) / direction[:, axis]
        # fmax and fmin pass over a NaN, minimum and maximum do not.
        enters, leaves = torch.fmax(enters, torch.minimum(low, high)), torch.fmin(leaves, torch.maximum(low, high))
    return (enters <= leaves) & (leaves > 0) & ~boxes.isnan().any(dim=1, keepdim=True)
