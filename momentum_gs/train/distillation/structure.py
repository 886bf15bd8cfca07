"""How much the spatial distribution of one cloud of Gaussians differs from another's.

The positions of both clouds are counted in the voxels of a grid over their common box; the loss is one minus the cosine
of the two histograms. Only occupied voxels are stored, so memory grows with the number of Gaussians, not with that of
voxels. Source: Distilled-3DGS, structural similarity loss. The paper describes hard counts, which have no gradient;
its code (structure_voxel_loss) has soft counts on each axis and multiplies the three histograms, which cannot tell a
diagonal from its mirror image. Here the counts are joint and soft.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.core.rows import sum_runs

Counts = Literal["trilinear", "gaussian", "marginals", "hard"]
"""How a point is counted: in the 8 voxels around it, linearly; in 64 voxels, by a normal density; ``marginals``: as
``trilinear``, on each axis for itself; ``hard``: in its own voxel, without a gradient."""

_SIGMA = 0.5
"""Standard deviation of ``gaussian`` in voxels, as in the code of Distilled-3DGS."""

_Counted = tuple[Int[Tensor, "..."], Float[Tensor, "..."]]
"""Voxels, of which some may be equal, and how much is counted in each."""


def structure_loss(
    student: Float[Tensor, "n 3"], teacher: Float[Tensor, "m 3"], grid: int, counts: Counts = "trilinear"
) -> Float[Tensor, ""]:
    """One minus the cosine of the clouds' histograms: 0 for equal clouds in any order, 1 for clouds without a common
    voxel. Differentiable in ``student``, save for ``hard``.

    Args:
        student: At least one position, in any unit.
        teacher: At least one position, in the same unit; held fixed.
        grid: Voxels along each axis of the common box, whose faces are the extremes of both clouds. The box is held
            fixed in the gradient.
        counts: How a point is counted.
    """
    low, edge = _voxels(student, teacher, grid)
    mine, theirs = (_by_axis((cloud - low) / edge, grid, counts) for cloud in (student, teacher.detach()))
    if counts == "marginals":
        # The cosine of two outer products is the product of their factors' cosines.
        axes = [[(part[0][:, axis], part[1][:, axis]) for part in (mine, theirs)] for axis in range(3)]
        return 1 - torch.stack([_cosine(*pair) for pair in axes]).prod()
    return 1 - _cosine(_joint(mine, grid), _joint(theirs, grid))


def _voxels(student: Tensor, teacher: Tensor, grid: int) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """The lower corner of the common box and the edges of its voxels."""
    both = torch.cat([student.detach(), teacher.detach()])
    low = both.amin(dim=0)
    extent = both.amax(dim=0) - low
    # An axis without extent has one voxel, whatever its edge.
    return low, torch.where(extent > 0, extent, 1) / grid


def _by_axis(place: Float[Tensor, "n 3"], grid: int, counts: Counts) -> _Counted:
    """Voxels [N,3,K] on each axis for itself in which every point counts, and how much, for places in units of voxels.

    A point counts as 1. What would count beyond the outermost voxels counts in these.
    """
    if counts == "hard":
        taps = place.floor()[:, :, None]
        weight = torch.ones_like(taps)
    else:
        passed = (place - 0.5).detach().floor()[:, :, None]  # The last voxel whose centre lies below the point.
        near = 2 if counts == "gaussian" else 1
        taps = passed + torch.arange(1 - near, 1 + near, device=place.device)
        away = place[:, :, None] - 0.5 - taps
        normal = torch.softmax(-away.square() / (2 * _SIGMA**2), dim=2)
        weight = normal if counts == "gaussian" else 1 - away.abs()
    return taps.long().clamp(0, grid - 1), weight


def _joint(counted: _Counted, grid: int) -> _Counted:
    """The voxels [N,K^3] that are in the given ones on all three axes, and the products of their weights."""
    (i, j, k), (x, y, z) = (part.unbind(dim=1) for part in counted)
    key = (i[:, :, None, None] * grid + j[:, None, :, None]) * grid + k[:, None, None, :]
    return key.flatten(1), (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]).flatten(1)


def _cosine(one: _Counted, other: _Counted) -> Float[Tensor, ""]:
    """Cosine of two histograms."""
    keys, place = torch.unique(torch.cat([one[0].flatten(), other[0].flatten()]), return_inverse=True)
    places = place.split([one[0].numel(), other[0].numel()])
    histograms = []
    for weight, at in zip((one[1], other[1]), places, strict=True):
        order = at.argsort(stable=True)
        histograms.append(_SumRuns.apply(weight.flatten()[order], at[order], len(keys)))
    first, second = histograms
    return (first @ second) / (first.norm() * second.norm())


class _SumRuns(torch.autograd.Function):
    """``sum_runs`` with a gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(index)
        return sum_runs(values[:, None], index, n)[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grads[0][index], None, None


def structure_loss_reference(
    student: Float[Tensor, "n 3"], teacher: Float[Tensor, "m 3"], grid: int, counts: Counts = "trilinear"
) -> Float[Tensor, ""]:
    """``structure_loss`` by dense histograms, with memory for (N + M) grid + grid^3 numbers."""
    low, edge = _voxels(student, teacher, grid)
    centers = torch.arange(grid, device=student.device) + 0.5
    histograms = []
    for cloud in (student, teacher.detach()):
        place = ((cloud - low) / edge)[:, :, None]
        if counts == "hard":
            axes = ((place >= centers - 0.5) & ((place < centers + 0.5) | (centers == grid - 0.5))).to(place)
        elif counts == "gaussian":  # Of four voxels; what lies beyond the grid counts in the outermost.
            wide = torch.arange(-2, grid + 2, device=place.device) + 0.5
            passed = (place - 0.5).detach().floor() + 0.5
            density = torch.exp(-(place - wide).square() / (2 * _SIGMA**2)) * ((wide - passed - 0.5).abs() < 2)
            density = density / density.sum(dim=2, keepdim=True)
            first, inner, last = density.split((3, grid - 2, 3), dim=2) if grid > 1 else (density, None, None)
            axes = first.sum(dim=2, keepdim=True)
            if inner is not None and last is not None:
                axes = torch.cat([axes, inner, last.sum(dim=2, keepdim=True)], dim=2)
        else:
            axes = (1 - (place.clamp(0.5, grid - 0.5) - centers).abs()).clamp_min(0)
        x, y, z = axes.unbind(dim=1)
        if counts == "marginals":
            histogram = torch.einsum("a,b,c->abc", x.sum(dim=0), y.sum(dim=0), z.sum(dim=0))
        else:
            histogram = torch.einsum("na,nb,nc->abc", x, y, z)
        histograms.append(histogram.flatten())
    first, second = histograms
    return 1 - (first @ second) / (first.norm() * second.norm())
