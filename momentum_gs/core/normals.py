"""Normals of a point cloud: of the plane through each point's nearest neighbours."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.core.voxels import morton

NEIGHBOURS = 12
"""Points of which a plane is fitted, the point itself included: enough that the noise of sparse points does not tilt
it, and few enough to stay on one wall or roof."""
_SHIFTS = (0.0, 0.21, 0.47, 0.73)
"""Of the space-filling curves on which neighbours are searched: places that one curve keeps apart are close on another.
Each is a share of the longest side."""
_REACH = 8
"""Places before and after a point on each curve that are looked at."""
_BATCH = 2**15
"""Points at once: their candidates take some 100 MB."""


@torch.no_grad()
def point_normals(points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Unit normals, whose sign means nothing: the axis along which each point's neighbours vary least.

    The neighbours are the nearest among those that are near on one of a few space-filling curves, nearly always the
    nearest of all; time and memory grow with the number of points alone.

    Args:
        points: Finite, in any unit.
    """
    orders = [morton(points, points.new_full((3,), shift)).argsort(stable=True) for shift in _SHIFTS]
    places = [torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
              for order in orders]  # fmt: skip
    reach = torch.arange(-_REACH, _REACH + 1, device=points.device)
    normals = []
    for rows in torch.arange(len(points), device=points.device).split(_BATCH):
        found = [order[(place[rows, None] + reach).clamp(0, len(points) - 1)]
                 for order, place in zip(orders, places, strict=True)]  # fmt: skip
        near = _nearest(points, rows, torch.cat(found, dim=1))
        apart = points[near] - points[near].mean(dim=1, keepdim=True)
        normals.append(torch.linalg.eigh(apart.mT @ apart).eigenvectors[:, :, 0])
    return torch.cat(normals) if normals else points.clone()


def _nearest(points: Float[Tensor, "n 3"], rows: Int[Tensor, "m"], among: Int[Tensor, "m c"]) -> Int[Tensor, "m k"]:
    """The nearest of the candidates, each once."""
    among = among.sort(dim=1).values
    distance = (points[among] - points[rows, None]).square().sum(dim=2)
    distance[:, 1:].masked_fill_(among[:, 1:] == among[:, :-1], torch.inf)
    found = distance.topk(min(NEIGHBOURS, len(points)), dim=1, largest=False)
    # A candidate that was found twice takes no second place, even where there are too few others.
    return torch.where(found.values.isfinite(), among.gather(1, found.indices), rows[:, None])
