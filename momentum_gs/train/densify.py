"""Growth and pruning of anchors.

Letters: N anchors, K offsets. Thresholds come from ``GrowthConfig``; ``voxel_size`` is the edge of the finest voxel.
Source: training_statis, adjust_anchor and anchor_growing of Scaffold-GS, scene/gaussian_model.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim import Adam

from momentum_gs.config.schema import GrowthConfig
from momentum_gs.core.rows import append_rows, keep_rows, scatter_max
from momentum_gs.core.types import RenderOutput
from momentum_gs.core.voxels import cell_centers, cells_of, occupied, unique_cells
from momentum_gs.model.anchors import LEARNABLE, Anchors
from momentum_gs.model.expand import Decoded

_MAX_LOG_SCALE = 0.05
"""Bound that pruning puts on the log scales 3-5 (those of the Gaussians): e^0.05 scene units [SGS]."""


@dataclass
class GrowthStats:
    """What the views since the last judgement said about every anchor and offset."""

    offset_gradient_accum: Float[Tensor, "nk 1"]
    """Sum of the norms of the screen-space gradients, NDC."""
    offset_denom: Float[Tensor, "nk 1"]
    """Views in which the offset was drawn."""
    opacity_accum: Float[Tensor, "n 1"]
    """Sum over views and offsets of the positive neural opacities."""
    anchor_demon: Float[Tensor, "n 1"]
    """Views in which the anchor was decoded. (The original's spelling, which files keep.)"""

    @classmethod
    def zeros(cls, anchors: Anchors) -> "GrowthStats":
        """Nothing seen yet."""
        n, k, like = len(anchors), anchors.n_offsets, anchors.position
        return cls(like.new_zeros(n * k, 1), like.new_zeros(n * k, 1), like.new_zeros(n, 1), like.new_zeros(n, 1))

    def rows(self) -> dict[str, Tensor]:
        """The tensors by name; not copies."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_rows(cls, rows: Mapping[str, Tensor]) -> "GrowthStats":
        """The inverse of ``rows``."""
        return cls(**{field.name: rows[field.name] for field in fields(cls)})

    @torch.no_grad()
    def observe(self, decoded: Decoded, output: RenderOutput) -> None:
        """Count one view; to be called after its backward pass."""
        visible = decoded.visible
        if len(visible) == 0:
            return
        n_offsets = len(decoded.kept) // len(visible)
        opacity = decoded.neural_opacity.clamp_min(0).view(-1, n_offsets).sum(dim=1, keepdim=True)
        self.opacity_accum.index_add_(0, visible, opacity)
        self.anchor_demon.index_add_(0, visible, torch.ones_like(opacity))

        drawn = output.radii > 0
        kept = decoded.kept.nonzero().squeeze(1)[drawn]
        of_visible = kept // n_offsets
        offset = visible[of_visible] * n_offsets + (kept - of_visible * n_offsets)
        if output.screen_means.grad is not None:
            gradient = output.screen_means.grad[drawn, :2].norm(dim=1, keepdim=True)
            self.offset_gradient_accum.index_add_(0, offset, gradient)
        self.offset_denom.index_add_(0, offset, torch.ones_like(self.offset_denom[: len(offset)]))


@dataclass(frozen=True)
class GrowthReport:
    """What one judgement changed."""

    grown: tuple[int, ...]
    """Anchors added, by level from coarse to fine."""
    pruned: int


@torch.no_grad()
def grow_and_prune(
    anchors: Anchors,
    optimizer: Adam | None,
    stats: GrowthStats,
    voxel_size: float,
    config: GrowthConfig,
    rand: Callable[[int, int], Tensor],
) -> tuple[Anchors, GrowthStats, GrowthReport]:
    """Judge the offsets and anchors that were seen often enough: add anchors, drop anchors, start their counts anew.

    Args:
        anchors: Consumed, like ``stats``: use what is returned.
        optimizer: Adam of the anchors; its groups and moments follow the rows.
        rand: (level, count) -> [count] uniform numbers in [0, 1) for the N*K offsets before growth. Called once for
            every level that looks for candidates.

    Returns:
        Anchors (kept ones in their order, then new ones by level and in the order of their cells), their statistics
        and a report. All learnable rows come without a gradient, even where nothing changed, so the optimizer step that
        follows moves no anchor: so it is in the original, which re-creates every row here.
    """
    interval_seen = config.interval * config.success_threshold
    judged_offset = stats.offset_denom.squeeze(1) > interval_seen * 0.5
    judged_anchor = stats.anchor_demon.squeeze(1) > interval_seen
    drop = judged_anchor & (stats.opacity_accum < config.min_opacity * stats.anchor_demon).squeeze(1)

    new, grown = _grow(anchors, stats, judged_offset, voxel_size, config, rand)
    judged_offset = judged_offset.unsqueeze(1)
    judged_anchor = judged_anchor.unsqueeze(1)
    stats.offset_denom.masked_fill_(judged_offset, 0)
    stats.offset_gradient_accum.masked_fill_(judged_offset, 0)
    stats.opacity_accum.masked_fill_(judged_anchor, 0)
    stats.anchor_demon.masked_fill_(judged_anchor, 0)

    pruned = int(drop.sum())
    rows, by_anchor, by_offset = anchors.rows(), *_split(stats)
    if pruned:
        rows = keep_rows(rows, ~drop, optimizer)
        by_anchor = keep_rows(by_anchor, ~drop, None)
        by_offset = keep_rows(by_offset, (~drop).repeat_interleave(anchors.n_offsets), None)
    if len(new):
        rows = append_rows(rows, new.rows(), optimizer)
        fresh_anchor, fresh_offset = _split(GrowthStats.zeros(new))
        by_anchor = append_rows(by_anchor, fresh_anchor, None)
        by_offset = append_rows(by_offset, fresh_offset, None)
    for name in LEARNABLE:
        rows[name].grad = None
    rows["log_scale"][:, 3:].clamp_(max=_MAX_LOG_SCALE)
    return Anchors.from_rows(rows), GrowthStats.from_rows(by_anchor | by_offset), GrowthReport(grown, pruned)


def _split(stats: GrowthStats) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Statistics with a row an anchor, and with a row an offset."""
    rows = stats.rows()
    by_offset = ("offset_gradient_accum", "offset_denom")
    return {k: v for k, v in rows.items() if k not in by_offset}, {k: rows[k] for k in by_offset}


def _grow(
    anchors: Anchors,
    stats: GrowthStats,
    judged: Bool[Tensor, "nk"],
    voxel_size: float,
    config: GrowthConfig,
    rand: Callable[[int, int], Tensor],
) -> tuple[Anchors, tuple[int, ...]]:
    """New anchors where offsets with a large gradient lie in cells without an anchor, coarse cells first."""
    gradient = torch.where(judged, (stats.offset_gradient_accum / stats.offset_denom).squeeze(1), -1.0)
    position = anchors.position
    parts = [anchors.subset(torch.zeros_like(position[:, 0], dtype=torch.bool))]
    for level in range(config.depth):
        grown = sum(map(len, parts))
        if level > 0 and grown == 0:
            # The original looks for finer anchors only after coarser ones were added.
            break
        draw = rand(level, len(judged)).to(gradient.device)
        threshold = config.grad_threshold * (config.hierarchy_factor // 2) ** level
        candidate = ((gradient >= threshold) & (draw > 0.5 ** (level + 1))).nonzero().squeeze(1)
        size = voxel_size * (config.init_factor // config.hierarchy_factor**level)

        source = candidate // anchors.n_offsets
        reach = anchors.log_scale[source, :3].exp()
        spawned = anchors.position[source] + anchors.offset.flatten(0, 1)[candidate] * reach
        cells, inverse = unique_cells(cells_of(spawned, size))
        free = ~occupied(cells, cells_of(position, size))
        feature = scatter_max(anchors.feature.index_select(0, source), inverse, len(cells))[free]
        centers = cell_centers(cells[free], size, position.dtype)
        log_scale = centers.new_full((len(centers), 6), size).log()
        parts.append(Anchors.fresh(centers, feature, log_scale, anchors.n_offsets))
        position = torch.cat([position, centers])
    return Anchors.cat(parts), tuple(map(len, parts[1:]))
