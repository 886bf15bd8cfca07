"""Growth and pruning of anchors.

Letters: N anchors, K offsets. Thresholds come from ``GrowthConfig``; ``voxel_size`` is the edge of the finest voxel.
Source: training_statis, adjust_anchor and anchor_growing of Scaffold-GS, scene/gaussian_model.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import Adam

from momentum_gs.config.schema import GrowthConfig
from momentum_gs.core.rows import edit_rows, scatter_max
from momentum_gs.core.types import RenderOutput
from momentum_gs.core.voxels import cell_centers, cells_of, free_cells
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.expand import Decoded
from momentum_gs.train.growth.report import Draw, GrowthReport, RowStats


@dataclass
class GrowthStats(RowStats):
    """What the views since the last judgement said about every anchor and offset."""

    offset_gradient_accum: Float[Tensor, "nk 1"]
    """Sum of the norms of the screen-space gradients, NDC."""
    offset_denom: Float[Tensor, "nk 1"]
    """Views in which the offset was drawn."""
    opacity_accum: Float[Tensor, "n 1"]
    """Sum over views and offsets of the positive neural opacities."""
    anchor_denom: Float[Tensor, "n 1"]
    """Views in which the anchor was decoded."""

    @classmethod
    def zeros(cls, anchors: Anchors) -> "GrowthStats":
        """Nothing seen yet."""
        n, k, like = len(anchors), anchors.n_offsets, anchors.position
        return cls(like.new_zeros(n * k, 1), like.new_zeros(n * k, 1), like.new_zeros(n, 1), like.new_zeros(n, 1))

    @torch.no_grad()
    def observe(self, decoded: Decoded, output: RenderOutput) -> None:
        """Count one view; to be called after its backward pass."""
        visible = decoded.visible
        if len(visible) == 0:
            return
        n_offsets = len(decoded.kept) // len(visible)
        opacity = decoded.neural_opacity.clamp_min(0).view(-1, n_offsets).sum(dim=1, keepdim=True)
        self.opacity_accum.index_add_(0, visible, opacity)
        self.anchor_denom.index_add_(0, visible, torch.ones_like(opacity))

        # What was not drawn counts as zero: to leave it out would make a GPU wait for its number.
        drawn = (output.radii > 0).unsqueeze(1)
        kept = decoded.kept.nonzero().squeeze(1)
        of_visible = kept // n_offsets
        offset = visible[of_visible] * n_offsets + (kept - of_visible * n_offsets)
        if output.screen_means.grad is not None:
            gradient = output.screen_means.grad[:, :2].norm(dim=1, keepdim=True)
            self.offset_gradient_accum.index_add_(0, offset, torch.where(drawn, gradient, 0.0))
        self.offset_denom.index_add_(0, offset, drawn.to(self.offset_denom))


@torch.no_grad()
def grow_and_prune(
    anchors: Anchors,
    optimizer: Adam | None,
    stats: GrowthStats,
    voxel_size: float,
    config: GrowthConfig,
    rand: Draw,
    cap: int | None = None,
    inside: Callable[[Float[Tensor, "m 3"]], Bool[Tensor, "m"]] | None = None,
) -> tuple[Anchors, GrowthStats, GrowthReport]:
    """Judge the offsets and anchors that were seen often enough: add anchors, drop anchors, start their counts anew.

    O(N log N) in time. No row leaves the device. The host waits for a GPU 3 + 3 * levels times, each time for a number
    without which memory cannot be allocated: of the anchors that stay and of the offsets that may grow; at each level
    of the candidates, of those in free cells and of the free cells; and once for the box around all proposals, which
    bounds the sort keys. Twice more where the cap is reached.

    Args:
        anchors: Consumed, like ``stats``: use what is returned.
        optimizer: Adam of the anchors; its groups and moments follow the rows.
        rand: Called at most once a level, in the order of levels.
        cap: Anchors that there may be after growth. Of all anchors that the levels would add, those with the largest
            gradients (each that of its best offset) find room beside the ones that stay; of equal ones the coarser,
            then the first in the order of cells. Where more than ``cap`` stay, they stay, and none is added. None: no
            bound.
        inside: Where anchors may be added; None: everywhere.

    Returns:
        Anchors (kept ones in their order, then new ones by level and in the order of their cells), their statistics
        and a report. All learnable rows come without a gradient, even where nothing changed, so the optimizer step that
        follows moves no anchor: so it is in the original, which re-creates every row here.
    """
    for name in anchors.LEARNABLE:
        anchors.rows()[name].grad = None  # First, as its memory is about what the new rows need.
    interval_seen = config.interval * config.success_threshold
    eligible_offset = stats.offset_denom > interval_seen * 0.5
    eligible_anchor = stats.anchor_denom > interval_seen
    drop = eligible_anchor & (stats.opacity_accum < config.min_opacity * stats.anchor_denom)
    kept = (~drop).squeeze(1).nonzero().squeeze(1)
    pruned = len(anchors) - len(kept)

    room = None if cap is None else max(cap - len(kept), 0)
    new, grown, refused = _grow(anchors, stats, eligible_offset, voxel_size, config, rand, room, inside)
    stats.offset_denom.masked_fill_(eligible_offset, 0)
    stats.offset_gradient_accum.masked_fill_(eligible_offset, 0)
    stats.opacity_accum.masked_fill_(eligible_anchor, 0)
    stats.anchor_denom.masked_fill_(eligible_anchor, 0)

    if pruned or len(new):
        kept_or_all = kept if pruned else None
        seen = edit_rows(_by_anchor(stats, anchors), kept_or_all, _by_anchor(GrowthStats.zeros(new), new), None)
        anchors = anchors.edited(kept_or_all, new.rows(), optimizer)
        stats = GrowthStats.from_rows({name: row.view(-1, 1) for name, row in seen.items()})
    if config.max_log_scale is not None:
        anchors.log_scale[:, 3:].clamp_(max=config.max_log_scale)
    return anchors, stats, GrowthReport(grown, pruned, refused)


def _by_anchor(stats: GrowthStats, anchors: Anchors) -> dict[str, Tensor]:
    """Statistics with a row an anchor: [n, 1] of anchors, [n, k] of offsets."""
    n_offsets = {"offset_gradient_accum": anchors.n_offsets, "offset_denom": anchors.n_offsets}
    return {name: row.view(-1, n_offsets.get(name, 1)) for name, row in stats.rows().items()}


def _grow(
    anchors: Anchors,
    stats: GrowthStats,
    eligible: Bool[Tensor, "nk 1"],
    voxel_size: float,
    config: GrowthConfig,
    rand: Draw,
    room: int | None,
    inside: Callable[[Tensor], Tensor] | None,
) -> tuple[Anchors, tuple[int, ...], int]:
    """New anchors where offsets with a large gradient lie in cells without an anchor, coarse cells first.

    Returns:
        At most ``room`` of them, their number by level, and how many more there would be.
    """
    thresholds = [config.grad_threshold * (config.hierarchy_factor // 2) ** level for level in range(config.depth)]
    sizes = [voxel_size * (config.init_factor // config.hierarchy_factor**level) for level in range(config.depth)]
    mean = stats.offset_gradient_accum / stats.offset_denom
    pool = (eligible & (mean >= min(thresholds))).squeeze(1).nonzero().squeeze(1)
    if len(pool) == 0:
        return anchors.subset(pool), (0,), 0
    gradient, source = mean.squeeze(1)[pool], pool // anchors.n_offsets
    home, reach = anchors.position[source], anchors.log_scale[source, :3].exp()
    spawned = home + anchors.offset.flatten(0, 1)[pool] * reach
    # Cells have 32 bits in the original. What is farther, or not finite, comes of a scale that ran away: it proposes
    # its own anchor's cell, which is taken.
    spawned = torch.where((spawned.abs() < min(sizes) * 2.0**31).all(dim=1, keepdim=True), spawned, home)
    corners = torch.stack([spawned.amin(0), spawned.amax(0)])
    boxes = torch.stack([cells_of(corners, size) for size in sizes]).tolist()

    position, n_new = anchors.position, 0
    # Of what the levels add: rows of the pool, the new anchors that they support, where these lie and how large.
    support, target, centers, log_scales = [], [], [], []
    for level, (size, threshold, (low, high)) in enumerate(zip(sizes, thresholds, boxes, strict=True)):
        if level > 0 and n_new == 0:
            # The original looks for finer anchors only after coarser ones were added.
            break
        likely = rand(level, pool) > 0.5 ** (level + 1)
        candidate = ((gradient >= threshold) & likely).nonzero().squeeze(1)
        free, group, cells = free_cells(cells_of(spawned[candidate], size), cells_of(position, size), low, high)
        support.append(candidate[free])
        target.append(group + n_new)
        centers.append(cell_centers(cells, size, position.dtype))
        log_scale = centers[-1].new_full((len(cells), 6), size).log()
        log_scale[:, 3:] += math.log(config.birth_scale)
        log_scales.append(log_scale)
        position = torch.cat([position, centers[-1]])
        n_new += len(cells)

    row, group, center, log_scale = (torch.cat(parts) for parts in (support, target, centers, log_scales))
    grown, refused = tuple(map(len, centers)), 0
    fits = torch.ones_like(center[:, 0], dtype=torch.bool) if inside is None else inside(center)
    n_new = n_new if inside is None else int(fits.sum())
    if room is not None and n_new > room:
        best = scatter_max(gradient[row].unsqueeze(1), group, len(center)).squeeze(1)
        chosen = torch.where(fits, best, -1.0).argsort(descending=True, stable=True)[:room].sort().values
        fits, refused = torch.zeros_like(fits).index_fill_(0, chosen, True), n_new - room
    if refused or n_new < len(center):
        chosen = fits.nonzero().squeeze(1)
        supports = fits[group].nonzero().squeeze(1)
        row, group = row[supports], (fits.cumsum(0) - 1)[group[supports]]
        center, log_scale = center[chosen], log_scale[chosen]
        grown = tuple(torch.stack([part.sum() for part in fits.split(grown)]).tolist())
    feature = scatter_max(anchors.feature.index_select(0, source[row]), group, len(center))
    return Anchors.fresh(center, feature, log_scale, anchors.n_offsets), grown, refused
