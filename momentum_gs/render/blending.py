"""How much each Gaussian contributes to a render."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.render.rasterize import rasterize


def blending_weights(gaussians: Gaussians, camera: Camera, around: Gaussians | None = None) -> Float[Tensor, "g"]:
    """The sum over pixels of each Gaussian's transmittance times alpha.

    An image is the sum of colour times this weight, so the gradient of its sum by the colours is exactly that.

    Args:
        gaussians: G Gaussians.
        camera: The view.
        around: Further Gaussians, which hide others but are not weighed.
    """
    with torch.enable_grad():
        colors = torch.zeros_like(gaussians.opacities).requires_grad_()
        fixed = Gaussians(*(getattr(gaussians, name).detach() for name in gaussians.__dataclass_fields__))
        if around is not None:
            around = replace(around, colors=torch.zeros_like(around.opacities))
        image = rasterize(replace(fixed, colors=colors), camera, colors.new_zeros(1), around=around).image
        (weight,) = torch.autograd.grad(image.sum(), colors)
    return weight.squeeze(1)
