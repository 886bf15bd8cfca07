"""Small random models, and values of the official code (parity.md), that several test files use."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder

PARITY = Path(__file__).parent / "fixtures" / "parity"


def parity(name: str) -> dict[str, Tensor]:
    """The values in one file; scalars are 0-d tensors."""
    with np.load(PARITY / f"{name}.npz") as figures:
        return {key: torch.from_numpy(np.asarray(figures[key])) for key in figures.files}


def random_anchors(
    n: int, n_offsets: int = 4, feature_dim: int = 8, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Anchors:
    """Anchors whose every row is random, so that a mixed-up row or column shows."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=dtype)

    return Anchors(
        position=normal(n, 3),
        offset=normal(n, n_offsets, 3),
        feature=normal(n, feature_dim),
        log_scale=normal(n, 6) * 0.3 - 2,
        rotation=torch.nn.functional.normalize(normal(n, 4)),
        opacity=normal(n, 1),
    ).as_leaves()


def random_decoder(feature_dim: int = 8, n_offsets: int = 4, *, seed: int = 0, **flags: bool) -> GaussianDecoder:
    """A decoder whose weights depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GaussianDecoder(feature_dim, n_offsets, **flags)


def parity_decoder(prefix: str) -> GaussianDecoder:
    """Student or teacher of decoder.npz."""
    figures = parity("decoder")
    decoder = GaussianDecoder(32, 10)
    weights = {k.removeprefix(f"{prefix}."): v for k, v in figures.items() if k.startswith(f"{prefix}.")}
    decoder.load_state_dict(weights)
    return decoder


def parity_anchors() -> Anchors:
    """The anchors of decoder.npz."""
    figures = parity("decoder")
    position = figures["anchor"]
    anchors = Anchors.fresh(position, figures["feature"], figures["log_scaling"], 10)
    anchors.offset = figures["offset"]
    return anchors.as_leaves()
