"""Growth and pruning of anchors.

Notation: N anchors with K offsets each. Thresholds are those of ``GrowthConfig``. Source: training_statis,
adjust_anchor and anchor_growing of Scaffold-GS, scene/gaussian_model.py.
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
from momentum_gs.model.fused import count_view
from momentum_gs.train.growth.report import Draw, GrowthReport, RowStats


@dataclass
class GrowthStats(RowStats):
    """Statistics of every anchor and offset over the views since the last growth at which it was eligible."""

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
        """Statistics of anchors that no view has been counted for."""
        n, k, like = len(anchors), anchors.n_offsets, anchors.position
        return cls(like.new_zeros(n * k, 1), like.new_zeros(n * k, 1), like.new_zeros(n, 1), like.new_zeros(n, 1))

    @torch.no_grad()
    def observe(self, decoded: Decoded, output: RenderOutput) -> None:
        """Adds the statistics of one view; to be called after its backward pass."""
        if len(decoded.visible) == 0:
            return
        kept = decoded.kept.view(len(decoded.visible), -1)
        count_view(
            decoded.visible, kept, decoded.neural_opacity.detach().view_as(kept), output.radii,
            output.screen_means.grad, opacities=self.opacity_accum[:, 0], views=self.anchor_denom[:, 0],
            gradients=self.offset_gradient_accum.view(-1, kept.shape[1]),
            drawn=self.offset_denom.view(-1, kept.shape[1]),
        )  # fmt: skip


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
    """Adds anchors at eligible offsets with large gradients and removes eligible anchors with low opacity.

    The statistics of eligible offsets and anchors start anew; the others keep theirs.

    Takes O(N log N) time. Rows stay on the device. On a GPU the host waits 3 + 3 * levels times, each time for a
    number that it needs to allocate memory: the numbers of kept anchors and of offsets that may grow; at each level the
    numbers of candidates, of candidates in free cells and of free cells; and once the bounding box of all candidates,
    which bounds the sort keys. It waits twice more if the cap is reached or ``inside`` excludes an anchor, and once for
    the number of those inside.

    Args:
        anchors: Consumed, like ``stats``: use the returned ones.
        optimizer: Adam of the anchors; its parameter groups and moments are edited along with the rows.
        stats: Statistics of the anchors.
        voxel_size: Edge of the finest voxel, training units.
        config: Thresholds.
        rand: Called at most once per level, in the order of levels.
        cap: Largest number of anchors after growth; None: no bound. If the levels would add more, those with the
            largest gradients (an anchor has that of its best offset) are added; among equal gradients coarser levels
            come first, then the order of cells. If more than ``cap`` are kept already, all of them stay and none is
            added. Anchors that ``inside`` excludes are not counted.
        inside: Which positions [M,3] anchors may be added at; None: all.

    Returns:
        Anchors (the kept ones in their order, then new ones by level and in the order of their cells), their statistics
        and a report. No learnable row has a gradient, even if nothing changed, so the optimizer step that follows moves
        no anchor, as in the original, which re-creates every row here.
    """
    for name in anchors.LEARNABLE:
        anchors.rows()[name].grad = None  # Freed first: the new rows need about as much memory.
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
    """Statistics by name with one row per anchor: [n, 1] for anchors, [n, k] for offsets."""
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
    """New anchors in empty cells that hold eligible offsets with a large gradient, coarse cells first.

    Returns:
        At most ``room`` new anchors, their number by level, and the number refused for lack of room.
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
    # Cell coordinates have 32 bits in the original. A point farther away, or not finite, stems from a scale that has
    # diverged; it is replaced by its anchor's position, whose cell is occupied, so nothing grows there.
    spawned = torch.where((spawned.abs() < min(sizes) * 2.0**31).all(dim=1, keepdim=True), spawned, home)
    corners = torch.stack([spawned.amin(0), spawned.amax(0)])
    boxes = torch.stack([cells_of(corners, size) for size in sizes]).tolist()

    position, n_new = anchors.position, 0
    # For each level: rows of the pool, the new anchor that each supports, and the new anchors' centers and log scales.
    support, target, centers, log_scales = [], [], [], []
    for level, (size, threshold, (low, high)) in enumerate(zip(sizes, thresholds, boxes, strict=True)):
        if level > 0 and n_new == 0:
            # As in the original, finer levels follow only if coarser ones have added anchors.
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
    chosen = None if inside is None else inside(center).nonzero().squeeze(1)
    n_new = n_new if chosen is None else len(chosen)
    if room is not None and n_new > room:
        best = scatter_max(gradient[row].unsqueeze(1), group, len(center)).squeeze(1)
        best = best if chosen is None else best[chosen]
        first = best.argsort(descending=True, stable=True)[:room].sort().values
        chosen, refused = first if chosen is None else chosen[first], n_new - room
    if chosen is not None and len(chosen) < len(center):
        fits = torch.zeros_like(center[:, 0], dtype=torch.bool).index_fill_(0, chosen, True)
        supports = fits[group].nonzero().squeeze(1)
        row, group = row[supports], (fits.cumsum(0) - 1)[group[supports]]
        center, log_scale = center[chosen], log_scale[chosen]
        grown = tuple(torch.stack([part.sum() for part in fits.split(grown)]).tolist())
    feature = scatter_max(anchors.feature.index_select(0, source[row]), group, len(center))
    return Anchors.fresh(center, feature, log_scale, anchors.n_offsets), grown, refused
