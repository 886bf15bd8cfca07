"""Everything that belongs to one block and must survive while other blocks train."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.optim import Adam

from momentum_gs.config.schema import Config
from momentum_gs.core.geometry import camera_radius
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.model.anchors import LEARNABLE, Anchors
from momentum_gs.model.init import init_anchors
from momentum_gs.render.view import ViewRender
from momentum_gs.train.blocks.anchor_budget import max_anchors
from momentum_gs.train.blocks.running_score import RunningScore
from momentum_gs.train.decoders.learner import DecoderLearner
from momentum_gs.train.growth.anchors import GrowthReport, GrowthStats, grow_and_prune
from momentum_gs.train.optim import anchor_optimizer, set_anchor_lr


@dataclass
class BlockState:
    """One block of anchors in training. Views, growth draws and schedules are keyed by (seed, block, step), so no
    generator or cursor has to be carried: ``step`` is all of them."""

    block: int
    anchors: Anchors
    optimizer: Adam
    stats: GrowthStats
    voxel_size: float
    """Edge of the finest voxel, training units."""
    lr_scale: float
    """``optim.lr_scale``, or the radius of the block's cameras."""
    step: int = 0
    """Block steps done."""
    fixed: Bool[Tensor, "n"] | None = None
    """Anchors that are drawn but do not learn (``train/settle.py``); None: all learn. Follows from the round."""
    own: DecoderLearner | None = None
    """The block's decoder where each has its own (``blocks.decoder=own``)."""
    score: RunningScore = field(default_factory=RunningScore)
    """Of the views trained since the last measurement (``weighting.source=running``)."""

    @property
    def model(self) -> Anchors:
        """What the block is made of."""
        return self.anchors

    def set_rates(self, config: Config) -> None:
        """The learning rates of the block's step."""
        set_anchor_lr(self.optimizer, config.optim, self.step, self.lr_scale)

    def after_backward(self, view: ViewRender, config: Config) -> GrowthReport | None:
        """Counts the view's gradients and grows where the step is due; anchors that are held fixed rest instead."""
        growth = config.growth
        if self.fixed is not None:
            self.rest_fixed()
        elif growth.start_stat < self.step < growth.until:
            self.stats.observe(view.decoded, view.output)
            if self.step > growth.from_step and self.step % growth.interval == 0:
                return self.grow(config)
        return None

    def grow(self, config: Config) -> GrowthReport:
        """Adds and removes anchors by the statistics since the last growth, within the bounds of ``config.anchors``."""

        def draw(level: int, offsets: Tensor) -> Tensor:
            return keyed_uniform(offsets, config.seed, "growth", self.block, self.step, level)

        self.anchors, self.stats, report = grow_and_prune(
            self.anchors, self.optimizer, self.stats, self.voxel_size, config.growth, draw,
            max_anchors(config.anchors, config.model),
        )  # fmt: skip
        return report

    @torch.no_grad()
    def bound_scales(self, largest: float) -> None:
        """Puts a bound on the scales of the Gaussians, training units."""
        self.anchors.log_scale[:, 3:].clamp_(max=math.log(largest))

    def rest_fixed(self) -> None:
        """Takes the gradient from the anchors that do not learn, after the backward pass.

        They have no moments, so Adam leaves them where they are.
        """
        for name in LEARNABLE:
            grad = self.anchors.rows()[name].grad
            if self.fixed is not None and grad is not None:
                grad[self.fixed] = 0


def init_block(
    block: int, points: PointCloud, cameras: list[Camera], config: Config, device: torch.device
) -> BlockState:
    """A block at step 0 from its initial points, with its learning-rate scale from its own cameras [MGS]."""
    anchors, voxel_size = init_anchors(points, config.model)
    anchors = anchors.to(device)
    lr_scale = config.optim.lr_scale or camera_radius(torch.stack([c.center for c in cameras]))
    optimizer = anchor_optimizer(anchors, config.optim, lr_scale)
    own = DecoderLearner(config, device) if config.per_block_decoders else None
    return BlockState(block, anchors, optimizer, GrowthStats.zeros(anchors), voxel_size, lr_scale, own=own)


def trained_block(n: int, config: Config, device: torch.device) -> BlockState:
    """A block of n anchors at random, with moments and statistics."""
    model, generator = config.model, torch.Generator().manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    anchors = Anchors.fresh(rand(n, 3), rand(n, model.feature_dim), rand(n, 6), model.n_offsets).to(device)
    optimizer = anchor_optimizer(anchors, config.optim, 1.0)
    for name in LEARNABLE:
        row = anchors.rows()[name]
        row.grad = torch.rand_like(row)
    optimizer.step()
    optimizer.zero_grad()
    return BlockState(0, anchors, optimizer, GrowthStats.zeros(anchors), 0.01, 1.0, 1)
