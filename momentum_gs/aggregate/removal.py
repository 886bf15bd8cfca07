"""What the removal of each Gaussian would change in the images, the depths and the normals of some views.

A pixel is linear in the alpha of each Gaussian, so that the removal of Gaussian i changes channel c of pixel p by
exactly d_i(p, c) = -alpha_i dC(p, c)/d alpha_i. The sum of their squares, over the thousands of pixels of a Gaussian,
is estimated from one backward pass: with independent random signs s(p, c), G_i = sum of s(p, c) d_i(p, c) is the
gradient of sum of s C by a factor of the Gaussian's opacity, and the mean of G_i^2 is the sum of d_i^2 (Hutchinson's
estimator of the diagonal of a Gram matrix). Depth and normals of the surface are not linear in alpha; there d_i is the
first order.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.view import render_view

DRAWS = 4
"""Draws of signs for each view, each with a backward pass. The square of one is off by 1.4 times its mean: after three
cuts on the city of docs/aggregation.md, four keep 0.09 dB more than one."""
_MOST = math.log(0.98 / 0.02)
"""Logit of the highest opacity that is told apart: alpha is capped at 0.99."""


def removal_error(
    splats: Splats, cameras: Sequence[Camera], background: Float[Tensor, "3"], surface: bool, seed: int = 0
) -> Float[Tensor, "n"]:
    """Estimated sum of squared changes by the removal of each Gaussian, over the pixels of all views.

    Args:
        splats: N Gaussians, on the device that renders.
        cameras: The views; each is rendered once.
        background: Behind everything.
        surface: Also the logarithm of the planar depth and the normals, which count like colours in [0, 1].
        seed: Of the random signs.

    Returns:
        At least 0; 0 for Gaussians that no view shows.
    """
    decoder, total = Harmonics(splats.sh_degree), splats.position.new_zeros(len(splats))
    # The rasterizer caps alpha, and has no gradient where the cap holds.
    splats = Splats.from_rows({**splats.rows(), "opacity": splats.opacity.detach().clamp_max(_MOST)})
    for index, camera in enumerate(cameras):
        factors = splats.position.new_ones(len(splats), 1).requires_grad_()
        view = render_view(splats, decoder, camera, background, opacity_factors=factors, surface=surface)
        channels = [view.output.image]
        if view.surface is not None:
            depth = view.surface.depth
            channels += [torch.where(view.surface.there, depth, 1).log()[None], view.surface.normal]
        drawn = torch.cat(channels)
        generator = keyed_generator(seed, "removal", index)
        for left in reversed(range(DRAWS)):
            signs = torch.randint(2, drawn.shape, generator=generator, dtype=drawn.dtype).to(drawn) * 2 - 1
            (gradient,) = torch.autograd.grad((drawn * signs).sum(), factors, retain_graph=left > 0)
            total += gradient[:, 0].square() / DRAWS
    return total
