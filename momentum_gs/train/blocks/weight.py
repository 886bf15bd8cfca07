"""Reconstruction-guided weights of the blocks."""

from jaxtyping import Float
from torch import Tensor


def block_weights(
    psnr: Float[Tensor, "b"],
    ssim: Float[Tensor, "b"],
    sigma: float,
    ssim_scale: float = 10.0,
    psnr_scale: float = 1.0,
) -> Float[Tensor, "b"]:
    """Weight of every block's loss, in [1, 2): 1 for a block with the best PSNR and SSIM, more for worse ones (eq. 7).

    ``w = 2 - exp(-((psnr_scale * dPSNR)^2 + (ssim_scale * dSSIM)^2) / (2 sigma^2))``, where dPSNR (dB) and dSSIM are
    the differences to the best block's. So lambda of eq. 7 is ``ssim_scale`` squared, 100 in the official code
    (train.py::training). A scale of 0 ignores its metric (Table 4).
    """
    below_psnr = psnr_scale * (psnr.max() - psnr)
    below_ssim = ssim_scale * (ssim.max() - ssim)
    return 2 - ((below_psnr.square() + below_ssim.square()) / (-2 * sigma**2)).exp()
