"""Dropout of Gaussians: a step renders a random part of them, so that none can rely on its neighbours.

Source: Distilled-3DGS, section on teachers; the paper names no compensation, the one here is ours.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.config.schema import DistillConfig
from momentum_gs.train.growth.report import Draw


def dropout_rate(step: int, config: DistillConfig) -> float:
    """Share of the Gaussians to drop in a step: 0 at ``from_step``, ``dropout`` at ``until``, linear between.

    Args:
        step: Number of the block's step, from 1.
        config: ``dropout``, ``dropout_every``, ``from_step`` and ``until``.

    Returns:
        In [0, 1); 0 outside these steps and in steps without dropout.
    """
    first, last = config.from_step, config.until
    if not first <= step <= last or step % config.dropout_every:
        return 0.0
    return config.dropout * (step - first) / max(last - first, 1)


@torch.no_grad()
def opacity_factors(opacity: Float[Tensor, "n 1"], rate: float, draw: Draw) -> Float[Tensor, "n 1"]:
    """Factors on opacities: 0 for Gaussians that are dropped, 1 / (probability of being kept) for the others.

    A Gaussian o is kept with probability max(1 - rate, o). So no opacity exceeds 1, and every opacity has its own value
    as its expectation. As draws are independent, and a pixel's colour has each Gaussian's opacity in every term at most
    once and linearly, the expectation of the render is the render without dropout. With a rate of 0.2, Gaussians of an
    opacity above 0.8 are dropped less often than that; with the same rate for all, they would come out too faint.

    Args:
        opacity: In (0, 1).
        rate: Share to drop, in [0, 1).
        draw: Called with the row of each Gaussian.
    """
    kept = opacity.clamp_min(1 - rate)
    uniform = draw(0, torch.arange(len(opacity), device=opacity.device)).to(opacity)[:, None]
    return torch.where(uniform < kept, 1 / kept, 0.0)
