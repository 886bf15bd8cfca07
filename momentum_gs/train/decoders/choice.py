"""Chooses the decoders of a run."""

import torch

from momentum_gs.config.schema import Config
from momentum_gs.model.background import Background
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.train.decoders.none import NoDecoder
from momentum_gs.train.decoders.per_block import PerBlockDecoders
from momentum_gs.train.decoders.shared import SharedDecoder

Decoders = SharedDecoder | PerBlockDecoders | NoDecoder
"""All three have the same interface."""


def make_decoders(
    config: Config,
    device: torch.device,
    clock_scale: float,
    start: GaussianDecoder | None = None,
    background: Background | None = None,
) -> Decoders:
    """The decoders for ``model.primitive`` and ``blocks.decoder``.

    Args:
        clock_scale: Block steps per decoder update.
        start: Weights that the shared decoder starts from; None: random ones.
        background: Fixed, behind explicit Gaussians; None: there is no learned one.
    """
    if config.model.primitive == "gaussians":
        return NoDecoder(config, background)
    return PerBlockDecoders() if config.per_block_decoders else SharedDecoder(config, device, clock_scale, start)
