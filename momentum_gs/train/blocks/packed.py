"""An inactive block: tensors by name, as memory, files and other ranks take it, for blocks of either primitive."""

from dataclasses import dataclass

import torch
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.device import to_host
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.running_score import RunningScore
from momentum_gs.train.blocks.splat_block import SplatBlock

ROWS = "rows."
"""What the names of an inactive block's rows begin with."""
_RENAMED = (("anchors.", ROWS), ("stats.anchor_demon", "stats.anchor_denom"))
"""(Beginning of a tensor's name in files of version 0.1, what it is now)."""


@dataclass(frozen=True)
class PackedBlock:
    """An inactive block: host tensors by name and what is not a tensor."""

    tensors: dict[str, Tensor]
    meta: dict[str, int | float]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def block_kind(config: Config) -> type[Block]:
    """The blocks of an experiment, as ``model.primitive`` says."""
    return SplatBlock if config.model.primitive == "gaussians" else AnchorBlock


def current_name(name: str) -> str:
    """What a tensor of a block's file is called now. Files of earlier versions are read with their names as they are,
    and only here is known what these were."""
    for old, new in _RENAMED:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def pack(state: Block) -> PackedBlock:
    """Takes a block apart. On the CPU the tensors are the block's own: drop the state, or copy, before training on."""
    tensors = {f"stats.{k}": v for k, v in state.stats.rows().items()}
    for name, row in state.model.rows().items():
        tensors[f"{ROWS}{name}"] = row.detach()
        tensors |= {f"adam.{name}.{k}": v for k, v in state.optimizer.state.get(row, {}).items()}
    tensors["score"] = state.score.sums
    if state.windows is not None:
        tensors["windows"] = state.windows
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
            state.optimizer.state[group["params"][0]] = {k: v.to(device) for k, v in moments.items()}
    # A file of version 0.1 has no score, which nothing had been added to.
    if "score" in packed.tensors:
        state.score = RunningScore(packed.tensors["score"])
    state.windows = packed.tensors.get("windows")
    if around := part("around."):
        state.around = kind.MODEL.from_rows({k: v.to(device) for k, v in around.items()})
    if state.own is not None:
        state.own.load_tensors(part("decoder."))
    return state
