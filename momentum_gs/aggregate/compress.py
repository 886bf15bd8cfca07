"""LMC, local model compression: a block's Gaussians are pruned by what their removal changes in the block's own views.

Each cut removes the Gaussians of the least ``removal_error``, and the others are trained for some steps against the
block's images and the renders of the uncompressed model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.aggregate.removal import removal_error
from momentum_gs.aggregate.wire import decode, encode
from momentum_gs.bake.refine import Teaching, refine
from momentum_gs.config.schema import CompressConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.image import psnr
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.view import render_image

CUT = 0.7
"""Share of the Gaussians that a cut keeps: the file ends within 30 % of the smallest with the wanted quality."""
_MOST_CUTS = 20
"""0.7^20 is a thousandth."""
_SCORED = 16
"""Views on which quality is measured, evenly spaced; more cost as much time as the steps."""
_PLAIN = 248
"""Bytes of a Gaussian of degree 3 in a PLY file."""


@dataclass(frozen=True)
class Compressed:
    """A compressed model."""

    data: bytes
    """``wire.encode`` of it."""
    report: dict[str, Any]
    """Gaussians, bytes and PSNR on the block's own views, before and after."""


def compress(
    splats: Splats,
    cameras: Sequence[Camera],
    target: Callable[[str], TargetImage | None],
    settings: CompressConfig,
    background: Float[Tensor, "3"],
    surface: bool = False,
    seed: int = 0,
) -> Compressed:
    """Prunes and encodes.

    Args:
        splats: A block's Gaussians, on the device that renders.
        cameras: The block's training views, at least one.
        target: The image of a view by its name; None: it cannot be read.
        settings: What is wanted.
        background: Behind everything.
        surface: The Gaussians are planar, so that depth and normals count like colours.
        seed: Of the cuts and of the steps after them.

    Raises:
        UserError: there are no Gaussians, or none that the views show.
    """
    decoder = Harmonics(splats.sh_degree)
    scored = list(cameras[:: -(-len(cameras) // _SCORED)])

    def quality(shown: Splats) -> float:
        pairs = ((render_image(shown, decoder, camera, background), target(camera.name)) for camera in scored)
        values = [float(psnr(image, truth.image, truth.mask)) for image, truth in pairs if truth is not None]
        return sum(values) / len(values) if values else float("nan")

    def sent(data: bytes) -> Splats:
        return decode(data, "compress").to(splats.position.device)

    before = quality(splats)
    teaching = Teaching(splats, decoder, cameras, background, target)
    best, data = splats, encode(splats)
    least = before - (settings.max_loss_db or 0.0)
    most = None if settings.max_mb is None else settings.max_mb * 1e6
    cuts = 0
    while cuts < _MOST_CUTS and (settings.max_loss_db is not None if most is None else len(data) > most):
        share = CUT if most is None else min(max(most / len(data), CUT), 0.98)
        smaller = cut(best, cameras, share, background, surface, seed + cuts)
        smaller = refine(smaller, teaching, settings.steps, seed=seed + cuts)
        tried = encode(smaller)
        if most is None and not quality(sent(tried)) >= least:
            break
        best, data, cuts = smaller, tried, cuts + 1
    if most is not None and len(data) > most:
        raise UserError(f"compress: {len(data)} bytes remain, expected at most {most:.0f}; raise compress.max_mb")
    after = quality(sent(data))
    return Compressed(data, {
        "gaussians": [len(splats), len(best)], "bytes": [len(splats) * _PLAIN, len(data)], "psnr": [before, after],
        "cuts": cuts,
    })  # fmt: skip


def cut(
    splats: Splats, cameras: Sequence[Camera], share: float, background: Float[Tensor, "3"], surface: bool, seed: int
) -> Splats:
    """The share of the Gaussians whose removal would change most, in their order; never those that change nothing."""
    error = removal_error(splats, cameras, background, surface, seed)
    count = min(max(1, int(share * len(splats))), int((error > 0).sum()))
    if count == 0:
        raise UserError("compress: no view shows a Gaussian, expected a trained model; train the block again")
    return splats.subset(torch.topk(error, count).indices.sort().values)
