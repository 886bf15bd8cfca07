"""Gradients with respect to a camera's pose.

A motion of the camera has the same effect as the opposite motion of all Gaussians. So a motion of zero, of six
parameters, is applied to the Gaussians, and its gradient is that of the pose. This needs no gradient for ``world_view``
from the rasterizer, which has one too, for all entries of the matrix.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.device import beside
from momentum_gs.core.types import Camera, Gaussians


def nudged(gaussians: Gaussians, camera: Camera, nudge: Float[Tensor, "6"]) -> Gaussians:
    """The same Gaussians, bit for bit, as a differentiable function of a small motion of the camera.

    Args:
        gaussians: The Gaussians to draw.
        camera: The view, at its present pose.
        nudge: Zeros: rotation w about the camera's centre c (radians) and translation v (training units), along the
            axes of the world. It is applied to first order, x - w cross (x - c) - v and q - (0, w) q / 2, which gives
            the exact gradient at zero.
    """
    rotation, translation = nudge.split(3)
    arm = gaussians.means - beside(camera.center, gaussians.means)
    real, imaginary = gaussians.quats.split((1, 3), dim=1)
    axis = rotation.expand_as(imaginary)
    product = torch.cat(
        [-(imaginary @ rotation)[:, None], real * rotation + torch.linalg.cross(axis, imaginary)], dim=1
    )
    return replace(
        gaussians,
        means=gaussians.means - torch.linalg.cross(axis, arm) - translation,
        quats=gaussians.quats - product / 2,
    )
