"""How many blocks a scene needs so that each fits the memory it trains in."""

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
"""Anchors of a trained block for each one that it starts from. Measured with the shipped settings: 1.2 on Caliterra,
2.8 on the demo city, both over short runs; the rest is room. ``anchors.max_gb_per_block`` stops what grows more."""
MAX_ANCHORS = 8_000
"""Sample of the initial anchors: a block's share is known to within 1 %."""
MAX_CAMERAS = 1_000
"""Sample of the cameras; their images overlap, so what a few more of them see is known."""


def blocks_within(
    limit: int, cameras: Sequence[Camera], points: Float[Tensor, "n 3"], config: Config
) -> tuple[int, int]:
    """A number of blocks whose largest is expected to stay within ``limit`` anchors, and what it is expected to have.

    The smallest, or up to a tenth above it.

    A block starts from the anchors that its cameras see (``blocks.init=visible``), which are more than its cell holds.
    Its cameras are estimated as ``partition.assign=visibility`` finds them. Primes above 3 are left out: they would cut
    the ground into strips.

    Args:
        limit: Anchors that a block may have.
        cameras: Training cameras.
        points: Sparse points in the world.
        config: Of the partition, the model's voxels and what a block starts from.

    Raises:
        UserError: where no number of blocks is enough.
    """
    anchors = voxelize(points, config.model.voxel_size or median_spacing(points))
    total = GROWTH * len(anchors)
    if total <= limit:
        return 1, int(total)
    sample = anchors[:: -(-len(anchors) // MAX_ANCHORS)]
    some = cameras[:: -(-len(cameras) // MAX_CAMERAS)]
    seen = torch.stack([in_view(sample, camera) for camera in some])
    best = (1, int(total))
    # Where every block starts from the whole cloud, or one view alone sees too much, no number helps.
    helps = config.blocks.init == "visible" and total * float(seen.double().mean(dim=1).max()) <= limit
    most = len(cameras) // max(1, config.partition.min_views) if helps else 1
    # The blocks hold the whole scene together, so fewer than total / limit cannot be enough.
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
    """The experiment with the number of blocks that keeps each within ``limit`` anchors, where ``auto`` asks for it.

    Args:
        limit: Anchors that a block may have.
        bytes_each: Memory that an anchor takes in training, to print.
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
