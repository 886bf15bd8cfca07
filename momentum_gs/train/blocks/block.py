"""A block in training: everything that belongs to it and must survive while other blocks train."""

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
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.splats import Model, Splats
from momentum_gs.render.view import ViewRender
from momentum_gs.train.blocks.running_score import RunningScore
from momentum_gs.train.decoders.learner import DecoderLearner
from momentum_gs.train.growth.report import GrowthReport, RowStats
from momentum_gs.train.optim import row_optimizer

AnyBlock = TypeVar("AnyBlock", bound="Block")

CellOf = Callable[[Float[Tensor, "m 3"]], Int64[Tensor, "m"]]
"""The block whose cell holds a world point, float64."""


@dataclass
class Block(ABC):
    """One block, whatever it is made of. Views, growth draws and schedules are keyed by (seed, block, step), so no
    generator or cursor has to be carried: ``step`` is all of them."""

    MODEL: ClassVar[type[Anchors] | type[Splats]]
    STATS: ClassVar[type[RowStats]]
    NUMBERS: ClassVar[tuple[str, ...]] = ("lr_scale",)
    """Fields that are kept with an inactive block, beside tensors, ``block`` and ``step``."""
    CAP: ClassVar[str]
    """Settings that bound its rows, for messages."""

    block: int
    model: Model
    """Of type ``MODEL``."""
    optimizer: Adam
    """Moves the learnable rows of the model, one group each."""
    stats: RowStats
    """Of type ``STATS``."""
    lr_scale: float
    """``optim.lr_scale``, or the radius of the block's cameras."""
    step: int = 0
    """Block steps done."""
    cell_of: CellOf | None = None
    """The block of a place, where rows may only be added inside the block's own cell; None: anywhere."""
    fixed: Bool[Tensor, "n"] | None = None
    """Rows that are drawn but do not learn (``train/boundary_finetuning.py``); None: all learn. Follows from the
    round."""
    windows: Bool[Tensor, "v 32 32"] | None = None
    """Squares that the block owns in each of its training views (``blocks.windows``); None: it trains all pixels."""
    around: Model | None = None
    """The other blocks' rows that its windows see, as they were when the round began: drawn, held fixed."""
    own: DecoderLearner | None = None
    """The block's decoder where each has its own (``blocks.decoder=per_block``)."""
    score: RunningScore = field(default_factory=RunningScore)
    """Of the views trained since the last measurement (``weighting.source=running``)."""

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
            stats: What is counted already; None: nothing.
            numbers: The fields of ``NUMBERS``.
        """
        own = DecoderLearner(config, model.position.device) if config.per_block_decoders else None
        state = cls(
            block=block, model=model, optimizer=row_optimizer(model, config.optim.eps),
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
        """A block at step 0 from its initial points, with its learning-rate scale from its own cameras [MGS]."""

    @abstractmethod
    def set_rates(self, config: Config) -> None:
        """The learning rates of the block's step."""

    @abstractmethod
    def count_and_grow(self, view: ViewRender, config: Config) -> GrowthReport | None:
        """Counts the view's gradients; adds and removes rows where the step is due."""

    @property
    def inside(self) -> Callable[[Tensor], Tensor] | None:
        """Which places [M,3] rows may be added at; None: all."""
        cell_of = self.cell_of
        return None if cell_of is None else lambda places: cell_of(places.double()) == self.block

    def after_backward(self, view: ViewRender, config: Config) -> GrowthReport | None:
        """What a block does between backward pass and optimizer step: it grows, or lets its fixed rows rest."""
        if self.fixed is not None:
            self.rest_fixed()
            return None
        return self.count_and_grow(view, config)

    def rest_fixed(self) -> None:
        """Takes the gradient from the rows that do not learn, after the backward pass.

        They have no moments, so Adam leaves them where they are.
        """
        for name in self.MODEL.LEARNABLE:
            grad = self.model.rows()[name].grad
            if self.fixed is not None and grad is not None:
                grad[self.fixed] = 0

    @abstractmethod
    def keep_bounds(self, config: Config, cell_of: CellOf | None) -> None:
        """Puts back, in place, what the steps have moved out of its bounds. ``cell_of``: None for the coarse model."""


def lr_scale_of(cameras: Sequence[Camera], config: Config) -> float:
    """``optim.lr_scale``, or the radius of a block's cameras, training units [MGS]."""
    return config.optim.lr_scale or camera_radius(torch.stack([c.center for c in cameras]))
