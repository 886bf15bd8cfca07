"""The same SSIM in readable PyTorch, which documents the kernels and is the reference of their tests."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

RADIUS, SIGMA = 5, 1.5
C1, C2 = 0.01**2, 0.03**2


def mean_ssim(img1: Tensor, img2: Tensor, padding: str = "same", weights: Tensor | None = None) -> Tensor:
    """Mean SSIM of [B,C,H,W] images; autograd gives the gradient. See ``ops.fused_ssim``."""
    ssim = ssim_map(img1, img2, padding)
    if weights is None:
        return ssim.mean()
    total = weights.sum()
    planes = img1.shape[0] * img1.shape[1]
    return 1 - (weights * (1 - ssim)).sum() / (planes * torch.where(total > 0, total, 1))


def ssim_map(img1: Tensor, img2: Tensor, padding: str = "same") -> Tensor:
    """SSIM at each pixel, of [B,C,H,W] images: that shape too, or [B,C,H-10,W-10] for ``valid``."""
    channels = img1.shape[1]
    distance = torch.arange(-RADIUS, RADIUS + 1, dtype=img1.dtype, device=img1.device)
    window = torch.exp(-(distance**2) / (2 * SIGMA**2))
    window = window / window.sum()
    kernel = (window[:, None] * window[None, :]).expand(channels, 1, -1, -1)

    def blur(image: Tensor) -> Tensor:
        return conv2d(image, kernel, padding=RADIUS if padding == "same" else 0, groups=channels)

    mean1, mean2 = blur(img1), blur(img2)
    variance1 = blur(img1 * img1) - mean1**2
    variance2 = blur(img2 * img2) - mean2**2
    covariance = blur(img1 * img2) - mean1 * mean2
    luminance = (2 * mean1 * mean2 + C1) / (mean1**2 + mean2**2 + C1)
    structure = (2 * covariance + C2) / (variance1 + variance2 + C2)
    return luminance * structure


def image_loss(
    render: Tensor, target: Tensor, dssim: float, weights: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(1 - dssim) * L1 and dssim * (1 - SSIM) of [C,H,W] images; autograd gives the gradient. See
    ``ops.image_loss``."""
    ones = torch.ones_like(render[:1])
    weights, mask = ones if weights is None else weights[None], ones if mask is None else mask
    render, target = (torch.where(mask == 0, 0, mask * image) for image in (render, target))
    counts = (weights * mask).sum()
    by = torch.where(counts == 0, 0, 1 / (len(render) * counts))
    distance = (weights * (render - target).abs()).sum()
    dissimilarity = (weights * (1 - ssim_map(render[None], target[None])[0])).sum()
    return (1 - dssim) * by * distance, dssim * by * dissimilarity
