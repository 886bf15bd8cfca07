"""Bounds on the number of anchors of a block: given, or derived from memory."""

import torch

from momentum_gs.config.schema import AnchorsConfig, Config, ModelConfig
from momentum_gs.core.device import free_device_memory
from momentum_gs.core.rows import MOMENTS
from momentum_gs.model.anchors import Anchors
from momentum_gs.train.growth.anchors import GrowthStats

MEMORY_SHARE = 0.5
"""Share of the free memory for a block's anchors; images and the decoder's activations take the rest."""


def bytes_per_anchor(model: ModelConfig) -> int:
    """Bytes that an anchor takes while its block trains: rows, gradients, Adam's moments, growth statistics."""
    zeros = torch.zeros
    anchors = Anchors.fresh(zeros(1, 3), zeros(1, model.feature_dim), zeros(1, 6), model.n_offsets)
    rows = anchors.rows()
    learn = sum(rows[name].nbytes for name in anchors.LEARNABLE)
    kept = sum(row.nbytes for row in (*rows.values(), *GrowthStats.zeros(anchors).rows().values()))
    return kept + (1 + len(MOMENTS)) * learn


def max_anchors(config: AnchorsConfig, model: ModelConfig) -> int | None:
    """Number of anchors at which a block stops growing; None: no bound. 0 if the memory does not hold one anchor."""
    bounds = [] if config.max_per_block is None else [config.max_per_block]
    if config.max_gb_per_block is not None:
        bounds.append(int(config.max_gb_per_block * 2**30) // bytes_per_anchor(model))
    return min(bounds, default=None)


def anchors_that_fit(config: Config, device: torch.device) -> int:
    """Largest number of anchors of a block: ``max_anchors``, or if that is unbounded what the free memory holds."""
    limit = max_anchors(config.anchors, config.model)
    if limit is None:
        limit = int(MEMORY_SHARE * free_device_memory(device)) // bytes_per_anchor(config.model)
    return limit
