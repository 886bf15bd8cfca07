"""Decoding of anchors into Gaussians for one camera.

Notation: N anchors, M of them visible, K offsets, G Gaussians kept (those with a positive neural opacity). The kept
(anchor, offset) pairs are selected first and everything else is gathered for them only, so that no tensor of size M*K
exists besides the decoder's outputs. Kept offsets are in the order of their anchors: where a gather repeats an anchor's
row, its gradient is a sum over neighbours, in a fixed order (``core.rows.take_runs``). ``expand_reference`` is the
plain form of the original, for reading and tests. Where ``fused.covers`` says so, one operator does all of it.

Source: gaussian_renderer/__init__.py::generate_neural_gaussians and
generate_neural_gaussians_and_momentum_gaussians of Momentum-GS.
"""

import contextlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from momentum_gs.core.rows import take_runs
from momentum_gs.core.types import Gaussians
from momentum_gs.model import fused
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import DecoderOutput, GaussianDecoder
from momentum_gs.model.decoder_bank import Decoder


@dataclass(frozen=True)
class Decoded:
    """The Gaussians of one view, and the anchors and offsets that they come from."""

    gaussians: Gaussians
    neural_opacity: Float[Tensor, "mk 1"]
    """Opacity output of every offset of every visible anchor, in (-1, 1)."""
    kept: Bool[Tensor, "mk"]
    """Which offsets became Gaussians: ``neural_opacity > 0``."""
    visible: Int[Tensor, "m"]
    """Rows of the visible anchors."""


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's outputs for the same anchors and view; attributes only where the *student* keeps a Gaussian."""

    color: Float[Tensor, "g 3"]
    scale: Float[Tensor, "g 3"]
    rotation: Float[Tensor, "g 4"]
    neural_opacity: Float[Tensor, "mk 1"]


@dataclass(frozen=True)
class _View:
    """The visible anchors as one camera sees them."""

    rows: Int[Tensor, "m"]
    position: Float[Tensor, "m 3"]
    feature: Float[Tensor, "m f"]
    scales: Float[Tensor, "m 6"]
    direction: Float[Tensor, "m 3"]
    distance: Float[Tensor, "m 1"]


def decode(
    anchors: Anchors,
    decoder: Decoder,
    camera_center: Float[Tensor, "3"],
    visible: Int[Tensor, "m"] | Bool[Tensor, "n"] | None = None,
    capacity: fused.Capacity | None = None,
) -> Decoded:
    """Decode the anchors in the rows ``visible`` (distinct; or where it is true; None: all) for a camera at
    ``camera_center``; ``capacity`` as for ``fused.decode``, where that is used."""
    center = camera_center.to(anchors.position)
    if fused.covers(anchors, center, decoder):
        return _fused(anchors, decoder, center, visible, capacity=capacity)[0]
    view = _look(anchors, center, visible)
    return _spawn(anchors, view, decoder.at(view.rows)(view.feature, view.direction, view.distance))[0]


def decode_with_teacher(
    anchors: Anchors,
    student: GaussianDecoder,
    teacher: GaussianDecoder,
    camera_center: Float[Tensor, "3"],
    visible: Int[Tensor, "m"] | Bool[Tensor, "n"] | None = None,
    detach: bool = True,
    capacity: fused.Capacity | None = None,
) -> tuple[Decoded, TeacherTargets]:
    """The student's Gaussians, and the teacher's for the same offsets.

    With ``detach`` the teacher's outputs are fixed targets, as in the paper; without, gradients flow through the
    teacher to features and scales, as in the official code. The caller freezes the teacher's parameters.
    """
    center = camera_center.to(anchors.position)
    if detach and fused.covers(anchors, center, student, teacher):
        decoded, targets = _fused(anchors, student, center, visible, teacher, capacity)
        assert targets is not None
        return decoded, targets
    view = _look(anchors, center, visible)
    decoded, kept = _spawn(anchors, view, student(view.feature, view.direction, view.distance))
    with torch.no_grad() if detach else contextlib.nullcontext():
        output = teacher(view.feature, view.direction, view.distance)
        bound = take_runs(view.scales, kept // anchors.n_offsets)[:, 3:]
        color, scale, rotation = _attributes(output, kept, bound)
    return decoded, TeacherTargets(color, scale, rotation, output.opacity.reshape(-1, 1))


def _fused(
    anchors: Anchors, student: Decoder, center: Tensor, visible: Tensor | None,
    teacher: GaussianDecoder | None = None, capacity: fused.Capacity | None = None,
) -> tuple[Decoded, TeacherTargets | None]:  # fmt: skip
    """Both of ``decode_with_teacher``, by the operator."""
    wanted = _all_rows(anchors) if visible is None else visible
    found = fused.decode(anchors, student, center, wanted, teacher, capacity)
    gaussians = Gaussians(
        means=found.means, scales=found.scales, quats=found.quats, opacities=found.opacities, colors=found.colors
    )
    decoded = Decoded(gaussians, found.neural_opacity.reshape(-1, 1), found.kept.flatten(), found.rows)
    if found.targets is None:
        return decoded, None
    scale, rotation, color, opacity = found.targets
    return decoded, TeacherTargets(color, scale, rotation, opacity.reshape(-1, 1))


def _all_rows(anchors: Anchors) -> Int[Tensor, "n"]:
    return torch.arange(len(anchors), device=anchors.position.device)


def _look(anchors: Anchors, center: Tensor, visible: Tensor | None) -> _View:
    """Gather the visible rows and the direction and distance at which the camera sees them."""
    if visible is None:
        rows = _all_rows(anchors)
        position, feature, log_scale = anchors.position, anchors.feature, anchors.log_scale
    else:
        rows = visible.nonzero()[:, 0] if visible.dtype == torch.bool else visible
        position, feature, log_scale = (
            row.index_select(0, rows) for row in (anchors.position, anchors.feature, anchors.log_scale)
        )
    ray = position - center
    distance = ray.norm(dim=1, keepdim=True)
    return _View(rows, position, feature, log_scale.exp(), ray / distance, distance)


def _spawn(anchors: Anchors, view: _View, output: DecoderOutput) -> tuple[Decoded, Int[Tensor, "g"]]:
    """Gaussians for the positive opacities, and their indices into the M*K offsets."""
    n_offsets = anchors.n_offsets
    neural_opacity = output.opacity.reshape(-1, 1)
    is_kept = neural_opacity.squeeze(1) > 0
    kept = is_kept.nonzero().squeeze(1)

    of_visible = kept // n_offsets
    row = view.rows.index_select(0, of_visible)
    scales = take_runs(view.scales, of_visible)
    offset = anchors.offset.flatten(0, 1).index_select(0, row * n_offsets + (kept - of_visible * n_offsets))
    color, scale, rotation = _attributes(output, kept, scales[:, 3:])
    gaussians = Gaussians(
        means=take_runs(view.position, of_visible) + offset * scales[:, :3],
        scales=scale,
        quats=rotation,
        opacities=neural_opacity.index_select(0, kept),
        colors=color,
    )
    return Decoded(gaussians, neural_opacity, is_kept, view.rows), kept


def _attributes(
    output: DecoderOutput, kept: Int[Tensor, "g"], bound: Float[Tensor, "g 3"]
) -> tuple[Float[Tensor, "g 3"], Float[Tensor, "g 3"], Float[Tensor, "g 4"]]:
    """Color, scale (a share of the anchor's ``bound``) and unit rotation of the kept offsets."""
    color = output.color.flatten(0, 1).index_select(0, kept)
    logit, quat = output.cov.flatten(0, 1).index_select(0, kept).split((3, 4), dim=1)
    return color, bound * torch.sigmoid(logit), F.normalize(quat)


def expand_reference(
    anchors: Anchors, decoder: GaussianDecoder, camera_center: Float[Tensor, "3"], visible: Int[Tensor, "m"]
) -> Gaussians:
    """``decode(...).gaussians`` in its plain form: repeat every anchor K times, then mask."""
    position, offset, feature = anchors.position[visible], anchors.offset[visible], anchors.feature[visible]
    ray = position - camera_center
    distance = ray.norm(dim=1, keepdim=True)
    opacity, cov, color = decoder(feature, ray / distance, distance)

    mask = opacity.flatten() > 0
    scales = anchors.scales[visible].repeat_interleave(anchors.n_offsets, dim=0)[mask]
    position = position.repeat_interleave(anchors.n_offsets, dim=0)[mask]
    cov = cov.flatten(0, 1)[mask]
    return Gaussians(
        means=position + offset.flatten(0, 1)[mask] * scales[:, :3],
        scales=scales[:, 3:] * torch.sigmoid(cov[:, :3]),
        quats=F.normalize(cov[:, 3:]),
        opacities=opacity.flatten()[mask].unsqueeze(1),
        colors=color.flatten(0, 1)[mask],
    )
