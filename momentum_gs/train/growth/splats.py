"""Densification of splats: clone what is small, split what is large, prune what is faint or huge, reset opacities.

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
"""A child's scales are its parent's over this [3DGS]."""
_RESET_OPACITY = 0.01
"""Bound that a reset puts on opacities [3DGS]."""


@dataclass
class SplatStats(RowStats):
    """What the views since the last densification said about every splat."""

    gradient_accum: Float[Tensor, "n 1"]
    """Sum of the norms of the screen-space gradients, NDC."""
    denom: Float[Tensor, "n 1"]
    """Views in which the splat was drawn."""
    max_radius: Float[Tensor, "n 1"]
    """Largest radius on the screen, pixels."""

    @classmethod
    def zeros(cls, splats: Splats) -> "SplatStats":
        """Nothing seen yet."""
        return cls(*(splats.position.new_zeros(len(splats), 1) for _ in fields(cls)))

    @torch.no_grad()
    def observe(self, output: RenderOutput) -> None:
        """Count one view of all splats; to be called after its backward pass."""
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
    """Clone or split the splats with a large mean screen gradient, prune, and start the counts anew.

    A splat with scales up to ``percent_dense * extent`` is cloned where it is; a larger one gives way to two of
    1/1.6 its scales, at places drawn from it.

    Args:
        splats: Consumed, like ``stats``: use what is returned.
        optimizer: Adam of the splats; its groups and moments follow the rows.
        extent: Radius of the cameras, training units.
        draw: Asked for six numbers for each splat that is split: child and axis, ``6 * row + 3 * child + axis``.
        prune_large: Also prune by size, in the world and on the screen.
        cap: Splats that there may be afterwards; those with the largest gradients find room. Where more survive the
            pruning, they stay, and none is added. None: no bound.

    Returns:
        Splats (those that stay in their order, then clones, then the first and the second children), their statistics
        and a report: ``grown`` counts clones and splits, ``pruned`` what left without children. All rows come without
        a gradient, so the optimizer step that follows moves no splat: so it is in 3DGS, which re-creates them here.
    """
    for row in splats.rows().values():
        row.grad = None  # First, as its memory is about what the new rows need.
    size = splats.log_scale.amax(dim=1).exp()
    faint = splats.opacity.squeeze(1).sigmoid() < config.min_opacity
    too_large = (size > config.max_world_size * extent) & prune_large
    too_wide = torch.zeros_like(faint)
    if prune_large and config.max_screen_radius is not None:
        too_wide = stats.max_radius.squeeze(1) > config.max_screen_radius
    lasting = ~(faint | too_large | too_wide)

    gradient = (stats.gradient_accum / stats.denom.clamp_min(1)).squeeze(1)
    hot = gradient >= config.grad_threshold
    large = size > config.percent_dense * extent
    clone = hot & ~large & lasting
    # What is too large itself may have children that are not.
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
    """Two for each parent: all first ones, then all second ones."""
    parent = splats.subset(parents)
    index = 3 * _CHILDREN * parents[None, :, None] + 3 * torch.arange(_CHILDREN, device=parents.device)[:, None, None]
    index = index + torch.arange(3, device=parents.device)
    # The middles of the cells in which uniform numbers fall, in double precision: 0 and 1 have no finite quantile.
    uniform = draw(0, index.flatten()).double() + 2.0**-25
    normal = torch.special.ndtri(uniform).view(_CHILDREN, len(parents), 3).to(parent.position)
    apart = torch.einsum("pij,cpj->cpi", quat_to_matrix(parent.rotation), normal * parent.scales)
    rows = {name: row.detach().repeat(_CHILDREN, *[1] * (row.ndim - 1)) for name, row in parent.rows().items()}
    rows["position"] += apart.flatten(0, 1)
    rows["log_scale"] -= torch.tensor(_SHRINK).log()
    return Splats.from_rows(rows)


@torch.no_grad()
def reset_opacity(splats: Splats, optimizer: Adam | None) -> None:
    """Bounds all opacities by 0.01, in place, and forgets their gradient and moments, so that they rest this step.

    What the views need grows back; what hides in front of the cameras is pruned.
    """
    splats.opacity.clamp_(max=logit(_RESET_OPACITY))
    splats.opacity.grad = None
    state = {} if optimizer is None else optimizer.state.get(splats.opacity, {})
    for name in MOMENTS:
        if name in state:
            state[name].zero_()
