"""Trains baked Gaussians until they look like the model that they were baked from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.bake.between import Between
from momentum_gs.bake.row_adam import RowAdam
from momentum_gs.config.schema import GaussiansConfig, LossConfig
from momentum_gs.core.geometry import camera_radius
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera, Gaussians, TargetImage
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.appearance import AppearanceTable
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.expand import Decoded
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.rasterize import visible_splats
from momentum_gs.render.splat_view import decode_splats
from momentum_gs.render.view import decode_view, draw, learned_background
from momentum_gs.train.losses import reconstruction
from momentum_gs.train.lr import exponential
from momentum_gs.train.optim import ROTATION_LR, SH_LR, SH_REST_SHARE

LAST_RATE = 0.02
"""Learning rates at the last step, relative to those of the first."""


@dataclass(frozen=True)
class Teaching:
    """What baked Gaussians learn from."""

    model: Anchors
    decoder: Decoder
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
    rng = torch.Generator().manual_seed(seed)
    between = Between(teaching.cameras, rng)
    splats = splats.subset(torch.arange(len(splats), device=splats.position.device))
    optimizer = RowAdam(splats.rows())
    rates = _first_rates(teaching)
    harmonics = Harmonics(splats.sh_degree)
    order: list[int] = []
    for step in progress(range(steps), desc="refining"):
        decay = exponential(1.0, LAST_RATE, steps)(step)
        if not order:
            order = torch.randperm(len(teaching.cameras), generator=rng).tolist()
        kind, index = step % 3, order.pop()
        camera = between.draw(index) if kind == 2 else teaching.cameras[index]
        shown = visible_splats(splats, camera)
        if len(shown) == 0:
            continue
        with torch.no_grad():
            decoded = decode_view(teaching.model, teaching.decoder, camera)
            behind = learned_background(teaching.decoder, camera, teaching.background)
            around = None if hidden is None else others(decoded, hidden, teaching.model.n_offsets)
            target = teaching.target(camera.name) if kind == 0 else None
            taught = target is None
            if target is None:
                target = TargetImage(draw(decoded.gaussians, camera, teaching.background, behind).image)
        leaves = optimizer.leaves(shown)
        gaussians = decode_splats(Splats.from_rows(leaves), harmonics, camera).gaussians
        image = draw(gaussians, camera, teaching.background, behind, None, around).image
        if teaching.appearance is not None and not taught:
            image = teaching.appearance.correct(image, camera.name)
        terms = reconstruction(image, target, teaching.loss)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step(shown, leaves, {name: rate * decay for name, rate in rates.items()})
    return splats.as_leaves()


def _first_rates(teaching: Teaching) -> dict[str, float]:
    centers = torch.stack([camera.center for camera in teaching.cameras])
    rates = teaching.rates
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
