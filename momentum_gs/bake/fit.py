"""Fits explicit Gaussians to what a decoder gives for the cameras that see them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.bake.contributions import Contributions
from momentum_gs.core.types import Camera
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.harmonics import bands, basis
from momentum_gs.model.splats import SH_CONSTANT, Splats

RIDGE = 1e-3
"""Weight of the squares of the coefficients above degree 0, relative to that of all directions together. Of 0.001,
0.003, 0.01, 0.03 and 0.1, the smallest came nearest to the model's renders of held-out views: the decoder's colours
have no noise, so that only directions that nothing was seen from need it."""
_MEAN_RIDGE = 1e-3
"""Weight of the squared distance of the coefficient of degree 0 from the mean colour, likewise."""
_OPAQUE = 1 - 1e-6
"""Largest opacity that has a logit in float32."""
_SOLVED = 1 << 14
"""Gaussians whose normal equations are solved at a time: 34 MB in float64 at degree 3."""


class _Seen(NamedTuple):
    """Gaussians of a part as one camera sees them."""

    row: Int[Tensor, "c"]
    """Rows of the part."""
    weight: Float[Tensor, "c"]
    direction: Float[Tensor, "c 3"]
    """Unit vectors from the camera to the Gaussians."""
    opacity: Float[Tensor, "c"]
    scale: Float[Tensor, "c 3"]
    quat: Float[Tensor, "c 4"]
    color: Float[Tensor, "c 3"]


@torch.no_grad()
def fit(
    anchors: Anchors,
    decoder: Decoder,
    cameras: Sequence[Camera],
    seen: Contributions,
    chosen: Int[Tensor, "g"],
    sh_degree: int,
) -> Splats:
    """The Gaussians that are closest to the decoder's in the mean over cameras, each by its contribution.

    Opacity and scales are weighted means. The rotation is the weighted mean of rotations: the eigenvector of the
    largest eigenvalue of the sum of w q q^T, which does not depend on the signs of the quaternions. The harmonics c
    minimize the sum of w (Y(d)^T c + 0.5 - colour)^2 over the directions d, plus the ridge that shrinks those of
    degree 1 and above to 0 and that of degree 0 to the mean colour.

    Args:
        anchors: N anchors with K offsets.
        decoder: Their decoder.
        cameras: Those of ``seen``.
        seen: What each offset contributes.
        chosen: Ascending indices of G offsets, on the CPU; each contributes something.
        sh_degree: 0 to 3.

    Returns:
        One Gaussian for each chosen offset, in training units, on the device of the anchors.
    """
    means = means_of(anchors, chosen)
    like, n, k = means, len(chosen), (sh_degree + 1) ** 2
    weight, opacity, scale = like.new_zeros(n), like.new_zeros(n), like.new_zeros(n, 3)
    quats, normal, right = like.new_zeros(n, 4, 4), like.new_zeros(n, k, k), like.new_zeros(n, k, 3)
    for part in _sights(anchors, decoder, cameras, seen, chosen, means):
        w, row = part.weight, part.row
        y = basis(sh_degree, part.direction)
        weight.index_add_(0, row, w)
        opacity.index_add_(0, row, w * part.opacity)
        scale.index_add_(0, row, w[:, None] * part.scale)
        quats.index_add_(0, row, (w[:, None] * part.quat)[:, :, None] * part.quat[:, None, :])
        wy = w[:, None] * y
        normal.index_add_(0, row, wy[:, :, None] * y[:, None, :])
        right.index_add_(0, row, wy[:, :, None] * part.color[:, None, :])
    weight = weight.clamp_min(torch.finfo(weight.dtype).tiny)
    sh = _harmonics(normal / weight[:, None, None], right / weight[:, None, None], sh_degree)
    rotation = torch.linalg.eigh(quats / weight[:, None, None]).eigenvectors[:, :, -1]
    return Splats(
        position=means,
        sh_dc=sh[:, :1].contiguous(),
        sh_rest=sh[:, 1:].contiguous(),
        log_scale=(scale / weight[:, None]).log(),
        rotation=rotation.contiguous(),
        opacity=torch.logit((opacity / weight).clamp(1 - _OPAQUE, _OPAQUE))[:, None],
    ).as_leaves()


@torch.no_grad()
def means_of(anchors: Anchors, chosen: Int[Tensor, "g"]) -> Float[Tensor, "g 3"]:
    """Centres of the Gaussians at the chosen offsets, training units. They do not depend on the view."""
    chosen = chosen.to(anchors.position.device)
    row = chosen // anchors.n_offsets
    offset = anchors.offset.flatten(0, 1).index_select(0, chosen)
    return anchors.position.index_select(0, row) + offset * anchors.log_scale[:, :3].index_select(0, row).exp()


def _sights(
    anchors: Anchors,
    decoder: Decoder,
    cameras: Sequence[Camera],
    seen: Contributions,
    chosen: Int[Tensor, "g"],
    means: Float[Tensor, "g 3"],
) -> Iterator[_Seen]:
    """The chosen offsets, decoded for each camera that they contribute to."""
    device, n_offsets = means.device, anchors.n_offsets
    if len(chosen) == 0:
        return
    first, last = int(chosen[0]), int(chosen[-1]) + 1
    for camera, view in zip(cameras, seen.views, strict=True):
        offset, weight = view.between(first, last)
        row = torch.searchsorted(chosen, offset)
        is_chosen = chosen[row] == offset
        if not is_chosen.any():
            continue
        row, offset, weight = (values[is_chosen].to(device) for values in (row, offset, weight))
        anchor, place = torch.unique(offset // n_offsets, return_inverse=True)
        center = camera.center.to(means)
        ray = anchors.position.index_select(0, anchor) - center
        distance = ray.norm(dim=1, keepdim=True)
        output = decoder.at(anchor)(anchors.feature.index_select(0, anchor), ray / distance, distance)
        at = place * n_offsets + offset % n_offsets
        logit, quat = output.cov.flatten(0, 1).index_select(0, at).split((3, 4), dim=1)
        bound = anchors.log_scale[:, 3:].index_select(0, anchor).exp().index_select(0, place)
        yield _Seen(
            row,
            weight.to(means),
            F.normalize(means.index_select(0, row) - center),
            output.opacity.flatten().index_select(0, at),
            bound * logit.sigmoid(),
            F.normalize(quat),
            output.color.flatten(0, 1).index_select(0, at),
        )


def _harmonics(
    normal: Float[Tensor, "g k k"], right: Float[Tensor, "g k 3"], sh_degree: int
) -> Float[Tensor, "g k 3"]:
    """Solves the normal equations, which are those of weights that sum to one."""
    ridge = [_MEAN_RIDGE * SH_CONSTANT**2 if band == 0 else RIDGE for band in bands(sh_degree)]
    diagonal = torch.diag(torch.tensor(ridge, dtype=torch.float64, device=normal.device))
    parts = []
    for a, b in zip(normal.split(_SOLVED), right.split(_SOLVED), strict=True):
        a, b = a.double(), b.double()
        # Relative to the mean colour, so that the ridge pulls to it. The first harmonic is constant.
        mean = b[:, :1] / SH_CONSTANT
        x = torch.linalg.solve(a + diagonal, b - a[:, :, :1] / SH_CONSTANT * mean)
        x[:, :1] += (mean - 0.5) / SH_CONSTANT
        parts.append(x.to(normal))
    return torch.cat(parts) if parts else right
