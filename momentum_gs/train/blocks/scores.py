"""The blocks' scores on their own training views, and the loss weights that follow from them (eq. 7)."""

import torch
from torch import Tensor

from momentum_gs.config.schema import WeightingConfig
from momentum_gs.core.comm import Comm
from momentum_gs.train.blocks.weight import block_weights


class ScoreTable:
    """Smoothed PSNR and SSIM of every block; the same on every rank."""

    def __init__(self, n: int, config: WeightingConfig) -> None:
        self.scores = torch.full((n, 2), float("nan"), dtype=torch.float64)
        """[B,2] PSNR (dB) and SSIM; NaN before a block's first measurement."""
        self._config = config

    def update(self, measured: dict[int, tuple[float, float]], comm: Comm) -> None:
        """Adds the new measurements of all ranks; every rank must call it, even without measurements.

        ``measured``: block -> (PSNR in dB, SSIM), of this rank's blocks.
        """
        # Sums over ranks of (psnr, ssim, count): each block is measured by one rank, so the sums are its values.
        table = torch.zeros(len(self.scores), 3, dtype=torch.float64)
        for block, (psnr, ssim) in measured.items():
            table[block] = torch.tensor([psnr, ssim, 1.0], dtype=torch.float64)
        comm.all_reduce_sum_(table)
        new = table[:, 2] > 0
        first = new & self.scores[:, 0].isnan()
        keep = self._config.smoothing
        self.scores[new & ~first] = keep * self.scores[new & ~first] + (1 - keep) * table[new & ~first, :2]
        self.scores[first] = table[first, :2]

    def weights(self) -> Tensor:
        """[B] float32 weights of the blocks' losses, in [1, 2); 1 for blocks that have not been measured."""
        weights = torch.ones(len(self.scores))
        known = ~self.scores[:, 0].isnan()
        if self._config.enabled and bool(known.any()):
            psnr, ssim = self.scores[known].unbind(1)
            scales = self._config.ssim_scale, self._config.psnr_scale
            weights[known] = block_weights(psnr, ssim, self._config.sigma, *scales).float()
        return weights
