"""An inactive block: tensors by name, as memory, files and other ranks take it, for blocks of either primitive."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Adam

from momentum_gs.config.schema import Config
from momentum_gs.core.device import to_host
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.splats import Splats
from momentum_gs.train.blocks.anchor_block import BlockState
from momentum_gs.train.blocks.running_score import RunningScore
from momentum_gs.train.blocks.splat_block import SplatBlock
from momentum_gs.train.decoders.learner import DecoderLearner
from momentum_gs.train.growth.anchors import GrowthStats
from momentum_gs.train.growth.splats import SplatStats
from momentum_gs.train.optim import anchor_optimizer, splat_optimizer

Block = BlockState | SplatBlock
"""A block in training, whatever it is made of."""
ROWS = "anchors."
"""What the names of a inactive block's rows begin with, of anchors and of splats."""


@dataclass(frozen=True)
class PackedBlock:
    """An inactive block: host tensors by name and what is not a tensor."""

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
    if config.per_block_decoders:
        own = DecoderLearner(config, device)
        own.load_tensors(part("decoder."))
    return BlockState(
        block, anchors, optimizer, GrowthStats.from_rows(stats), float(packed.meta["voxel_size"]), lr_scale, step,
        own=own, score=score,
    )  # fmt: skip
