"""A block of splats in training: what ``BlockState`` is for anchors."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Adam

from momentum_gs.config.schema import Config
from momentum_gs.core.geometry import camera_radius
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.core.types import Camera
from momentum_gs.model.splats import Splats
from momentum_gs.render.view import ViewRender
from momentum_gs.train.blocks.running_score import RunningScore
from momentum_gs.train.growth.anchors import GrowthReport
from momentum_gs.train.growth.splats import SplatStats, densify_and_prune, reset_opacity
from momentum_gs.train.optim import set_splat_lr, splat_optimizer


@dataclass
class SplatBlock:
    """One block in training. As for anchors, ``step`` is all that random draws and schedules depend on."""

    block: int
    model: Splats
    optimizer: Adam
    stats: SplatStats
    lr_scale: float
    """``optim.lr_scale``, or the radius of the block's cameras."""
    step: int = 0
    """Block steps done."""
    score: RunningScore = field(default_factory=RunningScore)
    """Of the views trained since the last measurement (``weighting.source=running``)."""

    def set_rates(self, config: Config) -> None:
        """The learning rates of the block's step."""
        set_splat_lr(self.optimizer, config.optim, config.gaussians, self.step, self.lr_scale)

    def sh_degree(self, config: Config) -> int:
        """Highest degree that is evaluated at the block's step. What starts from a trained model starts with all."""
        highest = config.gaussians.sh_degree
        return highest if config.starts_from_coarse else min(self.step // config.gaussians.sh_every, highest)

    def after_backward(self, view: ViewRender, config: Config) -> GrowthReport | None:
        """Counts the view's gradients; densifies, prunes and resets opacities where the step is due."""
        settings = config.gaussians
        if self.step >= settings.until:
            return None
        self.stats.observe(view.output)
        report = None
        if self.step > settings.from_step and self.step % settings.interval == 0:

            def draw(index: Tensor) -> Tensor:
                return keyed_uniform(index, config.seed, "split", self.block, self.step)

            self.model, self.stats, report = densify_and_prune(
                self.model, self.optimizer, self.stats, self.lr_scale, settings, draw,
                prune_large=0 < settings.reset_every < self.step, cap=settings.max_per_block,
            )  # fmt: skip
        if settings.reset_every and self.step % settings.reset_every == 0:
            reset_opacity(self.model, self.optimizer)
        return report


def init_splat_block(
    block: int, splats: Splats, cameras: list[Camera], config: Config, device: torch.device
) -> SplatBlock:
    """A block at step 0, with its learning-rate scale from its own cameras as for anchors."""
    splats = splats.to(device)
    lr_scale = config.optim.lr_scale or camera_radius(torch.stack([c.center for c in cameras]))
    optimizer = splat_optimizer(splats, config.optim, config.gaussians, lr_scale)
    return SplatBlock(block, splats, optimizer, SplatStats.zeros(splats), lr_scale)
