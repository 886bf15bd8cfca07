"""Perturbation: noise on Gaussians that the views still pull at, so that they may settle elsewhere.

Source: Distilled-3DGS, section on teachers, and add_noises of its scene/gaussian_model.py. The paper does not say how
large the noise is. The code's is relative to the mean absolute coordinate of the scene, so it depends on where the
origin lies; here the noise of a position is relative to the Gaussian's own size. The code also clears Adam's moments of
all Gaussians and perturbs only small ones; here the moments stay, and size does not matter, as in the paper.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.config.schema import DistillConfig
from momentum_gs.core.geometry import matrix_to_quat, quat_to_matrix
from momentum_gs.model.splats import Splats
from momentum_gs.train.growth.report import Draw

_NUMBERS = 13
"""Random numbers for each Gaussian: 3 of the position, 6 of the rotation, 3 of the scales, 1 of the opacity."""


def perturbs(step: int, config: DistillConfig) -> bool:
    """Whether Gaussians are perturbed in a step, which counts from 1."""
    return config.noise > 0 and config.from_step <= step <= config.until and step % config.noise_every == 0


@torch.no_grad()
def perturb(splats: Splats, chosen: Bool[Tensor, "n"], noise: float, draw: Draw) -> None:
    """Adds normal noise to position, rotation, scales and opacity of the chosen Gaussians, in place.

    Args:
        splats: Their colours, and all other Gaussians, keep their bits.
        chosen: Which to perturb.
        noise: Standard deviation; ``DistillConfig.noise`` has the units.
        draw: Called with 13 indices for each chosen Gaussian, ``13 * row + number``.
    """
    rows = chosen.nonzero()[:, 0]
    index = _NUMBERS * rows[:, None] + torch.arange(_NUMBERS, device=rows.device)
    # Half a step of the uniform numbers is added, in double precision, as 0 has no finite quantile.
    uniform = draw(0, index.flatten()).double() + 2.0**-25
    normal = noise * torch.special.ndtri(uniform).view(-1, _NUMBERS).to(splats.position)
    place, turn, size, opacity = normal.split((3, 6, 3, 1), dim=1)
    largest = splats.scales[rows].amax(dim=1, keepdim=True)
    splats.position[rows] += largest * place
    splats.rotation[rows] = matrix_to_quat(turned(quat_to_matrix(splats.rotation[rows]), turn))
    splats.log_scale[rows] += size
    splats.opacity[rows] += opacity


def turned(rotation: Float[Tensor, "n 3 3"], noise: Float[Tensor, "n 6"]) -> Float[Tensor, "n 3 3"]:
    """Rotations whose first two columns have noise added and are made orthonormal again (Zhou et al. 2019)."""
    first, second = (rotation[:, :, :2] + noise.view(-1, 3, 2)).unbind(dim=2)
    x = F.normalize(first, dim=1)
    y = F.normalize(second - (x * second).sum(dim=1, keepdim=True) * x, dim=1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=2)
