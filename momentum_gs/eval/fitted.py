"""The *fitted* scores: an affine correction of colours fitted on an image's left half, scored on its right half.

Exposure and white balance differ from image to image, and nothing tells a model those of a held-out image. NeRF in the
Wild (Martin-Brualla et al. 2021, section 4) therefore fits a held-out image's appearance on the left half of it and
scores the right half, which the fit has not seen. Colour correction over the whole image (``_cc``) is fitted to the
very pixels that it is scored on, and by a quadratic: it flatters more.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.image import Mask, psnr, ssim
from momentum_gs.eval.lpips_metric import Lpips

SATURATED = 0.5 / 255
"""Values closer than this to 0 or 1 say nothing of how colours differ: half a step of 8 bits, as colour correction."""
RIDGE = 1 / (12 * 255**2)
"""Weight of the pull towards no correction, for each pixel of the fit: the variance that rounding to 8 bits gives to
every channel. A direction in which the colours of the half vary less than that is left as it is."""


def fit_affine(image: Float[Tensor, "3 h w"], reference: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 4"]:
    """The affine map of colours that takes ``image`` nearest to ``reference``, least squares with a small ridge.

    Pixels of which any channel is saturated in either image are left out; where none remains the map is the identity.

    Args:
        image: The render, in [0, 1].
        reference: The image that the render is held against, likewise.

    Returns:
        [A | b] with corrected = A colour + b, float64.
    """
    pixels, target = image.flatten(1).double(), reference.flatten(1).double()
    both = torch.cat([pixels, target])
    usable = ((both >= SATURATED) & (both <= 1 - SATURATED)).all(dim=0)
    pixels, target = pixels[:, usable], target[:, usable]
    terms = torch.cat([pixels, torch.ones_like(pixels[:1])])
    identity = torch.eye(4, dtype=terms.dtype, device=terms.device)
    normal = terms @ terms.T + RIDGE * max(1, terms.shape[1]) * identity
    return identity[:3] + torch.linalg.solve(normal, terms @ (target - pixels).T).T


def apply_affine(affine: Float[Tensor, "3 4"], image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """The image with its colours mapped, clamped to [0, 1], in its own dtype."""
    colors = affine[:, :3] @ image.flatten(1).to(affine) + affine[:, 3:]
    return colors.clamp(0, 1).reshape(image.shape).to(image.dtype)


def score_fitted(
    render: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"], lpips: Lpips | None, mask: Mask = None
) -> dict[str, float]:
    """``PSNR_fit``, ``SSIM_fit`` and LPIPS likewise of the right half, and ``PSNR_right``, its raw PSNR, so that what
    the fit does can be told from what the half does. Of an odd number of columns the middle one is to the right.

    Args:
        render: Black where the mask ignores pixels, which keeps them out of the fit.
        truth: Likewise.
        lpips: The metric; None leaves it out.
        mask: Pixels that count; where none of the right half does, there are no scores.
    """
    half = render.shape[2] // 2
    affine = fit_affine(render[:, :, :half], truth[:, :, :half])
    right, wanted = render[:, :, half:].contiguous(), truth[:, :, half:].contiguous()
    counts = None if mask is None else mask[:, :, half:].contiguous()
    if counts is not None and not counts.any():
        return {}
    fitted = apply_affine(affine, right)
    if counts is not None:
        fitted = fitted * counts
    scores = {
        "PSNR_right": float(psnr(right, wanted, counts)),
        "PSNR_fit": float(psnr(fitted, wanted, counts)),
        "SSIM_fit": float(ssim(fitted, wanted, counts)),
    }
    if lpips is not None:
        scores[f"{lpips.metric}_fit"] = lpips(fitted, wanted)
    return scores
