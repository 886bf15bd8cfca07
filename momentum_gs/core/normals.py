"""Normals of a point cloud: of the plane through each point's nearest neighbours."""

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.nearest import PointTree

NEIGHBOURS = 12
"""Points of which a plane is fitted, the point itself included: enough that the noise of sparse points does not tilt
it, and few enough to stay on one wall or roof."""
_BATCH = 2**17
"""Points at once: their neighbours take some 100 MB."""


@torch.no_grad()
def point_normals(points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Unit normals, whose sign means nothing: the axis along which each point's nearest neighbours vary least.

    Args:
        points: In host memory; finite, in any unit.
    """
    if not len(points):
        return points.clone()
    tree, normals = PointTree(points), []
    for part in points.split(_BATCH):
        near = tree.nearest(part, NEIGHBOURS)[1]
        apart = points[near] - points[near].mean(dim=1, keepdim=True)
        normals.append(torch.linalg.eigh(apart.mT @ apart).eigenvectors[:, :, 0])
    return torch.cat(normals)
