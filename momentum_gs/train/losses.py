"""The loss as a dict of named terms whose sum is what a step minimises (eq. 6).

A view that shows no Gaussian gives zero, not NaN, for every term that is a mean over Gaussians, and keeps its graph.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from momentum_gs.config.schema import Config, LossConfig
from momentum_gs.core.image import l1, ssim
from momentum_gs.core.types import TargetImage
from momentum_gs.model.expand import Decoded, TeacherTargets

IMAGE_TERMS = ("l1", "dssim", "volume")
"""Terms of every step."""
BACKGROUND = 0.01
"""Weight of the learned background's own distance from the images. Where pixels are left open they decide its colour;
where none is, it becomes the images' usual colour, which is the best guess for what no image has seen."""
CONSISTENCY_TERMS = ("consistency_color", "consistency_rotation", "consistency_scale", "consistency_opacity")
"""Terms of the steps that have a teacher."""


def image_terms(config: Config) -> tuple[str, ...]:
    """The terms of every step with these settings, without those of a teacher."""
    behind = ("background",) if config.model.background != "fixed" else ()
    depth = ("depth",) if config.loss.depth else ()
    return IMAGE_TERMS + behind + depth


def loss_terms(
    image: Float[Tensor, "3 h w"],
    target: TargetImage,
    decoded: Decoded,
    targets: TeacherTargets | None,
    config: Config,
    behind: Float[Tensor, "3 h w"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """All terms of one view, each times its weight: ``IMAGE_TERMS``, and with a teacher ``CONSISTENCY_TERMS``.

    Pixels that the target's mask ignores give no gradient to the image, so none to growth's statistics either. Of a
    part of a view the terms are multiplied by its share, so that the blocks' image terms sum to the whole view's.
    """
    terms = reconstruction(image, target, config.loss)
    terms["volume"] = config.loss.volume * volume(decoded.gaussians.scales)
    if behind is not None:
        terms["background"] = BACKGROUND * l1(behind, target.image, target.mask, target.weights)
    if targets is not None:
        parts = consistency(decoded, targets)
        terms |= {f"consistency_{name}": config.teacher.consistency * part for name, part in parts.items()}
    if target.weights is None:
        return terms
    return {name: target.share * term for name, term in terms.items()}


def reconstruction(
    image: Float[Tensor, "3 h w"], target: TargetImage, config: LossConfig
) -> dict[str, Float[Tensor, ""]]:
    """``(1 - dssim) * L1`` and ``dssim * (1 - SSIM)`` (eq. 3 with the weights of the official code)."""
    return {
        "l1": (1 - config.dssim) * l1(image, target.image, target.mask, target.weights),
        "dssim": config.dssim * (1 - ssim(image, target.image, target.mask, target.weights)),
    }


def volume(scales: Float[Tensor, "g 3"]) -> Float[Tensor, ""]:
    """Mean over the Gaussians of the product of their scales, cubic training units (Scaffold-GS, eq. 9 there)."""
    x, y, z = scales.unbind(1)
    return (x * y * z).sum() / max(len(scales), 1)


def consistency(decoded: Decoded, targets: TeacherTargets) -> dict[str, Float[Tensor, ""]]:
    """Mean squared differences between student and teacher (eq. 5).

    Color, rotation and scale over the Gaussians that the student keeps, opacity over all offsets of the visible
    anchors. Source: gaussian_renderer/__init__.py::render_with_consistency_loss of Momentum-GS.
    """
    gaussians = decoded.gaussians
    return {
        "color": _mse(gaussians.colors, targets.color),
        "rotation": _mse(gaussians.quats, targets.rotation),
        "scale": _mse(gaussians.scales, targets.scale),
        "opacity": _mse(decoded.neural_opacity, targets.neural_opacity),
    }


def _mse(a: Tensor, b: Tensor) -> Tensor:
    """Zero for empty tensors, where torch's own mean is NaN."""
    return F.mse_loss(a, b, reduction="sum") / max(a.numel(), 1)
