"""Everything that belongs to one block and must survive while other blocks train."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.optim import Adam

from momentum_gs.config.schema import Config
from momentum_gs.core.device import to_host
from momentum_gs.core.geometry import camera_radius
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.model.anchors import LEARNABLE, Anchors
from momentum_gs.model.init import init_anchors
from momentum_gs.model.splats import Splats
from momentum_gs.render.view import ViewRender
from momentum_gs.train.anchor_budget import max_anchors
from momentum_gs.train.densify import GrowthReport, GrowthStats, grow_and_prune
from momentum_gs.train.densify_splats import SplatStats
from momentum_gs.train.learner import DecoderLearner
from momentum_gs.train.optim import anchor_optimizer, set_anchor_lr, splat_optimizer
from momentum_gs.train.running_score import RunningScore
from momentum_gs.train.splat_block import SplatBlock


@dataclass
class BlockState:
    """One block of anchors in training. Views, growth draws and schedules are keyed by (seed, block, step), so no
    generator or cursor has to be carried: ``step`` is all of them."""

    block: int
    anchors: Anchors
    optimizer: Adam
    stats: GrowthStats
    voxel_size: float
    """Edge of the finest voxel, scene units."""
    lr_scale: float
    """Radius of the block's cameras, the family's spatial_lr_scale."""
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

    def rest_fixed(self) -> None:
        """Takes the gradient from the anchors that do not learn, after the backward pass.

        They have no moments, so Adam leaves them where they are.
        """
        for name in LEARNABLE:
            grad = self.anchors.rows()[name].grad
            if self.fixed is not None and grad is not None:
                grad[self.fixed] = 0


Block = BlockState | SplatBlock
"""A block in training, whatever it is made of."""
ROWS = "anchors."
"""What the names of a resting block's rows begin with, of anchors and of splats."""


def init_block(
    block: int, points: PointCloud, cameras: list[Camera], config: Config, device: torch.device
) -> BlockState:
    """A block at step 0 from its initial points, with its learning-rate scale from its own cameras [MGS]."""
    anchors, voxel_size = init_anchors(points, config.model)
    anchors = anchors.to(device)
    lr_scale = camera_radius(torch.stack([c.center for c in cameras]))
    optimizer = anchor_optimizer(anchors, config.optim, lr_scale)
    own = DecoderLearner(config, device) if config.own_decoders else None
    return BlockState(block, anchors, optimizer, GrowthStats.zeros(anchors), voxel_size, lr_scale, own=own)


@dataclass(frozen=True)
class PackedBlock:
    """A block at rest: host tensors by name and what is not a tensor."""

    tensors: dict[str, Tensor]
    meta: dict[str, int | float]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def pack(state: Block) -> PackedBlock:
    """Takes a block apart. On the CPU the tensors are the block's own: drop the state, or copy, before training on."""
    tensors = {f"stats.{k}": v for k, v in state.stats.rows().items()}
    for name, row in state.model.rows().items():
        tensors[f"{ROWS}{name}"] = row.detach()
        tensors |= {f"adam.{name}.{k}": v for k, v in state.optimizer.state.get(row, {}).items()}
    tensors["score"] = state.score.sums
    meta = {"block": state.block, "step": state.step, "lr_scale": state.lr_scale}
    if isinstance(state, BlockState):
        meta["voxel_size"] = state.voxel_size
        if state.own is not None:
            tensors |= {f"decoder.{k}": v.detach() for k, v in state.own.to_tensors().items()}
    return PackedBlock({k: to_host(v) for k, v in tensors.items()}, meta)


def unpack(packed: PackedBlock, config: Config, device: torch.device) -> Block:
    """The inverse of ``pack``, bit for bit."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in packed.tensors.items() if k.startswith(prefix)}

    def with_moments(optimizer: Adam) -> Adam:
        for group in optimizer.param_groups:
            state = part(f"adam.{group['name']}.")
            if state:
                optimizer.state[group["params"][0]] = {k: v.to(device) for k, v in state.items()}
        return optimizer

    block, step, lr_scale = int(packed.meta["block"]), int(packed.meta["step"]), float(packed.meta["lr_scale"])
    stats = {k: v.to(device) for k, v in part("stats.").items()}
    # A file of an earlier version has no score, which nothing had been added to.
    score = RunningScore(packed.tensors["score"]) if "score" in packed.tensors else RunningScore()
    if config.model.primitive == "gaussians":
        splats = Splats.from_rows(part(ROWS)).to(device)
        optimizer = with_moments(splat_optimizer(splats, config.optim, config.gaussians, lr_scale))
        return SplatBlock(block, splats, optimizer, SplatStats.from_rows(stats), lr_scale, step, score)
    anchors = Anchors.from_rows(part(ROWS)).to(device)
    optimizer = with_moments(anchor_optimizer(anchors, config.optim, lr_scale))
    own = None
    if config.own_decoders:
        own = DecoderLearner(config, device)
        own.load_tensors(part("decoder."))
    return BlockState(
        block, anchors, optimizer, GrowthStats.from_rows(stats), float(packed.meta["voxel_size"]), lr_scale, step,
        own=own, score=score,
    )  # fmt: skip
