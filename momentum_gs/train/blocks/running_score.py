"""A block's score on the views that it trains on, from the renders of training: it costs no extra render."""

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.image import psnr, ssim
from momentum_gs.core.types import TargetImage


class RunningScore:
    """Sums of scores over views; images without a pixel that counts are left out."""

    def __init__(self, sums: Float[Tensor, "3"] | None = None) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64) if sums is None else sums
        """PSNR in dB, SSIM, number of views."""

    @torch.no_grad()
    def add(self, image: Float[Tensor, "3 h w"], target: TargetImage) -> None:
        """Adds a view, rendered before the optimizer step."""
        counts = target.counts
        if counts is None or counts.any():
            image = image.clamp(0, 1)
            scores = psnr(image, target.image, counts), ssim(image, target.image, target.mask, target.weights)
            self.sums += torch.stack([*scores, torch.ones_like(scores[0])]).to(self.sums)

    def take(self) -> tuple[float, float] | None:
        """Mean PSNR (dB) and SSIM of the views added since the last call; None if there are none."""
        psnr_sum, ssim_sum, count = self.sums.tolist()
        self.sums = torch.zeros_like(self.sums)
        return (psnr_sum / count, ssim_sum / count) if count else None
