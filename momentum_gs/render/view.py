"""Renders a model and its decoder for a camera."""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.device import beside
from momentum_gs.core.geometry import pixel_directions
from momentum_gs.core.types import Camera, Gaussians, RenderOutput
from momentum_gs.core.window import Window
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.appearance import AppearanceTable
from momentum_gs.model.background import Background
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.expand import Decoded, TeacherTargets, decode, decode_with_teacher
from momentum_gs.model.fused import Capacity as AnchorCapacity
from momentum_gs.model.splats import Harmonics, Model, Splats
from momentum_gs.render.nudge import nudged
from momentum_gs.render.rasterize import Capacity as PairCapacity
from momentum_gs.render.rasterize import anchors_in_view, rasterize
from momentum_gs.render.splat_view import decode_splats, splats_without_colors
from momentum_gs.render.surface import CHANNELS, Surface, take_planes, with_planes


@dataclass
class ViewCapacity:
    """What earlier views of the same rows took, so that the host need not wait for a GPU before it has queued the work
    of a view. Every view changes it; no result depends on it, so that it is stored nowhere."""

    anchors: AnchorCapacity = field(default_factory=AnchorCapacity)
    """Of the rows themselves."""
    around: AnchorCapacity = field(default_factory=AnchorCapacity)
    """Of those around them."""
    pairs: PairCapacity = field(default_factory=PairCapacity)
    """Of both together, in the rasterizer."""


@dataclass(frozen=True)
class ViewRender:
    """A rendered view, with the intermediate results that a training step needs."""

    output: RenderOutput
    decoded: Decoded
    """The Gaussians of the view, and the anchors that they come from."""
    targets: TeacherTargets | None
    """The teacher's outputs for the same Gaussians; None without a teacher."""
    behind: Float[Tensor, "3 h w"] | None
    """The learned background alone; None without one."""
    surface: Surface | None = None
    """Depth and normals, where they were asked for."""


def decode_view(
    model: Model,
    decoder: Decoder | Harmonics,
    camera: Camera,
    window: Window | None = None,
    capacity: AnchorCapacity | None = None,
    drawn: bool = False,
) -> Decoded:
    """The Gaussians for a view or a part of it: those of the anchors in view (``anchors_in_view``), or all splats."""
    if isinstance(model, Splats):
        assert isinstance(decoder, Harmonics), "splats have colours of their own"
        return decode_splats(model, decoder, camera)
    assert not isinstance(decoder, Harmonics), "anchors have a decoder"
    center, visible = beside(camera.center, model.position), anchors_in_view(model, camera, window, drawn)
    return decode(model, decoder, center, visible, capacity)


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
    opacity_factors: Float[Tensor, "n 1"] | None = None,
    surface: bool = False,
    capacity: ViewCapacity | None = None,
) -> ViewRender:
    """Decodes the model for a view and rasterizes it.

    Args:
        model: N anchors or splats.
        decoder: The decoder used for rendering; in training the student.
        camera: The view.
        background: Colour behind everything, unless the decoder has learned one.
        teacher: Decodes the same anchors for the consistency loss; its outputs are not rendered.
        detach_teacher: No gradient flows from the teacher's outputs to the anchors.
        nudge: Zeros that receive the gradient of the camera's pose (``nudged``).
        around: Further rows to render, held fixed; the result describes only those of ``model``, apart from the image.
        window: Part of the view to render; None: all of it.
        opacity_factors: Multiply the splats' opacities; those with a factor of 0 have radius 0 in the result. None: 1.
        surface: Also draw depth and normals, in the same pass.
        capacity: What earlier views of the same model took; changed. None: the host counts before it allocates.
    """
    targets = None
    capacity = capacity or ViewCapacity()
    if teacher is None:
        decoded = decode_view(model, decoder, camera, window, capacity.anchors)
    else:
        assert isinstance(model, Anchors) and isinstance(decoder, GaussianDecoder), "a teacher steadies one decoder"
        center, visible = beside(camera.center, model.position), anchors_in_view(model, camera, window)
        decoded, targets = decode_with_teacher(
            model, decoder, teacher, center, visible, detach_teacher, capacity.anchors
        )
    behind = learned_background(decoder, camera, background, window)
    colour = constant_background(decoder)
    background, over = (background, behind) if colour is None else (colour.to(background), None)
    parts = [decoded.gaussians]
    if opacity_factors is not None:
        parts = [replace(decoded.gaussians, opacities=decoded.gaussians.opacities * opacity_factors)]
    if around is not None:
        # Without a gradient to the decoder, which gained nothing where it was measured (docs/lab_log.md).
        with torch.no_grad():
            parts.append(decode_view(around, decoder, camera, window, capacity.around, drawn=True).gaussians)
    if nudge is not None:
        parts = [nudged(part, camera, nudge) for part in parts]
    found = None
    if surface:
        parts = [with_planes(part, camera) for part in parts]
        background = F.pad(background, (0, CHANNELS))
        over = None if over is None else F.pad(over, (0, 0, 0, 0, 0, CHANNELS))
        drawn = draw(parts[0], camera, background, over, window, parts[1] if parts[1:] else None, capacity.pairs)
        output, found = take_planes(drawn, camera, window)
    else:
        output = draw(parts[0], camera, background, over, window, parts[1] if parts[1:] else None, capacity.pairs)
    if opacity_factors is not None:
        output = replace(output, radii=torch.where(opacity_factors[:, 0] > 0, output.radii, 0))
    return ViewRender(output, decoded, targets, behind, found)


@torch.no_grad()
def render_surface(
    model: Model, decoder: Decoder | Harmonics, camera: Camera, around: Model | None = None
) -> Surface:
    """The surface of ``render_view``, bit for bit, without gradients and without drawing the colours."""
    parts = []
    for part in (model,) if around is None else (model, around):
        if isinstance(part, Splats):
            gaussians = splats_without_colors(part)
        else:
            gaussians = decode_view(part, decoder, camera).gaussians
        parts.append(with_planes(replace(gaussians, colors=gaussians.colors[:, :0]), camera))
    background = parts[0].means.new_zeros(CHANNELS)
    return take_planes(draw(parts[0], camera, background, None, None, *parts[1:]), camera)[1]


def background_of(decoder: Decoder | Harmonics) -> Background | None:
    """The learned background of a model; None without one."""
    return decoder.background if isinstance(decoder, GaussianDecoder | Harmonics) else None


def constant_background(decoder: Decoder | Harmonics) -> Float[Tensor, "3"] | None:
    """The learned background where it is one colour, which the rasterizer itself draws behind the Gaussians."""
    learned = background_of(decoder)
    return None if learned is None else learned.constant


def learned_background(
    decoder: Decoder | Harmonics, camera: Camera, like: Tensor, window: Window | None = None
) -> Float[Tensor, "3 h w"] | None:
    """The decoder's learned background as the camera sees it, or its window's part; None without one.

    It has the dtype and device of ``like``.
    """
    learned = background_of(decoder)
    if learned is None:
        return None
    if (colour := learned.constant) is not None:
        width, height = (camera.width, camera.height) if window is None else window.rectangle[2:]
        return colour.to(like)[:, None, None].expand(-1, height, width)
    behind = learned(pixel_directions(camera, like)).T.view(3, camera.height, camera.width)
    return behind if window is None else window.crop(behind)


def draw(
    gaussians: Gaussians,
    camera: Camera,
    background: Float[Tensor, "c"],
    behind: Float[Tensor, "c h w"] | None = None,
    window: Window | None = None,
    around: Gaussians | None = None,
    capacity: PairCapacity | None = None,
) -> RenderOutput:
    """Rasterizes Gaussians over the image ``behind`` or, if that is None, over the colour ``background``.

    ``capacity`` is as for ``rasterize``.
    """
    if behind is None:
        return rasterize(gaussians, camera, background, window, around, capacity)
    output = rasterize(gaussians, camera, torch.zeros_like(background), window, around, capacity)
    return replace(output, image=output.image + (1 - output.alpha) * behind)


@torch.no_grad()
def render_image(
    model: Model,
    decoder: Decoder | Harmonics,
    camera: Camera,
    background: Float[Tensor, "3"],
    appearance: AppearanceTable | None = None,
    around: Model | None = None,
    window: Window | None = None,
) -> Float[Tensor, "3 h w"]:
    """Only the image, clamped to [0, 1], without gradients; ``appearance`` applies the correction of the camera's
    image."""
    view = render_view(model, decoder, camera, background, around=around, window=window)
    image = view.output.image
    return (image if appearance is None else appearance.correct(image, camera.name, window)).clamp(0, 1)
