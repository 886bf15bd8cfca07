"""A block in training: all state that must be kept while the block is inactive."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.optim import Adam

from momentum_gs.config.schema import Config
from momentum_gs.core.geometry import camera_radius
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.model.anchors import Anchors, FixedAnchors
from momentum_gs.model.splats import Model, Splats
from momentum_gs.render.view import ViewCapacity, ViewRender
from momentum_gs.train.blocks.running_score import RunningScore
from momentum_gs.train.decoders.learner import DecoderLearner
from momentum_gs.train.growth.report import GrowthReport, RowStats
from momentum_gs.train.optim import row_optimizer

AnyBlock = TypeVar("AnyBlock", bound="Block")

CellOf = Callable[[Float[Tensor, "m 3"]], Int64[Tensor, "m"]]
"""World points, float64 -> the block whose cell holds each."""


@dataclass
class Block(ABC):
    """One block of anchors or of splats.

    View order and random draws of growth are functions of (seed, block, step), so ``step`` replaces the state of random
    generators.
    """

    MODEL: ClassVar[type[Anchors] | type[Splats]]
    AROUND: ClassVar[type[FixedAnchors] | type[Splats]]
    STATS: ClassVar[type[RowStats]]
    NUMBERS: ClassVar[tuple[str, ...]] = ("lr_scale",)
    """Numeric fields stored with an inactive block, in addition to its tensors, ``block`` and ``step``."""
    CAP: ClassVar[str]
    """Settings that bound the number of rows, for messages."""

    block: int
    """Number of the block."""
    model: Model
    """Of type ``MODEL``."""
    optimizer: Adam
    """Has a parameter group for each learnable row tensor of the model."""
    stats: RowStats
    """Growth statistics, of type ``STATS``."""
    lr_scale: float
    """``optim.lr_scale``, or the radius of the block's cameras, training units."""
    step: int = 0
    """Block steps done."""
    cell_of: CellOf | None = None
    """The block of a place, where rows may only be added inside the block's own cell; None: anywhere."""
    fixed: Bool[Tensor, "n"] | None = None
    """Rows that are rendered but not optimized (``train/boundary_finetuning.py``); None: all are optimized. Found anew
    in every round, so not stored."""
    lr_factor: float = 1.0
    """Factor on the learning rates of the rows (``train/surroundings.py``). Follows from the partition."""
    around: Model | None = None
    """The other blocks' rows near its views, as they were when the round began: rendered, held fixed; ``AROUND``."""
    own: DecoderLearner | None = None
    """The per-block decoder (``blocks.decoder=per_block``); None with a shared decoder."""
    score: RunningScore = field(default_factory=RunningScore)
    """Score on the views trained since the last measurement (``weighting.source=running``)."""
    capacity: ViewCapacity = field(default_factory=ViewCapacity)
    """What its views took of a GPU's memory."""

    @classmethod
    def of(
        cls: type[AnyBlock],
        block: int,
        model: Model,
        config: Config,
        *,
        stats: RowStats | None = None,
        **numbers: Any,
    ) -> AnyBlock:
        """A block at step 0, on the device of its model.

        Args:
            stats: Growth statistics so far; None: empty.
            numbers: Values of the fields ``NUMBERS``.
        """
        own = DecoderLearner(config, model.position.device) if config.per_block_decoders else None
        state = cls(
            block=block, model=model, optimizer=row_optimizer(model, config.optim),
            stats=cls.STATS.zeros(model) if stats is None else stats, own=own, **numbers,
        )  # fmt: skip
        state.set_rates(config)
        return state

    @classmethod
    @abstractmethod
    def from_points(
        cls: type[AnyBlock],
        block: int,
        points: PointCloud,
        cameras: Sequence[Camera],
        config: Config,
        device: torch.device,
    ) -> AnyBlock:
        """A block at step 0 from its initial points; its cameras give the learning-rate scale (``lr_scale_of``)."""

    @abstractmethod
    def set_rates(self, config: Config) -> None:
        """Sets the learning rates for the block's present step."""

    @abstractmethod
    def count_and_grow(self, view: ViewRender, config: Config) -> GrowthReport | None:
        """Adds the view to the growth statistics; adds and removes rows if growth is due at this step."""

    def opacity_factors(self, config: Config) -> Float[Tensor, "n 1"] | None:
        """What multiplies the rows' opacities in the coming step (``train/distillation/dropout.py``); None: nothing."""
        return None

    @property
    def inside(self) -> Callable[[Tensor], Tensor] | None:
        """Which places [M,3] rows may be added at; None: all."""
        cell_of = self.cell_of
        return None if cell_of is None else lambda places: cell_of(places.double()) == self.block

    def after_backward(self, view: ViewRender, config: Config) -> GrowthReport | None:
        """Called between backward pass and optimizer step: grows if due or, in boundary fine-tuning, holds fixed rows.

        Returns:
            What growth changed; None without growth.
        """
        if self.fixed is not None:
            self.rest_fixed()
            return None
        return self.count_and_grow(view, config)

    def rest_fixed(self) -> None:
        """Zeroes the gradients of the fixed rows, after the backward pass.

        Their moments are zero, too, so Adam does not move them.
        """
        for name in self.MODEL.LEARNABLE:
            grad = self.model.rows()[name].grad
            if self.fixed is not None and grad is not None:
                grad.masked_fill_(self.fixed.view(-1, *[1] * (grad.ndim - 1)), 0)

    @abstractmethod
    def keep_bounds(self, config: Config, cell_of: CellOf | None) -> None:
        """Clamps, in place, rows that have left their bounds. ``cell_of``: None for the coarse model."""


def lr_scale_of(cameras: Sequence[Camera], config: Config) -> float:
    """``optim.lr_scale``, or if it is None the radius of the block's cameras in training units [MGS]."""
    return config.optim.lr_scale or camera_radius(torch.stack([c.center for c in cameras]))
