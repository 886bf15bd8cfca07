"""Bakes anchors and their decoder into explicit Gaussians."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxtyping import Bool, Int
from torch import Tensor

from momentum_gs.bake.contributions import Contributions, Counts, contributions
from momentum_gs.bake.fit import fit
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.splats import Splats

PART = 1 << 17
"""Gaussians that are fitted at a time: 170 MB of normal equations at degree 3."""


def bake(
    model: Anchors,
    decoder: Decoder,
    cameras: Sequence[Camera],
    *,
    sh_degree: int = 3,
    max_gaussians: int | None = None,
    spill: Path | None = None,
    counts: Counts | None = None,
) -> Splats:
    """Explicit Gaussians that look like the anchors and their decoder from these cameras and near them.

    Offsets that contribute to none of the images are left out. A learned background is not part of the result.

    Args:
        model: N anchors in training units, on the device that renders.
        decoder: Their decoder, on the same device.
        cameras: The training cameras, at training resolution: the sizes of the images weigh contributions.
        sh_degree: Degree of the colours' spherical harmonics, 0 to 3.
        max_gaussians: Keep at most this many, those that contribute most; None: all.
        spill: A folder for contributions (``contributions``), which are otherwise kept in memory.
        counts: Weighs the pixels, by the mask of each image; None: all count.

    Returns:
        Leaves on the device of the model, in training units; render them with ``Harmonics(sh_degree)``.
    """
    seen = contributions(model, decoder, cameras, spill, counts)
    chosen = choose(seen, max_gaussians)
    parts = [part for _, part in bake_parts(model, decoder, cameras, seen, chosen, sh_degree=sh_degree)]
    return Splats.cat(parts)


def choose(
    seen: Contributions, max_gaussians: int | None = None, among: Bool[Tensor, "nk"] | None = None
) -> Int[Tensor, "g"]:
    """Ascending indices of the offsets to bake: all that contribute, or those that contribute most.

    Args:
        seen: The contributions.
        max_gaussians: Upper bound on their number; None: no bound.
        among: Which offsets may be chosen; None: all.
    """
    total = seen.total if among is None else seen.total * among
    if max_gaussians is not None and max_gaussians < int((total > 0).sum()):
        return total.topk(max_gaussians).indices.sort().values
    return total.nonzero()[:, 0]


def bake_parts(
    model: Anchors,
    decoder: Decoder,
    cameras: Sequence[Camera],
    seen: Contributions,
    chosen: Int[Tensor, "g"],
    *,
    sh_degree: int,
    part: int = PART,
) -> Iterator[tuple[Int[Tensor, "p"], Splats]]:
    """Bakes the chosen offsets part by part, with memory for one part.

    Yields:
        Indices of the part's offsets, and their Gaussians. At least one part, which is empty if nothing is chosen.
    """
    for offsets in progress(chosen.split(part), desc="baking"):
        yield offsets, fit(model, decoder, cameras, seen, offsets, sh_degree)
