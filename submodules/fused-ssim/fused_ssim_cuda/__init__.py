"""The functions of the compiled module in 3DGS codebases, for callers that bypass ``fused_ssim.fused_ssim``.

They give SSIM at every pixel, in PyTorch, on any device, with any constants; ``fused_ssim.fused_ssim`` gives the mean
alone, and is several times as fast.
"""

import math

import torch
from torch import Tensor

__all__ = ["fusedssim", "fusedssim_backward"]

RADIUS, SIGMA = 5, 1.5
"""The window of 11x11 pixels."""


@torch.no_grad()
def fusedssim(
    C1: float,  # noqa: N803 (names in 3DGS)
    C2: float,  # noqa: N803
    img1: Tensor,
    img2: Tensor,
    train: bool | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """SSIM at each pixel, zeros around the images.

    Args:
        C1: stabilizer of the means, 0.01^2 for values in [0, 1].
        C2: stabilizer of the variances, 0.03^2.
        img1: [B,C,H,W], the render.
        img2: [B,C,H,W], the target image.
        train: whether derivatives are wanted; None: as in the interface of early 2024, which returns the map alone.

    Returns:
        SSIM [B,C,H,W], and its derivatives there by the blurred mean of ``img1``, the variance of ``img1`` and the
        covariance, for ``fusedssim_backward``; empty tensors unless ``train``. The map alone if ``train`` is None.
    """
    value, *derivatives = _map(img1, img2, C1, C2)
    if train is None:
        return value
    return (value, *(derivatives if train else [img1.new_empty(0)] * 3))


@torch.no_grad()
def fusedssim_backward(
    C1: float,  # noqa: N803
    C2: float,  # noqa: N803
    img1: Tensor,
    img2: Tensor,
    dL_dmap: Tensor,  # noqa: N803
    dm_dmu1: Tensor | None = None,
    dm_dsigma1_sq: Tensor | None = None,
    dm_dsigma12: Tensor | None = None,
) -> Tensor:
    """The gradient of ``img1``.

    Args:
        C1: as for ``fusedssim``.
        C2: as for ``fusedssim``.
        img1: as for ``fusedssim``.
        img2: as for ``fusedssim``.
        dL_dmap: [B,C,H,W] gradient of the SSIM map.
        dm_dmu1: with the two others what ``fusedssim`` returned; None: they are computed again.
        dm_dsigma1_sq: see dm_dmu1.
        dm_dsigma12: see dm_dmu1.

    Returns:
        [B,C,H,W].
    """
    if dm_dmu1 is None or dm_dsigma1_sq is None or dm_dsigma12 is None:
        _, dm_dmu1, dm_dsigma1_sq, dm_dsigma12 = _map(img1, img2, C1, C2)
    by_mean, by_square, by_product = (_blur(dL_dmap * each) for each in (dm_dmu1, dm_dsigma1_sq, dm_dsigma12))
    return by_mean + 2 * img1 * by_square + img2 * by_product


def _blur(images: Tensor) -> Tensor:
    """Images [...,H,W] under the window, along one axis and then the other; as sums of shifted images, which on a CPU
    take a tenth of the time of torch's convolutions."""
    raw = [math.exp(-(k**2) / (2 * SIGMA**2)) for k in range(-RADIUS, RADIUS + 1)]
    for axis in (-1, -2):
        size = images.shape[axis]
        padded = torch.nn.functional.pad(images, (RADIUS, RADIUS) if axis == -1 else (0, 0, RADIUS, RADIUS))
        images = torch.zeros_like(images)
        for k, weight in enumerate(raw):
            images.add_(padded.narrow(axis, k, size), alpha=weight / sum(raw))
    return images


def _map(img1: Tensor, img2: Tensor, c1: float, c2: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """SSIM and its derivatives by the blurred ``img1``, ``img1 * img1`` and ``img1 * img2``, each [B,C,H,W]."""
    mean1, mean2, square1, square2, product = _blur(
        torch.stack([img1, img2, img1 * img1, img2 * img2, img1 * img2])
    ).unbind()
    over1, over2 = 2 * mean1 * mean2 + c1, 2 * (product - mean1 * mean2) + c2
    under1, under2 = mean1**2 + mean2**2 + c1, square1 - mean1**2 + square2 - mean2**2 + c2
    value = over1 * over2 / (under1 * under2)
    by_mean = 2 * (mean2 * (over2 - over1) - mean1 * value * (under2 - under1)) / (under1 * under2)
    return value, by_mean, -value / under2, 2 * over1 / (under1 * under2)
