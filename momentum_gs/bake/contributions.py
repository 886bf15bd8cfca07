"""How much each offset of each anchor contributes to the images of each camera."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.splats import Harmonics, Model
from momentum_gs.render.blending import blending_sums
from momentum_gs.render.view import decode_view, draw, learned_background

FAINT = 1e-3
"""Pixels: what contributes less to an image is left out of it. A Gaussian of opacity 1/255 in one pixel has four times
as much."""

Counts = Callable[[Camera], Float[Tensor, "1 h w"] | None]
"""Camera -> how much each pixel of its image counts (``TargetImage.mask``), on the device that renders; None: 1."""


@dataclass(frozen=True)
class Contributions:
    """Blending weights by offset, in all and in each camera. Offset j of anchor i has the index i K + j."""

    total: Float[Tensor, "nk"]
    """Sum over pixels and cameras, on the CPU."""
    views: list["ViewContributions"]
    """One for each camera."""


@dataclass(frozen=True)
class ViewContributions:
    """The offsets that contribute to one camera's image, in ascending order, and how much; on the CPU."""

    offset: Int[Tensor, "m"]
    weight: Float[Tensor, "m"]

    def between(self, first: int, last: int) -> tuple[Int[Tensor, "c"], Float[Tensor, "c"]]:
        """The part with ``first <= offset < last``."""
        begin, end = torch.searchsorted(self.offset, torch.tensor([first, last])).tolist()
        return self.offset[begin:end], self.weight[begin:end]


def contributions(
    model: Model,
    decoder: Decoder | Harmonics,
    cameras: Sequence[Camera],
    folder: Path | None = None,
    counts: Counts | None = None,
) -> Contributions:
    """Renders every camera once.

    Args:
        model: N anchors with K offsets, or N splats, each with one offset, on the device that renders.
        decoder: Their decoder.
        cameras: Where they are seen from.
        folder: An existing folder for the contributions to each image, 12 bytes for each pair of an offset and an
            image that shows it; None: they are kept in memory.
        counts: Weighs the pixels, by the mask of each image; None: all count.
    """
    total = torch.zeros(len(model) * model.n_offsets)
    views: list[ViewContributions] = []
    for i, camera in enumerate(progress(cameras, desc="contributions")):
        with torch.no_grad():
            decoded = decode_view(model, decoder, camera)
        mask = None if counts is None else counts(camera)
        weight = blending_sums(decoded.gaussians, camera, mask).squeeze(1).cpu()
        first = decoded.visible * model.n_offsets
        offset = (first[:, None] + torch.arange(model.n_offsets, device=first.device)).flatten()[decoded.kept].cpu()
        seen = weight > FAINT
        offset, weight = offset[seen], weight[seen]
        total[offset] += weight
        if folder is not None and len(offset):  # An empty file cannot be mapped.
            offset = _mapped(folder / f"offset_{i}.npy", offset)
            weight = _mapped(folder / f"weight_{i}.npy", weight)
        views.append(ViewContributions(offset, weight))
    return Contributions(total, views)


@dataclass(frozen=True, eq=False)
class RowErrors:
    """How large the errors of the images are where a row of the model is seen."""

    mean: Float[Tensor, "n"]
    """For each anchor or splat: the mean error of the pixels, weighted by what it contributes to them; NaN where it
    contributes to none."""
    views: int
    """Images that were compared."""


@torch.no_grad()
def row_errors(
    model: Model,
    decoder: Decoder | Harmonics,
    cameras: Sequence[Camera],
    background: Float[Tensor, "3"],
    compare: Callable[[Camera, Float[Tensor, "3 h w"]], Float[Tensor, "2 h w"] | None],
) -> Iterator[RowErrors]:
    """Renders every camera once; yields after each what has been found so far.

    Args:
        model: N anchors or splats, on the device that renders.
        decoder: Their decoder.
        cameras: Where they are seen from.
        background: Colour behind everything, unless the decoder has learned one.
        compare: (Camera, render) -> how much each pixel counts, and its error, on the device that renders; None: the
            image cannot be read.
    """
    sums, views = background.new_zeros(len(model), 2), 0
    for camera in cameras:
        decoded = decode_view(model, decoder, camera)
        behind = learned_background(decoder, camera, background)
        found = compare(camera, draw(decoded.gaussians, camera, background, behind).image)
        if found is not None:
            pixels = torch.stack([found[0], found[0] * found[1]])
            rows = decoded.visible.repeat_interleave(model.n_offsets)[decoded.kept]
            sums.index_add_(0, rows, blending_sums(decoded.gaussians, camera, pixels))
            views += 1
        mean = torch.where(sums[:, 0] > FAINT, sums[:, 1] / sums[:, 0], torch.nan)
        yield RowErrors(mean, views)


def _mapped(file: Path, values: Tensor) -> Tensor:
    """The values in a file, from which they are read where they are used."""
    np.save(file, values.numpy())
    return torch.from_numpy(np.load(file, mmap_mode="c"))
