"""A block of anchors in training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.model.anchors import Anchors, FixedAnchors
from momentum_gs.model.init import init_anchors
from momentum_gs.render.view import ViewRender
from momentum_gs.train.blocks.anchor_budget import max_anchors
from momentum_gs.train.blocks.block import Block, CellOf, lr_scale_of
from momentum_gs.train.growth.anchors import GrowthStats, grow_and_prune
from momentum_gs.train.growth.report import GrowthReport
from momentum_gs.train.offset_clamping import clamp_offsets_
from momentum_gs.train.optim import set_anchor_lr


@dataclass
class AnchorBlock(Block):
    """One block of anchors, decoded by the shared or by a per-block decoder."""

    MODEL: ClassVar = Anchors
    AROUND: ClassVar = FixedAnchors
    STATS: ClassVar = GrowthStats
    NUMBERS: ClassVar[tuple[str, ...]] = ("lr_scale", "voxel_size")
    CAP: ClassVar[str] = "anchors.max_per_block or max_gb_per_block"

    model: Anchors
    stats: GrowthStats
    voxel_size: float = field(kw_only=True)
    """Edge of the finest voxel, training units."""

    @classmethod
    def from_points(
        cls, block: int, points: PointCloud, cameras: Sequence[Camera], config: Config, device: torch.device
    ) -> "AnchorBlock":
        """An anchor in every voxel that holds a point; with planar surfaces, with the normal of the points there."""
        anchors, voxel_size = init_anchors(points, config.model, config.starts_flat)
        return cls.from_anchors(block, anchors, voxel_size, cameras, config, device)

    @classmethod
    def from_anchors(
        cls,
        block: int,
        anchors: Anchors,
        voxel_size: float,
        cameras: Sequence[Camera],
        config: Config,
        device: torch.device,
    ) -> "AnchorBlock":
        """A block at step 0 of anchors that exist already; ``voxel_size``: edge of growth's finest voxel."""
        lr_scale = lr_scale_of(cameras, config)
        return cls.of(block, anchors.to(device), config, lr_scale=lr_scale, voxel_size=voxel_size)

    def set_rates(self, config: Config) -> None:
        """Sets the learning rates for the block's present step."""
        set_anchor_lr(self.optimizer, config.optim, self.step, self.lr_scale, self.lr_factor)

    def count_and_grow(self, view: ViewRender, config: Config) -> GrowthReport | None:
        """Adds the view to the growth statistics and grows if growth is due at this step."""
        growth = config.growth
        if growth.start_stat < self.step < growth.until:
            self.stats.observe(view.decoded, view.output)
            if self.step > growth.from_step and self.step % growth.interval == 0:
                return self.grow(config)
        return None

    def grow(self, config: Config) -> GrowthReport:
        """Adds and removes anchors by the growth statistics, within the bounds of ``config.anchors``."""

        def draw(level: int, offsets: Tensor) -> Tensor:
            return keyed_uniform(offsets, config.seed, "growth", self.block, self.step, level)

        self.model, self.stats, report = grow_and_prune(
            self.model, self.optimizer, self.stats, self.voxel_size, config.growth, draw,
            max_anchors(config.anchors, config.model), self.inside,
        )  # fmt: skip
        return report

    @torch.no_grad()
    def keep_bounds(self, config: Config, cell_of: CellOf | None) -> None:
        """Keeps the Gaussians' scales below ``optim.max_scale``, and offsets on their side of the cell's border."""
        if config.optim.max_scale is not None:
            self.model.log_scale[:, 3:].clamp_(max=math.log(config.optim.max_scale))
        if cell_of is not None and config.blocks.offset_clamping:
            clamp_offsets_(self.model, cell_of, self.block)


def trained_block(n: int, config: Config, device: torch.device) -> AnchorBlock:
    """A block of n random anchors, with Adam's moments and empty statistics; for measurements and tests."""
    model, generator = config.model, torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    anchors = Anchors.fresh(rand(n, 3), rand(n, model.feature_dim), rand(n, 6), model.n_offsets).to(device)
    state = AnchorBlock.of(0, anchors, config, lr_scale=1.0, voxel_size=0.01)
    for name in anchors.LEARNABLE:
        row = anchors.rows()[name]
        row.grad = torch.rand_like(row)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step = 1
    return state
