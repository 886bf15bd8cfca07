"""Small random models of explicit Gaussians."""

import torch
from torch import Tensor

from momentum_gs.model.splats import Splats


def random_splats(n: int, degree: int = 3, *, seed: int = 0) -> Splats:
    """Gaussians whose every row is random, so that a mixed-up row or column is noticed."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    return Splats(
        position=normal(n, 3),
        sh_dc=normal(n, 1, 3),
        sh_rest=normal(n, (degree + 1) ** 2 - 1, 3),
        log_scale=normal(n, 3) * 0.5 - 2,
        rotation=normal(n, 4),
        opacity=normal(n, 1) * 3,
    ).as_leaves()
