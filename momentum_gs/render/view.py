"""A model, its decoder and a camera in, image out."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.geometry import pixel_directions
from momentum_gs.core.types import Camera, Gaussians, RenderOutput
from momentum_gs.core.window import Window
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.appearance import AppearanceTable
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.expand import Decoded, TeacherTargets, decode, decode_with_teacher
from momentum_gs.model.splats import Harmonics, Model, Splats
from momentum_gs.render.nudge import nudged
from momentum_gs.render.rasterize import rasterize, visible_anchors
from momentum_gs.render.splat_view import decode_splats


@dataclass(frozen=True)
class ViewRender:
    """One view with what a training step needs to know of how it came about."""

    output: RenderOutput
    decoded: Decoded
    """The Gaussians drawn, and the anchors that they came from."""
    targets: TeacherTargets | None
    """The teacher's outputs for the same Gaussians, where there is a teacher."""
    behind: Float[Tensor, "3 h w"] | None
    """The learned background alone, where there is one."""


def decode_view(model: Model, decoder: Decoder | Harmonics, camera: Camera, window: Window | None = None) -> Decoded:
    """The Gaussians of a view: of the anchors in it (or in a part of it), or all splats."""
    if isinstance(model, Splats):
        assert isinstance(decoder, Harmonics), "splats have colours of their own"
        return decode_splats(model, decoder, camera)
    assert not isinstance(decoder, Harmonics), "anchors have a decoder"
    return decode(model, decoder, camera.center.to(model.position), visible_anchors(model, camera, window))


def render_view(
    model: Model,
    decoder: Decoder | Harmonics,
    camera: Camera,
    background: Float[Tensor, "3"],
    teacher: GaussianDecoder | None = None,
    detach_teacher: bool = True,
    nudge: Float[Tensor, "6"] | None = None,
    around: Model | None = None,
    window: Window | None = None,
) -> ViewRender:
    """Decodes what is in view and draws it.

    Args:
        model: N anchors or splats.
        decoder: The decoder that draws, the student in training.
        camera: The view.
        background: Colour behind everything, where the decoder has not learned one.
        teacher: Decodes the same anchors for the consistency loss; it draws nothing.
        detach_teacher: The teacher's outputs carry no gradient to the anchors.
        nudge: Zeros that take the gradient of the camera's pose (``nudged``).
        around: Drawn together with the model, but held fixed: what is returned beside the images is the model's alone.
        window: Part of the view to draw; None: all of it.
    """
    targets = None
    if teacher is None:
        decoded = decode_view(model, decoder, camera, window)
    else:
        assert isinstance(model, Anchors) and isinstance(decoder, GaussianDecoder), "a teacher steadies one decoder"
        center, visible = camera.center.to(model.position), visible_anchors(model, camera, window)
        decoded, targets = decode_with_teacher(model, decoder, teacher, center, visible, detach_teacher)
    behind = learned_background(decoder, camera, background)
    if behind is not None and window is not None:
        behind = window.crop(behind)
    parts = [decoded.gaussians]
    if around is not None:
        parts.append(decode_view(around, decoder, camera, window).gaussians)
    if nudge is not None:
        parts = [nudged(part, camera, nudge) for part in parts]
    return ViewRender(draw(parts[0], camera, background, behind, window, *parts[1:]), decoded, targets, behind)


def learned_background(decoder: Decoder | Harmonics, camera: Camera, like: Tensor) -> Float[Tensor, "3 h w"] | None:
    """The background that a decoder has learned as the camera sees it, with the dtype and device of ``like``; None
    where it has learned none."""
    learned = decoder.background if isinstance(decoder, GaussianDecoder) else None
    if learned is None:
        return None
    if learned.degree == 0:  # One colour, whatever the direction.
        return learned(like.new_zeros(1, 3)).T[:, :, None].expand(-1, camera.height, camera.width)
    return learned(pixel_directions(camera, like)).T.view(3, camera.height, camera.width)


def draw(
    gaussians: Gaussians,
    camera: Camera,
    background: Float[Tensor, "3"],
    behind: Float[Tensor, "3 h w"] | None = None,
    window: Window | None = None,
    around: Gaussians | None = None,
) -> RenderOutput:
    """Draws Gaussians over ``behind``, or without one over ``background``; arguments as for ``rasterize``."""
    if behind is None:
        return rasterize(gaussians, camera, background, window, around)
    output = rasterize(gaussians, camera, torch.zeros_like(background), window, around)
    return replace(output, image=output.image + (1 - output.alpha) * behind)


@torch.no_grad()
def render_image(
    model: Model,
    decoder: Decoder | Harmonics,
    camera: Camera,
    background: Float[Tensor, "3"],
    appearance: AppearanceTable | None = None,
) -> Float[Tensor, "3 h w"]:
    """The image alone, in [0, 1], without gradients; with ``appearance`` as the camera's image has it."""
    image = render_view(model, decoder, camera, background).output.image
    return (image if appearance is None else appearance.correct(image, camera.name)).clamp(0, 1)
