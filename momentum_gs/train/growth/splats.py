"""Densification of splats: small ones are cloned, large ones split, faint or huge ones pruned; opacities are reset.

Source: densify_and_prune, reset_opacity and add_densification_stats of 3DGS, scene/gaussian_model.py.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim import Adam

from momentum_gs.config.schema import GaussiansConfig
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.rows import MOMENTS
from momentum_gs.core.types import RenderOutput
from momentum_gs.model.row_model import logit
from momentum_gs.model.splats import Splats
from momentum_gs.train.growth.report import Draw, GrowthReport, RowStats

_CHILDREN = 2
_SHRINK = 0.8 * _CHILDREN
"""A child's scales are its parent's divided by this [3DGS]."""
_RESET_OPACITY = 0.01
"""Highest opacity after a reset [3DGS]."""


@dataclass
class SplatStats(RowStats):
    """Statistics of every splat over the views since the last densification."""

    gradient_accum: Float[Tensor, "n 1"]
    """Sum of the norms of the screen-space gradients, NDC."""
    denom: Float[Tensor, "n 1"]
    """Views in which the splat was drawn."""
    max_radius: Float[Tensor, "n 1"]
    """Largest radius on the screen, pixels."""

    @classmethod
    def zeros(cls, splats: Splats) -> "SplatStats":
        """Statistics of splats that no view has been counted for."""
        return cls(*(splats.position.new_zeros(len(splats), 1) for _ in fields(cls)))

    @property
    def gradient(self) -> Float[Tensor, "n"]:
        """Mean norm of the screen-space gradient over the views that drew the splat, NDC."""
        return (self.gradient_accum / self.denom.clamp_min(1)).squeeze(1)

    @torch.no_grad()
    def observe(self, output: RenderOutput) -> None:
        """Adds the statistics of one view of all splats; to be called after its backward pass."""
        drawn = (output.radii > 0).unsqueeze(1)
        if output.screen_means.grad is not None:
            gradient = output.screen_means.grad[:, :2].norm(dim=1, keepdim=True)
            self.gradient_accum += torch.where(drawn, gradient, 0.0)
        self.denom += drawn
        torch.maximum(self.max_radius, output.radii.unsqueeze(1).to(self.max_radius), out=self.max_radius)


@torch.no_grad()
def densify_and_prune(
    splats: Splats,
    optimizer: Adam | None,
    stats: SplatStats,
    extent: float,
    config: GaussiansConfig,
    draw: Draw,
    *,
    prune_large: bool,
    cap: int | None = None,
) -> tuple[Splats, SplatStats, GrowthReport]:
    """Clones or splits the splats with a large mean screen-space gradient, prunes, and starts the statistics anew.

    A splat with scales up to ``percent_dense * extent`` is cloned in place; a larger one is replaced by two with scales
    divided by 1.6, whose positions are drawn from it.

    Args:
        splats: Consumed, like ``stats``: use the returned ones.
        optimizer: Adam of the splats; its parameter groups and moments are edited along with the rows.
        stats: Statistics of the splats.
        extent: Radius of the cameras, training units.
        config: Thresholds.
        draw: Called with six indices for each splat that is split, ``6 * row + 3 * child + axis``.
        prune_large: Also prune by size, in the world and on the screen.
        cap: Largest number of splats afterwards; those with the largest gradients are cloned or split. If more survive
            the pruning, all of them stay and none is added. None: no bound.

    Returns:
        Splats (the kept ones in their order, then clones, then all first and all second children), their statistics
        and a report: ``grown`` counts clones and splits, ``pruned`` the splats removed without children. No row has a
        gradient, so the optimizer step that follows moves no splat, as in 3DGS, which re-creates the rows here.
    """
    for row in splats.rows().values():
        row.grad = None  # Freed first: the new rows need about as much memory.
    size = splats.log_scale.amax(dim=1).exp()
    faint = splats.opacity.squeeze(1).sigmoid() < config.min_opacity
    too_large = (size > config.max_world_size * extent) & prune_large
    too_wide = torch.zeros_like(faint)
    if prune_large and config.max_screen_radius is not None:
        too_wide = stats.max_radius.squeeze(1) > config.max_screen_radius
    lasting = ~(faint | too_large | too_wide)

    gradient = stats.gradient
    hot = gradient >= config.grad_threshold
    large = size > config.percent_dense * extent
    clone = hot & ~large & lasting
    # A splat that is too large itself is split if its children are not too large.
    split = hot & large & ~faint & ~((size / _SHRINK > config.max_world_size * extent) & prune_large)

    added = clone.long() + torch.where(lasting, 1, _CHILDREN) * split
    refused = 0
    if cap is not None and int(lasting.sum() + added.sum()) > cap:
        room = max(cap - int(lasting.sum()), 0)
        order = torch.where(added > 0, gradient, -1.0).argsort(descending=True, stable=True)
        fits = torch.empty_like(hot).index_put_((order,), added[order].cumsum(0) <= room)
        refused = int(added[~fits].sum())
        clone, split = clone & fits, split & fits

    kept, cloned, parents = (mask.nonzero().squeeze(1) for mask in (lasting & ~split, clone, split))
    report = GrowthReport((len(cloned), len(parents)), len(splats) - len(kept) - len(parents), refused)
    new = Splats.cat([splats.subset(cloned), _children(splats, parents, draw)])
    edited = splats.edited(kept, new.rows(), optimizer)
    return edited, SplatStats.zeros(edited), report


def _children(splats: Splats, parents: Int[Tensor, "m"], draw: Draw) -> Splats:
    """Two children for each parent: all first children, then all second ones."""
    parent = splats.subset(parents)
    index = 3 * _CHILDREN * parents[None, :, None] + 3 * torch.arange(_CHILDREN, device=parents.device)[:, None, None]
    index = index + torch.arange(3, device=parents.device)
    # Uniform numbers are multiples of 2^-24; half of that is added, in double precision, as 0 has no finite quantile.
    uniform = draw(0, index.flatten()).double() + 2.0**-25
    normal = torch.special.ndtri(uniform).view(_CHILDREN, len(parents), 3).to(parent.position)
    apart = torch.einsum("pij,cpj->cpi", quat_to_matrix(parent.rotation), normal * parent.scales)
    rows = {name: row.detach().repeat(_CHILDREN, *[1] * (row.ndim - 1)) for name, row in parent.rows().items()}
    rows["position"] += apart.flatten(0, 1)
    rows["log_scale"] -= torch.tensor(_SHRINK).log()
    return Splats.from_rows(rows)


@torch.no_grad()
def reset_opacity(splats: Splats, optimizer: Adam | None) -> None:
    """Limits all opacities to 0.01, in place, and clears their gradient and moments, so this step does not move them.

    Splats that the views need regain their opacity; the others, such as floaters near the cameras, are pruned.
    """
    splats.opacity.clamp_(max=logit(_RESET_OPACITY))
    splats.opacity.grad = None
    state = {} if optimizer is None else optimizer.state.get(splats.opacity, {})
    for name in MOMENTS:
        if name in state:
            state[name].zero_()
