"""Growth and pruning written out anchor by anchor with Python sets and loops: slow, and to be read.

The same rules as momentum_gs.train.densify; float32 arithmetic where rounding decides (cells, thresholds).
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from momentum_gs.config.schema import GrowthConfig
from momentum_gs.model.anchors import Anchors
from momentum_gs.train.densify import GrowthStats

Rows = dict[str, np.ndarray]


def grow_and_prune_reference(
    anchors: Anchors,
    stats: GrowthStats,
    voxel_size: float,
    config: GrowthConfig,
    rand: Callable[[int, int], Tensor],
) -> tuple[Rows, Rows]:
    """Rows of anchors and of statistics after one judgement."""
    rows: Rows = {k: v.detach().numpy().copy() for k, v in anchors.rows().items()}
    seen: Rows = {k: v.numpy().copy() for k, v in stats.rows().items()}
    n, n_offsets = len(anchors), anchors.n_offsets
    enough = config.interval * config.success_threshold
    judged = [p for p in range(n * n_offsets) if seen["offset_denom"][p, 0] > enough * 0.5]

    for level in range(config.depth):
        if level > 0 and len(rows["position"]) == n:
            continue
        size = np.float32(voxel_size * (config.init_factor // config.hierarchy_factor**level))
        threshold = np.float32(config.grad_threshold * (config.hierarchy_factor // 2) ** level)
        draw = rand(level, n * n_offsets).numpy()
        taken = {tuple(cell) for cell in np.round(rows["position"] / size).astype(int)}
        sources: dict[tuple[int, ...], list[int]] = {}
        for p in judged:
            gradient = seen["offset_gradient_accum"][p, 0] / seen["offset_denom"][p, 0]
            if gradient >= threshold and draw[p] > 0.5 ** (level + 1):
                anchor, offset = divmod(p, n_offsets)
                # The scale as torch rounds it: its exp is not NumPy's to the last bit.
                scale = anchors.scales[anchor, :3].detach().numpy()
                spot = rows["position"][anchor] + rows["offset"][anchor, offset] * scale
                sources.setdefault(tuple(np.round(spot / size).astype(int)), []).append(anchor)
        for cell in sorted(sources.keys() - taken):
            new = {
                "position": np.array(cell, dtype=np.float32) * size,
                "offset": np.zeros((n_offsets, 3)),
                "feature": np.max([rows["feature"][anchor] for anchor in sources[cell]], axis=0),
                "log_scale": np.full(6, np.log(size)),
                "rotation": [1, 0, 0, 0],
                "opacity": [np.log(0.1 / 0.9)],
            }
            rows = {k: np.concatenate([v, np.array([new[k]], dtype=np.float32)]) for k, v in rows.items()}

    for p in judged:
        seen["offset_denom"][p] = seen["offset_gradient_accum"][p] = 0
    n_new = len(rows["position"]) - n
    pad = {"offset_gradient_accum": n_new * n_offsets, "offset_denom": n_new * n_offsets}
    seen = {k: np.concatenate([v, np.zeros((pad.get(k, n_new), 1), dtype=np.float32)]) for k, v in seen.items()}

    keep = []
    for anchor in range(n + n_new):
        views, opacity = seen["anchor_demon"][anchor, 0], seen["opacity_accum"][anchor, 0]
        keep.append(not (views > enough and opacity < np.float32(config.min_opacity) * views))
        if views > enough:
            seen["anchor_demon"][anchor] = seen["opacity_accum"][anchor] = 0
    rows = {k: v[keep] for k, v in rows.items()}
    rows["log_scale"][:, 3:] = np.minimum(rows["log_scale"][:, 3:], np.float32(0.05))
    per_offset = np.repeat(keep, n_offsets)
    return rows, {k: v[per_offset if k in pad else keep] for k, v in seen.items()}
