"""The loss as a dict of named terms; their sum is the loss of a view (eq. 6).

Terms that are means over Gaussians are zero, not NaN, for a view without Gaussians, and remain differentiable.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from momentum_gs.config.schema import Config, LossConfig
from momentum_gs.core.comm import Comm
from momentum_gs.core.image import l1, l1_dssim
from momentum_gs.core.types import TargetImage
from momentum_gs.model.expand import Decoded, TeacherTargets

IMAGE_TERMS = ("l1", "dssim", "volume")
"""Terms of every step."""
BACKGROUND = 0.01
"""Weight of the L1 distance between the learned background alone and the images. It is small, so pixels that no
Gaussian covers decide the background's colour. In directions without such pixels it becomes the images' typical colour,
the best guess for what no image shows."""
KD_TERMS = ("kd_l1", "kd_dssim")
"""Terms of a student of other models."""
STRUCTURE = "structure"
"""Term of the steps that compare its Gaussians' positions with the first teacher's."""
SURFACE_TERMS = ("flat", "normals", "geometry", "patches")
"""Terms of the steps with ``model.surface=planar`` (``train/surfaces/terms.py``); 0 before their stage."""
CONSISTENCY_TERMS = ("consistency_color", "consistency_rotation", "consistency_scale", "consistency_opacity")
"""Terms of the steps with a teacher."""


def image_terms(config: Config) -> tuple[str, ...]:
    """Names of the terms with these settings; those of the momentum teacher are not included."""
    behind = ("background",) if config.model.background != "fixed" else ()
    given = tuple(name for name in ("depth", "depth_prior", "normal_prior") if getattr(config.loss, name))
    student = (*KD_TERMS, STRUCTURE) if config.distill.teachers else ()
    surface = SURFACE_TERMS if config.model.surface == "planar" else ()
    return IMAGE_TERMS + behind + given + student + surface


def loss_terms(
    image: Float[Tensor, "3 h w"],
    target: TargetImage,
    decoded: Decoded,
    targets: TeacherTargets | None,
    config: Config,
    behind: Float[Tensor, "3 h w"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """All terms of one view but those of depth, normals and surfaces, each times its weight.

    Args:
        image: The render, after colour correction.
        target: The target image. Ignored pixels give no gradient to the image, so none to growth's statistics either.
            If it is a part of a view, all terms are multiplied by its share: the image terms of all parts sum to those
            of the view.
        decoded: The Gaussians of the view.
        targets: The teacher's outputs; None: no consistency terms.
        behind: The learned background alone; None: no ``background`` term.
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
    """``(1 - dssim) * L1`` and ``dssim * (1 - SSIM)`` (eq. 3, weighted as in the official code)."""
    l1_term, dssim_term = l1_dssim(image, target.image, config.dssim, target.mask, target.weights)
    return {"l1": l1_term, "dssim": dssim_term}


def volume(scales: Float[Tensor, "g 3"]) -> Float[Tensor, ""]:
    """Mean over the Gaussians of the product of their three scales, cubic training units (eq. 9 of Scaffold-GS)."""
    x, y, z = scales.unbind(1)
    return (x * y * z).sum() / max(len(scales), 1)


def consistency(decoded: Decoded, targets: TeacherTargets) -> dict[str, Float[Tensor, ""]]:
    """Mean squared differences between student and teacher (eq. 5).

    Colour, rotation and scale are compared over the Gaussians that the student keeps, opacity over all offsets of the
    visible anchors. Source: gaussian_renderer/__init__.py::render_with_consistency_loss of Momentum-GS.
    """
    gaussians = decoded.gaussians
    return {
        "color": _mse(gaussians.colors, targets.color),
        "rotation": _mse(gaussians.quats, targets.rotation),
        "scale": _mse(gaussians.scales, targets.scale),
        "opacity": _mse(decoded.neural_opacity, targets.neural_opacity),
    }


def _mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error; zero for empty tensors, for which torch's mean is NaN."""
    return F.mse_loss(a, b, reduction="sum") / max(a.numel(), 1)


def reported_terms(config: Config, decoder_live: bool) -> tuple[str, ...]:
    """Names of the terms that a step's losses have."""
    teacher = decoder_live and config.teacher.enabled and config.stage == "blocks"
    return image_terms(config) + CONSISTENCY_TERMS if teacher else image_terms(config)


def gather_losses(
    losses: Mapping[int, Mapping[str, Tensor]],
    sizes: Mapping[int, int],
    blocks: Sequence[int],
    terms: Sequence[str],
    comm: Comm,
) -> tuple[dict[int, dict[str, float]], dict[int, int]]:
    """Losses and sizes of all ranks' blocks, by block; one small all-reduce.

    Args:
        losses: Block of this rank -> term -> scalar; a missing term, as those of the teacher before
            ``teacher.start``, counts as 0.
        sizes: Block of this rank -> number of its anchors or splats.
        blocks: Active blocks of all ranks.
        terms: ``reported_terms``.
        comm: Of the run; all ranks call.
    """
    table = torch.zeros(len(blocks), len(terms) + 1, dtype=torch.float64)
    for block, size in sizes.items():
        row = [*(float(losses[block].get(name, 0)) for name in terms), size]
        table[blocks.index(block)] = torch.tensor(row, dtype=torch.float64)
    comm.all_reduce_sum_(table)
    rows = dict(zip(blocks, table.tolist(), strict=True))
    return (
        {block: dict(zip(terms, row, strict=False)) for block, row in rows.items()},
        {block: int(row[-1]) for block, row in rows.items()},
    )
