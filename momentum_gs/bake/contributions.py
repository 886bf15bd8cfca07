"""How much each offset of each anchor contributes to the images of each camera."""

from collections.abc import Sequence
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
from momentum_gs.render.blending import blending_weights
from momentum_gs.render.view import decode_view

FAINT = 1e-3
"""Pixels: what contributes less to an image is left out of it. A Gaussian of opacity 1/255 in one pixel has four times
as much."""


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
    model: Model, decoder: Decoder | Harmonics, cameras: Sequence[Camera], folder: Path | None = None
) -> Contributions:
    """Renders every camera once.

    Args:
        model: N anchors with K offsets, or N splats, each with one offset, on the device that renders.
        decoder: Their decoder.
        cameras: Where they are seen from.
        folder: An existing folder for the contributions to each image, 12 bytes for each pair of an offset and an
            image that shows it; None: they are kept in memory.
    """
    total = torch.zeros(len(model) * model.n_offsets)
    views: list[ViewContributions] = []
    for i, camera in enumerate(progress(cameras, desc="contributions")):
        with torch.no_grad():
            decoded = decode_view(model, decoder, camera)
        weight = blending_weights(decoded.gaussians, camera).cpu()
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


def _mapped(file: Path, values: Tensor) -> Tensor:
    """The values in a file, from which they are read where they are used."""
    np.save(file, values.numpy())
    return torch.from_numpy(np.load(file, mmap_mode="c"))
