"""Anchors, decoder and camera in, picture out."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.types import Camera, RenderOutput
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.expand import Decoded, TeacherTargets, decode, decode_with_teacher
from momentum_gs.render.rasterize import rasterize, visible_anchors


@dataclass(frozen=True)
class ViewRender:
    """One view with what a training step needs to know of how it came about."""

    output: RenderOutput
    decoded: Decoded
    """The Gaussians drawn, and the anchors that they came from."""
    targets: TeacherTargets | None
    """The teacher's outputs for the same Gaussians, where there is a teacher."""


def render_view(
    anchors: Anchors,
    decoder: Decoder,
    camera: Camera,
    background: Float[Tensor, "3"],
    teacher: GaussianDecoder | None = None,
    detach_teacher: bool = True,
) -> ViewRender:
    """Decodes the anchors in view and draws them.

    Args:
        anchors: N anchors.
        decoder: The decoder that draws, the student in training.
        camera: The view.
        background: Colour behind everything.
        teacher: Decodes the same anchors for the consistency loss; it draws nothing.
        detach_teacher: The teacher's outputs carry no gradient to the anchors.
    """
    center = camera.center.to(anchors.position)
    visible = visible_anchors(anchors, camera)
    targets = None
    if teacher is None:
        decoded = decode(anchors, decoder, center, visible)
    else:
        assert isinstance(decoder, GaussianDecoder), "a teacher steadies one decoder"
        decoded, targets = decode_with_teacher(anchors, decoder, teacher, center, visible, detach_teacher)
    return ViewRender(rasterize(decoded.gaussians, camera, background), decoded, targets)


@torch.no_grad()
def render_image(
    anchors: Anchors, decoder: Decoder, camera: Camera, background: Float[Tensor, "3"]
) -> Float[Tensor, "3 h w"]:
    """The picture alone, in [0, 1], without gradients."""
    return render_view(anchors, decoder, camera, background).output.image.clamp(0, 1)
