"""The gradient of a camera's pose.

The rasterizer has none. But to move the camera is to move all that it sees the other way, for which it has: the
Gaussians drawn take a motion of no length, and its gradient is the pose's.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.types import Camera, Gaussians


def nudged(gaussians: Gaussians, camera: Camera, nudge: Float[Tensor, "6"]) -> Gaussians:
    """The Gaussians as they are, to the bit, with a gradient for a small motion of the camera.

    Args:
        gaussians: What the camera draws.
        camera: The view, where it is now.
        nudge: Zeros: rotation w about the camera's centre c (radians) and translation v, in the axes of the world.
            Taken to first order, x - w cross (x - c) - v and q - (0, w) q / 2, which is exact for the gradient at zero.
    """
    turn, shift = nudge.split(3)
    arm = gaussians.means - camera.center.to(gaussians.means)
    real, imaginary = gaussians.quats.split((1, 3), dim=1)
    spin = turn.expand_as(imaginary)
    product = torch.cat([-(imaginary @ turn)[:, None], real * turn + torch.linalg.cross(spin, imaginary)], dim=1)
    return replace(
        gaussians,
        means=gaussians.means - torch.linalg.cross(spin, arm) - shift,
        quats=gaussians.quats - product / 2,
    )
