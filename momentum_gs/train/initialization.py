"""The coarse model, from which blocks may start.

Source: CityGaussian, which trains a coarse model of the whole scene and continues it in every block. Here anchors take
the coarse decoder along, and all blocks continue to share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from momentum_gs.config.run import coarse_folder, load_run_config
from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_any_view
from momentum_gs.core.types import Camera
from momentum_gs.data.frame import same_frame
from momentum_gs.model.background import DEGREE
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.decoder_bank import DecoderBank
from momentum_gs.model.io import load_model, model_folder
from momentum_gs.model.splats import Harmonics, Model, Splats
from momentum_gs.train.decoders.learner import fresh_decoder


@dataclass(frozen=True)
class Initialization:
    """What blocks start from, on the CPU."""

    model: Model
    decoder: GaussianDecoder | None
    """Of anchors; None: of splats, which have none."""


def load_initialization(config: Config) -> Initialization:
    """The coarse model of ``partition.coarse`` (default: OUT/coarse).

    Raises:
        UserError: there is none, it lies in other coordinates, or its rows or decoder have another shape.
    """
    coarse = coarse_folder(config)
    try:
        folder = model_folder(coarse)
    except UserError as error:
        setting = "gaussians.from_coarse" if config.model.primitive == "gaussians" else "blocks.from_coarse"
        raise UserError(
            f"{coarse}: no coarse model, expected one for the blocks to start from ({setting}); run "
            f"'momentum-gs train -c ... -s {config.scene.path} -m {coarse} stage=coarse' first, or set {setting}=false"
        ) from error
    if (coarse / "config.yaml").is_file():
        theirs = load_run_config(coarse).scene
        if not same_frame(theirs, config.scene):
            there, here = (f"{s.unit}, {s.offset} and {s.axes}" for s in (theirs, config.scene))
            raise UserError(
                f"{coarse}: scene.unit, scene.offset and scene.axes are {there}, expected {here} as for the blocks; "
                "train the coarse model with the same settings"
            )
    model, decoder = load_model(folder / "point_cloud.ply")
    again = "train the coarse model with the same settings"
    if config.model.primitive == "gaussians":
        if not isinstance(model, Splats):
            raise UserError(f"{folder}: anchors, expected Gaussians (model.primitive); {again}")
        if model.sh_degree != config.gaussians.sh_degree:
            raise UserError(
                f"{folder}: spherical harmonics of degree {model.sh_degree}, expected gaussians.sh_degree = "
                f"{config.gaussians.sh_degree}; train the coarse model with the same setting"
            )
        return Initialization(model, None)
    if isinstance(model, Splats) or isinstance(decoder, (Harmonics, DecoderBank)):
        raise UserError(f"{folder}: expected anchors with one decoder (model.primitive, blocks.decoder); {again}")
    with torch.device("meta"):  # Without weights, so no random number is drawn.
        wanted = _settings(fresh_decoder(config.model))
    found = _settings(decoder)
    differing = [name for name in wanted if found[name] != wanted[name]]
    if differing:
        there, here = (", ".join(f"{name}={side[name]}" for name in differing) for side in (found, wanted))
        raise UserError(f"{folder}: trained with {there}, expected {here} as for the blocks; {again}")
    return Initialization(model, decoder)


def _settings(decoder: GaussianDecoder) -> dict[str, Any]:
    """The settings that determine a decoder's shape, and that of its anchors, by name."""
    architecture = {f"model.{name}": value for name, value in decoder.architecture.items() if name != "hidden_dim"}
    degree = architecture.pop("model.background_degree", None)
    kind = {of: name for name, of in DEGREE.items()}
    return architecture | {"model.background": "fixed" if degree is None else kind[degree]}


def seen_by(initial: Model, block: int, cameras: Sequence[Camera]) -> Model:
    """A copy of the rows whose positions lie in at least one of the views: few others ever get a gradient.

    Raises:
        UserError: there are none.
    """
    seen = in_any_view(initial.position.detach().double(), cameras)
    if not seen.any():
        raise UserError(
            f"block {block}: none of the coarse model's {len(initial)} {initial.NOUN} for it is inside one of "
            f"{len(cameras)} views, expected some; give the coarse model of this scene (partition.coarse)"
        )
    return initial.subset(seen)
