"""An inactive block, of anchors or splats, as tensors by name: the form in which it is stored and communicated."""

from dataclasses import dataclass

import torch
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.device import to_host
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.running_score import RunningScore
from momentum_gs.train.blocks.splat_block import SplatBlock
from momentum_gs.train.optim import moments_on

ROWS = "rows."
"""Prefix of the model's rows among the tensor names."""
_RENAMED = (("anchors.", ROWS), ("stats.anchor_demon", "stats.anchor_denom"))
"""(Prefix of a tensor's name in files of version 0.1, present prefix)."""


@dataclass(frozen=True)
class PackedBlock:
    """An inactive block."""

    tensors: dict[str, Tensor]
    """Host tensors by name."""
    meta: dict[str, int | float]
    """``block``, ``step`` and the fields ``Block.NUMBERS``."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def block_kind(config: Config) -> type[Block]:
    """The class of an experiment's blocks (``model.primitive``)."""
    return SplatBlock if config.model.primitive == "gaussians" else AnchorBlock


def current_name(name: str) -> str:
    """The present name of a tensor that may come from a block file of an earlier version."""
    for old, new in _RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def pack(state: Block) -> PackedBlock:
    """Packs a block. On the CPU the tensors share memory with it: drop the block, or copy, before training on."""
    tensors = {f"stats.{k}": v for k, v in state.stats.rows().items()}
    for name, row in state.model.rows().items():
        tensors[f"{ROWS}{name}"] = row.detach()
        tensors |= {f"adam.{name}.{k}": v for k, v in state.optimizer.state.get(row, {}).items()}
    tensors["score"] = state.score.sums
    if state.around is not None:
        tensors |= {f"around.{k}": v for k, v in state.around.rows().items()}
    if state.own is not None:
        tensors |= {f"decoder.{k}": v.detach() for k, v in state.own.to_tensors().items()}
    meta = {"block": state.block, "step": state.step} | {name: getattr(state, name) for name in state.NUMBERS}
    return PackedBlock({k: to_host(v) for k, v in tensors.items()}, meta)


def unpack(packed: PackedBlock, config: Config, device: torch.device) -> Block:
    """The inverse of ``pack``, bit for bit."""

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in packed.tensors.items() if k.startswith(prefix)}

    kind = block_kind(config)
    model = kind.MODEL.from_rows(part(ROWS)).to(device)
    stats = kind.STATS.from_rows({k: v.to(device) for k, v in part("stats.").items()})
    numbers = {name: float(packed.meta[name]) for name in kind.NUMBERS}
    state = kind.of(int(packed.meta["block"]), model, config, stats=stats, **numbers)
    state.step = int(packed.meta["step"])
    for group in state.optimizer.param_groups:
        if moments := part(f"adam.{group['name']}."):
            state.optimizer.state[group["params"][0]] = moments_on(device, moments)
    # Files of version 0.1 have no score; it is empty then.
    if "score" in packed.tensors:
        state.score = RunningScore(packed.tensors["score"])
    if around := part("around."):
        state.around = kind.AROUND.from_rows({k: v.to(device) for k, v in around.items()})
    if state.own is not None:
        state.own.load_tensors(part("decoder."))
    return state
