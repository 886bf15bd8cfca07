"""Image math. Images are [3,H,W] in [0, 1]."""

import torch
from fused_ssim import fused_ssim, image_loss
from jaxtyping import Float, UInt8
from torch import Tensor

Mask = Float[Tensor, "1 h w"] | None
"""1 where a pixel counts, 0 where it is ignored; None: all count."""

Weights = Float[Tensor, "h w"] | None
"""How much each pixel counts, at least 0, without a gradient; None: all alike."""


def l1(
    a: Float[Tensor, "3 h w"], b: Float[Tensor, "3 h w"], mask: Mask = None, weights: Weights = None
) -> Float[Tensor, ""]:
    """Mean absolute difference over the pixels that count; 0 where none does.

    A pixel counts by its weight, or by weights * mask where both are given. ``b`` has no gradient.

    Raises:
        ValueError: ``b``, mask or weights require a gradient.
    """
    return image_loss(a, b, 0.0, weights, mask)[0]


def psnr(a: Float[Tensor, "3 h w"], b: Float[Tensor, "3 h w"], mask: Mask = None) -> Float[Tensor, ""]:
    """Peak signal-to-noise ratio in dB over the pixels that count (one mean over the channels, as in 3DGS
    metrics.py).

    Infinite for images that are equal there.
    """
    square = (a - b).square()
    if mask is None:
        return -10 * torch.log10(square.mean())
    counts = mask.sum()
    return -10 * torch.log10((square * mask).sum() / (3 * torch.where(counts > 0, counts, 1)))


def ssim(
    a: Float[Tensor, "3 h w"], b: Float[Tensor, "3 h w"], mask: Mask = None, weights: Weights = None
) -> Float[Tensor, ""]:
    """Mean structural similarity: 11x11 Gaussian window of sigma 1.5, zero padding (3DGS utils/loss_utils.py::ssim).

    With a mask, ignored pixels are made black in both images, so that they do not influence any window, and 1 - SSIM is
    summed over all windows and divided by the number of pixels that count. A window with ignored pixels only adds
    nothing; a window at the border of the mask compares the pixels in it that count.

    With weights it is the mean over the windows, each by the weight of its central pixel. Windows see the pixels around
    as they are, whatever those weigh: nothing is made black.

    With both, images are made black by the mask alone, the sum of 1 - SSIM is over all windows by their weights, and it
    is divided by the sum of weights * mask. So weights of one change nothing beside a mask, nor does a mask of ones
    beside weights; and where several weights sum to one at every pixel, their values of 1 - SSIM, each times its share
    of the pixels that count, sum to that of the mask alone. It is 1, with zero gradient, where weights * mask is 0
    everywhere: what its windows see of other pixels is then in none of those values.
    """
    if mask is None:
        return fused_ssim(a[None], b[None], weights=weights)
    whole = fused_ssim((a * mask)[None], (b * mask)[None], weights=weights)
    if weights is None:
        return 1 - (1 - whole) * (mask.numel() / mask.sum().clamp_min(1))
    counted = (weights * mask).sum()
    return 1 - (1 - whole) * torch.where(counted > 0, weights.sum() / counted, 0)


def l1_dssim(
    render: Float[Tensor, "3 h w"],
    target: Float[Tensor, "3 h w"],
    dssim: float,
    mask: Mask = None,
    weights: Weights = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """``(1 - dssim) * l1`` and ``dssim * (1 - ssim)`` in one pass, which also computes the gradient for the render.

    They differ from those by round-off, and ignored pixels may hold anything, even NaN. The target has no gradient.

    Raises:
        ValueError: target, mask or weights require a gradient.
    """
    return image_loss(render, target, dssim, weights, mask)


def to_uint8(image: Float[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    """Round to 8 bits; values outside [0, 1] are clamped."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def color_correct(
    image: Float[Tensor, "3 h w"], reference: Float[Tensor, "3 h w"], iterations: int = 5, eps: float = 0.5 / 255
) -> Float[Tensor, "3 h w"]:
    """Warp the colours of ``image`` to those of ``reference``, for the colour-corrected metrics.

    Each output channel is a quadratic polynomial of the three input channels, fitted by least squares over the whole
    image, and the fit is repeated on its own (clamped) result. A pixel takes part in a channel's fit only if the
    original render, the current one and the reference are all unsaturated there. A channel without such pixels is left
    unchanged. Source of the method: Mip-NeRF 360's evaluation (Barron et al. 2022).

    Args:
        image: The render.
        reference: The target image.
        iterations: Number of fits; 5 as in Momentum-GS render/metrics.
        eps: Values closer than this to 0 or 1 count as saturated: half a step of 8 bits.

    Returns:
        The warped image in [0, 1], in the dtype of ``image``; computed in float64, because the fit squares colours and
        then sums half a million of them.
    """
    pixels, target = image.flatten(1).double(), reference.flatten(1).double()
    usable = _unsaturated(pixels, eps) & _unsaturated(target, eps)
    for _ in range(iterations):
        terms = _quadratic_terms(pixels)
        masks = usable & _unsaturated(pixels, eps)
        pixels = torch.stack(
            [
                (_least_squares(terms * mask, wanted * mask) @ terms).clamp(0, 1) if mask.any() else channel
                for mask, wanted, channel in zip(masks, target, pixels, strict=True)
            ]
        )
    return pixels.reshape(image.shape).to(image.dtype)


def _unsaturated(x: Tensor, eps: float) -> Tensor:
    return (x >= eps) & (x <= 1 - eps)


def _quadratic_terms(pixels: Float[Tensor, "3 n"]) -> Float[Tensor, "10 n"]:
    """1, r, g, b and their six products, one row each."""
    rows, columns = torch.triu_indices(3, 3, device=pixels.device)
    return torch.cat([torch.ones_like(pixels[:1]), pixels, pixels[rows] * pixels[columns]])


def _least_squares(terms: Float[Tensor, "t n"], wanted: Float[Tensor, "n"]) -> Float[Tensor, "t"]:
    """The shortest x that minimises |x @ terms - wanted|, by the normal equations and one step of refinement.

    The refinement recovers the digits that are lost because the normal equations square the condition number. rtol is
    1e-13, because a direction whose share of the energy is below float64's round-off (2e-16 summed over 10 terms and
    many pixels) is not spanned by the colours, as in a grey or uniform image.
    """
    inverse = torch.linalg.pinv(terms @ terms.T, hermitian=True, rtol=1e-13)
    x = inverse @ (terms @ wanted)
    return x + inverse @ (terms @ (wanted - x @ terms))
