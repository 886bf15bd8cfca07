"""A block of splats in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.model.init import init_splats
from momentum_gs.model.splats import Splats
from momentum_gs.render.view import ViewRender
from momentum_gs.train.blocks.block import Block, CellOf, lr_scale_of
from momentum_gs.train.distillation.dropout import dropout_rate, opacity_factors
from momentum_gs.train.distillation.perturbation import perturb, perturbs
from momentum_gs.train.growth.report import GrowthReport
from momentum_gs.train.growth.splats import SplatStats, densify_and_prune, reset_opacity
from momentum_gs.train.optim import LAST_RATE, set_splat_lr


@dataclass
class SplatBlock(Block):
    """One block of splats (explicit Gaussians), which need no decoder."""

    MODEL: ClassVar = Splats
    AROUND: ClassVar = Splats
    STATS: ClassVar = SplatStats
    CAP: ClassVar[str] = "gaussians.max_per_block"

    model: Splats
    stats: SplatStats

    @classmethod
    def from_points(
        cls, block: int, points: PointCloud, cameras: Sequence[Camera], config: Config, device: torch.device
    ) -> "SplatBlock":
        """A splat at every point; with planar surfaces, along the surface that the points make up."""
        splats = init_splats(points, config.gaussians.sh_degree, config.starts_flat)
        return cls.from_splats(block, splats, cameras, config, device)

    @classmethod
    def from_splats(
        cls, block: int, splats: Splats, cameras: Sequence[Camera], config: Config, device: torch.device
    ) -> "SplatBlock":
        """A block at step 0 from existing splats, such as those of the coarse model."""
        return cls.of(block, splats.to(device), config, lr_scale=lr_scale_of(cameras, config))

    def set_rates(self, config: Config) -> None:
        """Sets the learning rates for the block's present step; where it starts from a teacher, all of them fall."""
        last = LAST_RATE if config.starts_from_teacher else 1.0
        splats = config.gaussians
        set_splat_lr(self.optimizer, config.optim, splats, self.step, self.lr_scale, last, self.lr_factor)

    def opacity_factors(self, config: Config) -> Float[Tensor, "n 1"] | None:
        """Those of dropout (``distill.dropout``) in the coming step."""
        step = self.step + 1
        rate = dropout_rate(step, config.distill)

        def draw(level: int, index: Tensor) -> Tensor:
            return keyed_uniform(index, config.seed, "dropout", self.block, step)

        return opacity_factors(self.model.opacity.detach().sigmoid(), rate, draw) if rate else None

    def count_and_grow(self, view: ViewRender, config: Config) -> GrowthReport | None:
        """Adds the view to the statistics; perturbs, densifies, prunes and resets opacities if due at this step."""
        settings = config.gaussians
        if self.step >= settings.until and not (config.distill.noise and self.step <= config.distill.until):
            return None
        self.stats.observe(view.output)
        if perturbs(self.step, config.distill):
            self._perturb(config)
        if self.step >= settings.until:
            return None
        report = None
        if self.step > settings.from_step and self.step % settings.interval == 0:

            def draw(level: int, index: Tensor) -> Tensor:
                return keyed_uniform(index, config.seed, "split", self.block, self.step)

            self.model, self.stats, report = densify_and_prune(
                self.model, self.optimizer, self.stats, self.lr_scale, settings, draw,
                prune_large=0 < settings.reset_every < self.step, cap=settings.max_per_block,
            )  # fmt: skip
        if settings.reset_every and self.step % settings.reset_every == 0:
            reset_opacity(self.model, self.optimizer)
        return report

    def _perturb(self, config: Config) -> None:
        def draw(level: int, index: Tensor) -> Tensor:
            return keyed_uniform(index, config.seed, "perturb", self.block, self.step)

        perturb(self.model, self.stats.gradient >= config.gaussians.grad_threshold, config.distill.noise, draw)

    def keep_bounds(self, config: Config, cell_of: CellOf | None) -> None:
        """Does nothing: pruning bounds the splats' sizes."""


def sh_degree_at(step: int, config: Config) -> int:
    """Degree of spherical harmonics at a block step; blocks that start from a trained model begin with the highest."""
    highest = config.gaussians.sh_degree
    trained = config.starts_from_coarse or config.starts_from_teacher
    return highest if trained else min(step // config.gaussians.sh_every, highest)
