"""One training step.

The order matters and follows the original: the teacher is updated before rendering; growth comes after the backward
pass and before the optimizer step, so rows that growth re-creates have no gradient and do not move in this step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.core.errors import blame
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.core.window import Window
from momentum_gs.render.view import render_view
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.corrections.tables import NO_CORRECTIONS, Corrections
from momentum_gs.train.decoders.choice import Decoders
from momentum_gs.train.distillation.student import Student
from momentum_gs.train.growth.anchors import GrowthReport
from momentum_gs.train.losses import loss_terms
from momentum_gs.train.optim import move_rows
from momentum_gs.train.priors import draws_surface, prior_terms
from momentum_gs.train.sparse_depth import SparseDepths, depth_loss
from momentum_gs.train.surfaces.terms import SurfaceTerms


@dataclass(frozen=True)
class StepInputs:
    """What a step reads and never changes."""

    config: Config
    comm: Comm
    background: Tensor
    show: Callable[[Block], tuple[Camera, Window | None, TargetImage]]
    """Block -> the view that it trains on at its present step; the part of it that it trains on, None: all of it; and
    that part's target image on the device."""
    depths: SparseDepths | None = None
    """Target depths of the images; None without ``loss.depth``."""
    student: Student | None = None
    """What a student learns from other models; None: it is none."""
    surfaces: SurfaceTerms | None = None
    """Terms on depth and normals; None without ``model.surface``."""


@dataclass
class StepReport:
    """What a step did to the blocks of this rank."""

    losses: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """Block -> term -> scalar, times the term's weight, not times the block's."""
    grown: dict[int, GrowthReport] = field(default_factory=dict)
    """Block -> what growth changed, for blocks that grew in this step."""
    pixels: float = 0.0
    """Pixels that counted in a loss."""


def train_step(
    inputs: StepInputs,
    decoders: Decoders,
    active: Sequence[Block],
    blocks: tuple[int, ...],
    weights: Tensor,
    decoder_live: bool,
    corrections: Corrections = NO_CORRECTIONS,
) -> StepReport:
    """Trains each of this rank's active blocks on one of its views, and the decoders and corrections along (eq. 4-7).

    Args:
        inputs: What the step reads.
        decoders: The shared decoder and its teacher, per-block decoders, or none.
        active: Active blocks of this rank.
        blocks: Active blocks of all ranks; the shared decoder's gradient is the mean over them.
        weights: [B] weight of every block's loss.
        decoder_live: False: decoder and corrections are fixed, and there is neither teacher nor consistency loss.
        corrections: Pose corrections are applied before rendering, colour corrections to the render; both are shared
            by all blocks.

    Raises:
        UserError: naming block, step and image, for an image that cannot be read.
    """
    config = inputs.config
    report = StepReport()
    teacher = decoders.teacher if decoder_live and config.teacher.enabled and config.stage == "blocks" else None
    teacher_from = config.teacher.start * config.steps
    decoders.begin_step(decoder_live, len(blocks))
    corrections.begin_step(decoder_live, len(blocks))
    for block in active:
        camera, window, target = inputs.show(block)
        where = f"block {block.block} at its step {block.step}, image {camera.name}"
        inputs.comm.doing(where)
        with blame(where):
            block.set_rates(config)
            report.pixels += camera.width * camera.height * (1.0 if window is None else window.counted)
            posed, nudge = corrections.poses.pose(camera)
            view = render_view(
                block.model, decoders.student_of(block), posed, inputs.background,
                teacher if block.step >= teacher_from else None, config.teacher.detach, nudge, block.around, window,
                block.opacity_factors(config),
                draws_surface(config) or (inputs.surfaces is not None and inputs.surfaces.draws(block.step, config)),
                block.capacity,
            )  # fmt: skip
            image = corrections.appearance.correct(view.output.image, camera.name, window)
            learned = view.behind if config.model.background != "fixed" else None  # A student's is fixed.
            terms = loss_terms(image, target, view.decoded, view.targets, config, learned)
            if inputs.depths is not None:
                depth = depth_loss(view.output, inputs.depths.of(camera, window))
                terms["depth"] = config.loss.depth * target.share * depth
            if config.loss.depth_prior or config.loss.normal_prior:
                terms |= prior_terms(view, posed, target, config)
            if inputs.student is not None:
                terms |= inputs.student.terms(block, camera, view.output.image, target, window)
            if inputs.surfaces is not None:
                terms |= inputs.surfaces.terms(
                    view, block, decoders.student_of(block), posed, target, window, config, corrections.poses.cameras
                )
            torch.stack(list(terms.values())).sum().mul(weights[block.block]).backward()
            if decoder_live:
                decoders.take_gradient(block, blocks.index(block.block))
                corrections.take_gradient(blocks.index(block.block))
            if config.weighting.enabled and config.weighting.source == "running":
                block.score.add(image, target)
            report.losses[block.block] = {name: term.detach() for name, term in terms.items()}
            block.step += 1
            grown = block.after_backward(view, config)
            if grown is not None:
                report.grown[block.block] = grown
            move_rows(block.optimizer, view.decoded.visible)
            block.optimizer.zero_grad(set_to_none=True)
    if decoder_live:
        decoders.finish_step(inputs.comm, *corrections.gradients)
        corrections.finish_step()
    return report
