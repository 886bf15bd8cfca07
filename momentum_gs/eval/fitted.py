"""The *fitted* scores: an affine correction of colours fitted on an image's left half, scored on its right half.

Exposure and white balance differ from image to image, and a model cannot know those of a held-out image. NeRF in the
Wild (Martin-Brualla et al. 2021, section 4) therefore fits the appearance of a held-out image on its left half and
scores the right half, which the fit does not use. Colour correction over the whole image (``_cc``) fits a quadratic to
the pixels that are scored, so its scores are more optimistic.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.image import Mask, psnr, ssim
from momentum_gs.eval.lpips_metric import Lpips

SATURATED = 0.5 / 255
"""Values closer than this to 0 or 1 are saturated and not used in the fit: half a step of 8 bits, as in colour
correction."""
RIDGE = 1 / (12 * 255**2)
"""Weight per pixel of the regularization towards no correction: the variance of rounding a channel to 8 bits. Colours
are not corrected along directions in which they vary less than that."""


def fit_affine(image: Float[Tensor, "3 h w"], reference: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 4"]:
    """The affine map of colours that takes ``image`` closest to ``reference``: least squares with a small ridge.

    Pixels with a saturated channel in either image are left out; if none remains, the map is the identity.

    Args:
        image: The render, in [0, 1].
        reference: The target image, in [0, 1].

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
    """``PSNR_fit``, ``SSIM_fit`` and LPIPS (``_fit``) of the right half after the fit; ``PSNR_right``, its raw PSNR.

    The raw score separates the effect of the fit from that of the half. With an odd number of columns, the middle one
    belongs to the right half.

    Args:
        render: In [0, 1]; black at pixels that the mask ignores, which keeps them out of the fit.
        truth: The target image, likewise.
        lpips: The metric; None leaves it out.
        mask: Pixels that count; if none of the right half does, no scores are returned.
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
