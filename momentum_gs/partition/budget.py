"""The number of blocks that a scene needs so that each block fits into memory (``partition.blocks=auto``)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_view
from momentum_gs.core.log import info
from momentum_gs.core.types import Camera
from momentum_gs.data.scene import Scene
from momentum_gs.model.init import median_spacing, voxelize
from momentum_gs.partition.cover import block_boxes, view_cover
from momentum_gs.partition.layout import automatic_layout

GROWTH = 4.0
"""Expected ratio of a block's final to its initial number of anchors. Measured with the shipped settings in short runs:
1.2 on Caliterra, 2.8 on the demo city; the rest is margin. ``anchors.max_gb_per_block`` bounds blocks that grow
more."""
MAX_ANCHORS = 8_000
"""Size of the sample of initial anchors, which gives a block's share to within 1 %."""
MAX_CAMERAS = 1_000
"""Size of the sample of cameras; images overlap, so the others see hardly anything else."""


def blocks_within(
    limit: int, cameras: Sequence[Camera], points: Float[Tensor, "n 3"], config: Config
) -> tuple[int, int]:
    """A number of blocks with which the largest block is expected to stay within ``limit`` anchors.

    It is the smallest such number, or up to a tenth above it. A block starts from the anchors that its cameras see
    (``blocks.init=visible``), which are more than those in its cell. Its cameras are estimated as by
    ``partition.assign=visibility``. Primes above 3 are not considered: they would cut the ground into strips.

    Args:
        limit: Most anchors that a block may have.
        cameras: Training cameras.
        points: Sparse points in the world.
        config: Its settings of the partition, the voxel size and the initialization of blocks are used.

    Returns:
        Number of blocks, and the expected number of anchors of the largest one.

    Raises:
        UserError: if no number of blocks is enough.
    """
    anchors = voxelize(points, config.model.voxel_size or median_spacing(points))
    total = GROWTH * len(anchors)
    if total <= limit:
        return 1, int(total)
    sample = anchors[:: -(-len(anchors) // MAX_ANCHORS)]
    some = cameras[:: -(-len(cameras) // MAX_CAMERAS)]
    seen = torch.stack([in_view(sample, camera) for camera in some])
    best = (1, int(total))
    # If every block starts from all points, or a single view sees too many anchors, no number of blocks is enough.
    helps = config.blocks.init == "visible" and total * float(seen.double().mean(dim=1).max()) <= limit
    most = len(cameras) // max(1, config.partition.min_views) if helps else 1
    # Together the blocks hold the whole scene, so at least total / limit are needed.
    n = -int(-total // limit)
    while n <= most:
        while n > 3 and all(n % divisor for divisor in range(2, int(n**0.5) + 1)):
            n += 1
        table = automatic_layout(cameras, points, replace(config.partition, blocks=n)).table()
        boxes = block_boxes(table, points)
        trains = torch.zeros(n, len(some), dtype=torch.bool)
        trains[table.cell_of(torch.stack([camera.center for camera in some])), torch.arange(len(some))] = True
        for i, camera in enumerate(some):
            for block, share in view_cover(camera, table, boxes).items():
                trains[block, i] |= share > config.partition.threshold
        largest = int(total * max(float(seen[views].any(dim=0).double().mean()) for views in trains if views.any()))
        if largest <= limit:
            return n, largest
        best = min(best, (n, largest), key=lambda found: found[1])
        n = max(n + 1, n * 11 // 10)
    raise UserError(
        f"partition.blocks: auto finds no number that keeps a block within {limit:,} anchors: at best, with {best[0]}, "
        f"the cameras of one see {best[1]:,} of the scene's {int(total):,}; raise anchors.max_gb_per_block or "
        "anchors.max_per_block, or give the number"
    )


def with_block_count(config: Config, scene: Scene, limit: int, bytes_each: int) -> Config:
    """The settings with ``partition.blocks=auto`` replaced by the number from ``blocks_within``, which is printed.

    Args:
        config: Returned unchanged if ``partition.blocks`` is a number or ``partition.dim`` is given.
        scene: Gives cameras and points.
        limit: Most anchors that a block may have.
        bytes_each: Bytes that an anchor takes in training, for the printed line.

    Raises:
        UserError: if no number of blocks is enough.
    """
    if config.partition.blocks != "auto" or config.partition.dim is not None:
        return config
    n, largest = blocks_within(limit, scene.train, scene.points.xyz, config)
    gb = bytes_each / 2**30
    info(
        f"blocks: {n}, the largest with about {largest:,} anchors ({largest * gb:.2f} GiB) after growth by {GROWTH:g}; "
        f"bound: {limit:,} ({limit * gb:.2f} GiB)"
    )
    return replace(config, partition=replace(config.partition, blocks=n))
