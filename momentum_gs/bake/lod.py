"""Builds levels of detail by merging pairs of Gaussians, the least different ones first.

A Gaussian covers w = opacity * area pixels, up to a factor that all share. Two of them with weights w_a and w_b are
replaced by the Gaussian with the mean, covariance and colour of their mixture, and with the opacity that keeps
w_a + w_b. The rasterizer blurs every Gaussian by LOW_PASS pixels^2; areas and errors are those after this blur, without
which Gaussians smaller than a pixel would seem to cover nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.core.geometry import matrix_to_quat, quat_to_matrix
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera
from momentum_gs.core.voxels import morton
from momentum_gs.model.lod import LodTree, join_trees
from momentum_gs.model.row_model import RowTable
from momentum_gs.model.splats import Splats

LOW_PASS = 0.3
"""Variance in pixels^2 that the rasterizer adds to every Gaussian [3DGS]."""
NEIGHBOURS = 4
"""Following Gaussians, in the order of a space-filling curve that is shifted anew each round, that each is compared
with."""
_CHEAPEST = 0.6
"""Of the pairs that choose each other in a round, the share that is merged: the others may find a better partner in the
next round."""
_PART = 1 << 20
"""Gaussians in one forest; bounds the memory of merging."""
_SURFACE = 1.6075
"""Exponent of Thomsen's formula for the surface of an ellipsoid, exact to 1.1 %."""
_MOST = 0.999
"""Largest opacity of a merged Gaussian."""


@dataclass
class _Rows(RowTable):
    """Gaussians that have not found a partner."""

    mean: Float[Tensor, "n 3"]
    cov: Float[Tensor, "n 3 3"]
    sh: Float[Tensor, "n k 3"]
    blur: Float[Tensor, "n"]
    """Variance that the rasterizer adds, squared training units."""
    opacity: Float[Tensor, "n"]
    area: Float[Tensor, "n"]
    """Of the blurred Gaussian: its surface over 4 pi, the mean area of its projections over pi."""
    volume: Float[Tensor, "n"]
    """Logarithm of the determinant of the blurred covariance."""
    error: Float[Tensor, "n"]

    @classmethod
    def of(cls, mean: Tensor, cov: Tensor, sh: Tensor, blur: Tensor, weight: Tensor | None, opacity: Tensor | None,
           error: Tensor) -> "_Rows":  # fmt: skip
        """Rows of a given weight or opacity."""
        values = torch.linalg.eigvalsh(cov).clamp_min(0) + blur[:, None]
        a, b, c = (values.sqrt() ** _SURFACE).unbind(1)
        area = ((a * b + a * c + b * c) / 3) ** (1 / _SURFACE)
        if opacity is None:
            assert weight is not None
            opacity = (weight / area).clamp_max(_MOST)
        return cls(mean, cov, sh, blur, opacity, area, values.log().sum(dim=1), error)

    @property
    def weight(self) -> Float[Tensor, "n"]:
        return self.opacity * self.area

    def at(self, rows: Tensor) -> "_Rows":
        return self.from_rows({name: row[rows] for name, row in self.rows().items()})


@torch.no_grad()
def build_lod(splats: Splats, cameras: Sequence[Camera], coarsest: float = 1 / 64) -> LodTree:
    """Levels of detail of explicit Gaussians.

    Args:
        splats: G Gaussians in training units.
        cameras: Views from which the scene is looked at; they say how large a pixel is at each Gaussian.
        coarsest: Number of roots, as a share of G.

    Returns:
        At most 2 G nodes, on the CPU; the first level is ``splats``.
    """
    splats = Splats.from_rows({name: row.detach().cpu() for name, row in splats.rows().items()})
    order = morton(splats.position, torch.zeros(3)).argsort()
    parts = order.split(_PART) if len(order) else [order]
    trees = [_forest(splats.subset(part), cameras, coarsest) for part in progress(list(parts), "levels of detail")]
    return join_trees(trees)


def _forest(splats: Splats, cameras: Sequence[Camera], coarsest: float) -> LodTree:
    generator = torch.Generator().manual_seed(0)
    factor = quat_to_matrix(splats.rotation) * splats.scales[:, None, :]
    rows = _Rows.of(
        splats.position.detach(), factor @ factor.transpose(1, 2), torch.cat([splats.sh_dc, splats.sh_rest], dim=1),
        LOW_PASS * pixel_size(splats.position, cameras).square(), None, splats.opacity[:, 0].sigmoid(),
        splats.position.new_zeros(len(splats)),
    )  # fmt: skip
    node = torch.arange(len(rows.mean))
    parents, merged, errors = [torch.full_like(node, -1)], [], [rows.error]
    total = len(node)
    while len(node) > max(1, coarsest * len(splats)):
        first, second, cost = _pairs(rows, generator)
        pair = _merge(rows.at(first), rows.at(second), cost)
        new = torch.arange(total, total + len(first))
        parent = torch.cat(parents)
        parent[node[first]], parent[node[second]] = new, new
        parents = [parent, torch.full_like(new, -1)]
        merged.append(_splats(pair))
        errors.append(pair.error)
        alone = torch.ones(len(node), dtype=torch.bool)
        alone[first] = alone[second] = False
        kept, made = rows.at(alone).rows(), pair.rows()
        rows = _Rows.from_rows({name: torch.cat([kept[name], made[name]]) for name in kept})
        node, total = torch.cat([node[alone], new]), total + len(new)
    return LodTree(Splats.cat([splats, *merged]), torch.cat(parents), torch.cat(errors))


def pixel_size(position: Float[Tensor, "n 3"], cameras: Sequence[Camera]) -> Float[Tensor, "n"]:
    """Length of a pixel at each position for the camera that is nearest to it, in the unit of the positions."""
    centers = torch.stack([camera.center for camera in cameras]).to(position)
    focal = position.new_tensor([(camera.fx + camera.fy) / 2 for camera in cameras])
    found = []
    for part in position.detach().split(1 << 14):
        distance, camera = torch.cdist(part, centers).min(dim=1)
        found.append(distance / focal[camera])
    return torch.cat(found) if found else position.new_zeros(0)


def _pairs(rows: _Rows, generator: torch.Generator) -> tuple[Int[Tensor, "p"], Int[Tensor, "p"], Float[Tensor, "p"]]:
    """Pairs to merge, and what it costs: each the best partner of the other among its neighbours on the curve."""
    n = len(rows.mean)
    order = morton(rows.mean, torch.rand(3, generator=generator)).argsort()
    ordered = rows.at(order)
    best, mate = rows.mean.new_full((n,), torch.inf), torch.full((n,), -1)
    for step in range(1, min(NEIGHBOURS, n - 1) + 1):
        first, second = torch.arange(n - step), torch.arange(step, n)
        cost = _cost(ordered.at(first), ordered.at(second))
        for one, other in ((first, second), (second, first)):
            better = cost < best[one]
            best[one[better]], mate[one[better]] = cost[better], other[better]
    index = torch.arange(n)
    first = index[(mate[mate] == index) & (index < mate)]
    count = max(1, int(_CHEAPEST * len(first)))
    first = first[best[first].topk(count, largest=False).indices.sort().values]
    return order[first], order[mate[first]], best[first]


def _mixture(a: _Rows, b: _Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Share of a, mean, covariance and blur of the mixture of two Gaussians."""
    share = a.weight / (a.weight + b.weight)
    p, q, apart = share[:, None], 1 - share[:, None], a.mean - b.mean
    cov = p[:, :, None] * a.cov + q[:, :, None] * b.cov + (p * q)[:, :, None] * apart[:, :, None] * apart[:, None, :]
    return share, p * a.mean + q * b.mean, cov, share * a.blur + (1 - share) * b.blur


def _cost(a: _Rows, b: _Rows) -> Float[Tensor, "p"]:
    """Upper bound on the divergence of the merged Gaussian from the mixture (Runnalls 2007), plus what the colours
    differ from their mean, squared; both by weight, so in the unit of areas."""
    share, _, cov, blur = _mixture(a, b)
    weight = a.weight + b.weight
    volume = torch.logdet(cov + torch.diag_embed(blur[:, None].expand(-1, 3)))
    shape = (volume - share * a.volume - (1 - share) * b.volume) / 2
    color = share * (1 - share) * (a.sh[:, 0] - b.sh[:, 0]).square().sum(dim=1)
    return weight * (shape.clamp_min(0) + color)


def _merge(a: _Rows, b: _Rows, cost: Float[Tensor, "p"]) -> _Rows:
    share, mean, cov, blur = _mixture(a, b)
    sh = share[:, None, None] * a.sh + (1 - share)[:, None, None] * b.sh
    error = torch.maximum(torch.maximum(a.error, b.error), cost.clamp_min(torch.finfo(cost.dtype).tiny))
    return _Rows.of(mean, cov, sh, blur, a.weight + b.weight, None, error)


def _splats(rows: _Rows) -> Splats:
    values, axes = torch.linalg.eigh(rows.cov)
    axes = axes * torch.linalg.det(axes).sign()[:, None, None]
    smallest = torch.finfo(values.dtype).eps * values[:, 2:].clamp_min(torch.finfo(values.dtype).tiny)
    return Splats(
        rows.mean, rows.sh[:, :1], rows.sh[:, 1:], torch.maximum(values, smallest).log() / 2, matrix_to_quat(axes),
        rows.opacity.logit(eps=1e-6)[:, None],
    )  # fmt: skip
