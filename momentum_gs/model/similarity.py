"""Explicit Gaussians in other coordinates: rotated, scaled and shifted, with their harmonics."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.geometry import matrix_to_quat
from momentum_gs.model.harmonics import rotation_of_harmonics
from momentum_gs.model.splats import Splats


@torch.no_grad()
def transformed(
    splats: Splats, position: Float[Tensor, "n 3"], rotation: Float[Tensor, "3 3"], scale: float
) -> Splats:
    """Gaussians at new positions, each rotated and scaled about itself.

    Args:
        splats: N Gaussians.
        position: Their new positions, of any dtype.
        rotation: From the old axes to the new ones; float64, no reflection.
        scale: Factor on their sizes.
    """
    harmonics = rotation_of_harmonics(splats.sh_degree, rotation)[1:, 1:].to(splats.sh_rest)
    return Splats(
        position=position.to(splats.position),
        sh_dc=splats.sh_dc,
        sh_rest=torch.einsum("ij,njc->nic", harmonics, splats.sh_rest),
        log_scale=splats.log_scale + math.log(scale),
        rotation=splats.rotation @ times_left(matrix_to_quat(rotation)).T.to(splats.rotation),
        opacity=splats.opacity,
    ).as_leaves()


def times_left(quaternion: Float[Tensor, "4"]) -> Float[Tensor, "4 4"]:
    """The matrix of q -> quaternion * q, float64."""
    w, x, y, z = quaternion.tolist()
    return torch.tensor([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]], dtype=torch.float64)


def times_right(quaternion: Float[Tensor, "4"]) -> Float[Tensor, "4 4"]:
    """The matrix of q -> q * quaternion, float64."""
    w, x, y, z = quaternion.tolist()
    return torch.tensor([[w, -x, -y, -z], [x, w, z, -y], [y, -z, w, x], [z, y, -x, w]], dtype=torch.float64)
