"""How much each Gaussian contributes to a render."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.render.rasterize import rasterize


def blending_weights(gaussians: Gaussians, camera: Camera, around: Gaussians | None = None) -> Float[Tensor, "g"]:
    """The sum over pixels of each Gaussian's transmittance times alpha.

    Args:
        gaussians: G Gaussians.
        camera: The view.
        around: Further Gaussians, which hide others but are not weighed.
    """
    return blending_sums(gaussians, camera, None, around).squeeze(1)


def blending_sums(
    gaussians: Gaussians,
    camera: Camera,
    pixels: Float[Tensor, "c h w"] | None,
    around: Gaussians | None = None,
) -> Float[Tensor, "g c"]:
    """The sum over pixels of each Gaussian's transmittance times alpha times the value of the pixel.

    An image is the sum of colour times this weight, so the gradient of its sum, each pixel times its value, by the
    colours is exactly that.

    Args:
        gaussians: G Gaussians.
        camera: The view.
        pixels: C values of each pixel, on the device of the Gaussians; None: one, which is 1.
        around: Further Gaussians, which hide others but are not weighed.
    """
    channels = 1 if pixels is None else len(pixels)
    with torch.enable_grad():
        colors = torch.zeros_like(gaussians.opacities).repeat(1, channels).requires_grad_()
        fixed = Gaussians(*(getattr(gaussians, name).detach() for name in gaussians.__dataclass_fields__))
        if around is not None:
            around = replace(around, colors=torch.zeros_like(around.opacities).repeat(1, channels))
        image = rasterize(replace(fixed, colors=colors), camera, colors.new_zeros(channels), around=around).image
        (sums,) = torch.autograd.grad(image.sum() if pixels is None else (image * pixels).sum(), colors)
    return sums
