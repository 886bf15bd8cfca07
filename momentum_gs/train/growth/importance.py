"""Pruning by importance: the blending weight that a Gaussian has in the training views, summed over pixels and views.

Source: Mini-Splatting (Fang and Wang 2024), which draws Gaussians by importance instead of keeping the most important:
a region of many small contributions, each below a threshold, would be lost as a whole.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from momentum_gs.core.types import Camera
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.splats import Harmonics, Model
from momentum_gs.render.blending import blending_weights
from momentum_gs.render.view import decode_view
from momentum_gs.train.growth.report import Draw


@torch.no_grad()
def importance(
    model: Model, decoder: Decoder | Harmonics, cameras: Sequence[Camera], around: Model | None = None
) -> Float[Tensor, "nk"]:
    """Blending weight of every Gaussian, summed over the pixels of all views.

    Args:
        model: N anchors with K offsets, or N Gaussians (K = 1), on the device that renders.
        decoder: Of the model, and of ``around``.
        cameras: The views; each is rendered once.
        around: Further rows, which hide others but are not weighed.

    Returns:
        In pixels, on the device of the model; offset j of anchor i has the index i K + j.
    """
    total = model.position.new_zeros(len(model) * model.n_offsets)
    for camera in cameras:
        decoded = decode_view(model, decoder, camera)
        beside = None if around is None else decode_view(around, decoder, camera).gaussians
        first = decoded.visible * model.n_offsets
        offset = (first[:, None] + torch.arange(model.n_offsets, device=first.device)).flatten()[decoded.kept]
        # Every offset occurs once in a view, so the order of the sums does not matter.
        total.index_add_(0, offset, blending_weights(decoded.gaussians, camera, beside))
    return total


def sample_by_importance(weight: Float[Tensor, "n"], count: int, draw: Draw) -> Int[Tensor, "m"]:
    """Rows drawn without replacement, each time in proportion to the weights of those that are left.

    The largest of log(weight) plus a Gumbel number are such a draw (Efraimidis and Spirakis 2006).

    Args:
        weight: At least 0; rows of weight 0 are never drawn.
        count: How many, or fewer if fewer have a weight.
        draw: Called with all rows; the result depends on row numbers alone, not on the device.

    Returns:
        Ascending.
    """
    rows = torch.arange(len(weight), device=weight.device)
    # Half a step of the uniform numbers is added, as 0 has no finite logarithm.
    uniform = draw(0, rows).double() + 2.0**-25
    keys = weight.double().log() - (-uniform.log()).log()
    drawn = keys.argsort(descending=True, stable=True)[: min(count, int((weight > 0).sum()))]
    return drawn.sort().values


def most_important(weight: Float[Tensor, "n"], share: float) -> Bool[Tensor, "n"]:
    """The fewest rows that together have at least ``share``, in (0, 1], of the sum of the weights."""
    order = weight.argsort(descending=True, stable=True)
    before = weight[order].double().cumsum(0) - weight[order].double()
    return torch.zeros_like(weight, dtype=torch.bool).index_put_((order,), before < share * weight.double().sum())
