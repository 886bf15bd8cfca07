"""Growth and pruning anchor by anchor with Python sets and loops: a slow reference that is easy to read.

The same rules as momentum_gs.train.growth.anchors; float32 arithmetic where rounding matters (cells, thresholds).
"""

import numpy as np
import torch

from momentum_gs.config.schema import GrowthConfig
from momentum_gs.model.anchors import Anchors
from momentum_gs.train.growth.anchors import GrowthStats
from momentum_gs.train.growth.report import Draw

Rows = dict[str, np.ndarray]


def grow_and_prune_reference(
    anchors: Anchors,
    stats: GrowthStats,
    voxel_size: float,
    config: GrowthConfig,
    rand: Draw,
    cap: int | None = None,
) -> tuple[Rows, Rows, int]:
    """Rows of anchors and of statistics after one growth step, and how many new anchors the cap has refused."""
    rows: Rows = {k: v.detach().numpy().copy() for k, v in anchors.rows().items()}
    seen: Rows = {k: v.numpy().copy() for k, v in stats.rows().items()}
    n, n_offsets = len(anchors), anchors.n_offsets
    enough = config.interval * config.success_threshold
    eligible = [p for p in range(n * n_offsets) if seen["offset_denom"][p, 0] > enough * 0.5]

    best: list[np.float32] = []  # For each new anchor, the largest gradient of the offsets that propose it.
    for level in range(config.depth):
        if level > 0 and len(rows["position"]) == n:
            continue
        size = np.float32(voxel_size * (config.init_factor // config.hierarchy_factor**level))
        threshold = np.float32(config.grad_threshold * (config.hierarchy_factor // 2) ** level)
        draw = rand(level, torch.arange(n * n_offsets)).numpy()
        taken = {tuple(cell) for cell in np.round(rows["position"] / size).astype(int)}
        sources: dict[tuple[int, ...], list[tuple[int, np.float32]]] = {}
        for p in eligible:
            gradient = seen["offset_gradient_accum"][p, 0] / seen["offset_denom"][p, 0]
            if gradient >= threshold and draw[p] > 0.5 ** (level + 1):
                anchor, offset = divmod(p, n_offsets)
                # The scale by torch: its exp differs from that of NumPy in the last bit.
                scale = anchors.scales[anchor, :3].detach().numpy()
                spot = rows["position"][anchor] + rows["offset"][anchor, offset] * scale
                sources.setdefault(tuple(np.round(spot / size).astype(int)), []).append((anchor, gradient))
        for cell in sorted(sources.keys() - taken):
            new = {
                "position": np.array(cell, dtype=np.float32) * size,
                "offset": np.zeros((n_offsets, 3)),
                "feature": np.max([rows["feature"][anchor] for anchor, _ in sources[cell]], axis=0),
                "log_scale": np.full(6, np.log(size)),
                "rotation": [1, 0, 0, 0],
                "opacity": [np.log(0.1 / 0.9)],
            }
            rows = {k: np.concatenate([v, np.array([new[k]], dtype=np.float32)]) for k, v in rows.items()}
            best.append(max(gradient for _, gradient in sources[cell]))

    for p in eligible:
        seen["offset_denom"][p] = seen["offset_gradient_accum"][p] = 0
    keep = []
    for anchor in range(n):
        views, opacity = seen["anchor_denom"][anchor, 0], seen["opacity_accum"][anchor, 0]
        keep.append(not (views > enough and opacity < np.float32(config.min_opacity) * views))
        if views > enough:
            seen["anchor_denom"][anchor] = seen["opacity_accum"][anchor] = 0
    room = len(best) if cap is None else max(cap - sum(keep), 0)
    chosen = sorted(range(len(best)), key=lambda i: (-best[i], i))[:room]
    keep += [i in chosen for i in range(len(best))]

    pad = {"offset_gradient_accum": len(best) * n_offsets, "offset_denom": len(best) * n_offsets}
    seen = {k: np.concatenate([v, np.zeros((pad.get(k, len(best)), 1), dtype=np.float32)]) for k, v in seen.items()}
    rows = {k: v[keep] for k, v in rows.items()}
    rows["log_scale"][:, 3:] = np.minimum(rows["log_scale"][:, 3:], np.float32(0.05))
    per_offset = np.repeat(keep, n_offsets)
    return rows, {k: v[per_offset if k in pad else keep] for k, v in seen.items()}, len(best) - len(chosen)
