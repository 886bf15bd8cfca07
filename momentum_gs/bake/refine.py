"""Trains baked Gaussians until they look like the model that they were baked from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.bake.between import Between
from momentum_gs.bake.row_adam import RowAdam
from momentum_gs.config.schema import GaussiansConfig, LossConfig
from momentum_gs.core.geometry import camera_radius
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera, Gaussians, TargetImage
from momentum_gs.model.appearance import AppearanceTable
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.expand import Decoded
from momentum_gs.model.splats import Harmonics, Model, Splats
from momentum_gs.render.rasterize import visible_splats
from momentum_gs.render.splat_view import decode_splats
from momentum_gs.render.surface import CHANNELS, Surface, take_planes, with_planes
from momentum_gs.render.view import decode_view, draw, learned_background
from momentum_gs.train.losses import reconstruction
from momentum_gs.train.lr import exponential
from momentum_gs.train.optim import LAST_RATE, ROTATION_LR, SH_LR, SH_REST_SHARE


@dataclass(frozen=True)
class Teaching:
    """What baked Gaussians learn from."""

    model: Model
    decoder: Decoder | Harmonics
    """Their renders are targets, for training cameras and for cameras between them."""
    cameras: Sequence[Camera]
    """The training cameras, at least one."""
    background: Float[Tensor, "3"]
    target: Callable[[str], TargetImage | None]
    """The image of a training camera by its name; None: it cannot be read."""
    appearance: AppearanceTable | None = None
    """Colour corrections of the training images. The Gaussians learn colours without them, as the decoder has them."""
    loss: LossConfig = field(default_factory=LossConfig)
    rates: GaussiansConfig = field(default_factory=GaussiansConfig)
    """Learning rates of 3DGS."""
    left_out: Bool[Tensor, "nk"] | None = None
    """Offsets of the model that are not drawn for targets, on the model's device, since only pixels that masks hide
    show them; None: all are."""


def refine(
    splats: Splats, teaching: Teaching, steps: int, *, hidden: Bool[Tensor, "nk"] | None = None, seed: int = 0
) -> Splats:
    """Trains Gaussians, whose number does not change, with Adam.

    Three kinds of steps alternate: against the image of a training camera, against the model's render for a training
    camera, and against the model's render for a camera between two of them. The loss is that of training, without
    the volume term.

    Args:
        splats: G baked Gaussians, all of a model or a part of them; not changed.
        teaching: The model and the images.
        steps: Number of steps.
        hidden: Offsets of the model that the Gaussians stand for, on the model's device. The model's Gaussians at all
            other offsets are rendered with them, held fixed; None: nothing is.
        seed: Decides the order of the cameras.
    """

    def lesson(kind: int, camera: Camera) -> Lesson:
        decoded = decode_view(teaching.model, teaching.decoder, camera)
        gaussians, out, k = decoded.gaussians, teaching.left_out, teaching.model.n_offsets
        if out is not None:
            gaussians = others(decoded, out, k)
        behind = learned_background(teaching.decoder, camera, teaching.background)
        around = None if hidden is None else others(decoded, hidden if out is None else hidden | out, k)
        target = teaching.target(camera.name) if kind == 0 else None
        if target is not None:
            return Lesson(target, behind, around, teaching.appearance)
        return Lesson(TargetImage(draw(gaussians, camera, teaching.background, behind).image), behind, around)

    rates = first_rates(teaching.cameras, teaching.rates)
    return learn(splats, teaching.cameras, lesson, steps, teaching.background, rates, teaching.loss, seed=seed)


@dataclass(frozen=True)
class Lesson:
    """What a step compares a render with."""

    target: TargetImage
    behind: Float[Tensor, "3 h w"] | None = None
    """A learned background."""
    around: Gaussians | None = None
    """Further Gaussians to render, held fixed."""
    appearance: AppearanceTable | None = None
    """Corrects the render before it is compared."""
    surface: Surface | None = None
    """Depth and normals to learn, too."""
    surface_weight: float = 0.0
    """Of the two terms of ``surface_terms``."""


def learn(
    splats: Splats,
    cameras: Sequence[Camera],
    lesson: Callable[[int, Camera], Lesson],
    steps: int,
    background: Float[Tensor, "3"],
    rates: Mapping[str, float],
    loss: LossConfig,
    *,
    seed: int = 0,
) -> Splats:
    """Trains Gaussians, whose number does not change, with Adam, on three kinds of steps, which alternate.

    Args:
        splats: G Gaussians; not changed.
        cameras: At least one.
        lesson: (Kind, camera) -> the target. Steps of kind 0 and 1 show one of the cameras, steps of kind 2 a camera
            between two of them, which has the name of the first.
        steps: Number of steps.
        background: Behind everything.
        rates: Learning rates of the first step by name (``first_rates``); they fall to ``LAST_RATE`` of it.
        loss: Weights of the loss.
        seed: Decides the order of the cameras.
    """
    rng = torch.Generator().manual_seed(seed)
    between = Between(cameras, rng)
    splats = splats.subset(torch.arange(len(splats), device=splats.position.device))
    optimizer = RowAdam(splats.rows())
    harmonics = Harmonics(splats.sh_degree)
    order: list[int] = []
    for step in progress(range(steps), desc="refining"):
        decay = exponential(1.0, LAST_RATE, steps)(step)
        if not order:
            order = torch.randperm(len(cameras), generator=rng).tolist()
        kind, index = step % 3, order.pop()
        camera = between.draw(index) if kind == 2 else cameras[index]
        shown = visible_splats(splats, camera)
        if len(shown) == 0:
            continue
        with torch.no_grad():
            given = lesson(kind, camera)
        leaves = optimizer.leaves(shown)
        gaussians = decode_splats(Splats.from_rows(leaves), harmonics, camera).gaussians
        image, surface = _drawn(gaussians, camera, background, given)
        if given.appearance is not None:
            image = given.appearance.correct(image, camera.name)
        terms = reconstruction(image, given.target, loss)
        if given.surface is not None and surface is not None:
            terms |= {name: given.surface_weight * term for name, term in surface_terms(surface, given.surface).items()}
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step(shown, leaves, {name: rate * decay for name, rate in rates.items()})
    return splats.as_leaves()


def _drawn(
    gaussians: Gaussians, camera: Camera, background: Float[Tensor, "3"], given: Lesson
) -> tuple[Float[Tensor, "3 h w"], Surface | None]:
    if given.surface is None:
        return draw(gaussians, camera, background, given.behind, None, given.around).image, None
    around = None if given.around is None else with_planes(given.around, camera)
    behind = None if given.behind is None else F.pad(given.behind, (0, 0, 0, 0, 0, CHANNELS))
    wide = draw(with_planes(gaussians, camera), camera, F.pad(background, (0, CHANNELS)), behind, None, around)
    output, surface = take_planes(wide, camera)
    return output.image, surface


def surface_terms(found: Surface, target: Surface) -> dict[str, Float[Tensor, ""]]:
    """Mean relative error of the depth, and 1 - cosine between the normals, over pixels where both have a surface."""
    there = (found.there & target.there).to(found.depth)
    count = there.sum().clamp_min(1)
    depth = (found.depth - target.depth).abs() / target.depth.clamp_min(1e-6)
    cosine = (found.normal * target.normal).sum(dim=0)
    return {"depth": (depth * there).sum() / count, "normal": ((1 - cosine) * there).sum() / count}


def first_rates(cameras: Sequence[Camera], rates: GaussiansConfig) -> dict[str, float]:
    """Learning rates of 3DGS by name of the tensor."""
    centers = torch.stack([camera.center for camera in cameras])
    return {
        "position": rates.position_lr[0] * camera_radius(centers),
        "sh_dc": SH_LR,
        "sh_rest": SH_LR / SH_REST_SHARE,
        "opacity": rates.opacity_lr,
        "log_scale": rates.scaling_lr,
        "rotation": ROTATION_LR,
    }


def others(decoded: Decoded, hidden: Bool[Tensor, "nk"], n_offsets: int) -> Gaussians:
    """The decoded Gaussians but those at the hidden offsets, of which row i has i K to i K + K - 1."""
    first = decoded.visible * n_offsets
    offset = (first[:, None] + torch.arange(n_offsets, device=first.device)).flatten()[decoded.kept]
    shown = (~hidden.index_select(0, offset)).nonzero()[:, 0]
    return Gaussians(
        *(getattr(decoded.gaussians, name).index_select(0, shown) for name in decoded.gaussians.__dataclass_fields__)
    )
