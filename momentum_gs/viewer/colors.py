"""Colours of blocks, scores and values."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from momentum_gs.partition.figure import palette

Rgb = tuple[int, int, int]
GREY: Rgb = (150, 150, 150)
"""Of what has no score."""


def block_color(block: int) -> Rgb:
    """That of the block in ``partition.png``, 8 bit."""
    r, g, b = palette(block + 1)[block]
    return round(255 * r), round(255 * g), round(255 * b)


def heat(values: Float[np.ndarray, "*s"]) -> UInt8[np.ndarray, "*s 3"]:
    """Values from 0 to 1 as colours from blue over green to red (turbo)."""
    levels = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    bgr = cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_TURBO)
    return np.ascontiguousarray(bgr[:, 0, ::-1]).reshape(*np.shape(values), 3)


def score_colors(scores: dict[int, float]) -> dict[int, Rgb]:
    """Block -> colour: red for the lowest score of the run, yellow, green for the highest."""
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    shares = {block: (score - low) / max(high - low, 1e-9) for block, score in scores.items()}
    return {b: (round(255 * min(1, 2 - 2 * s)), round(220 * min(1, 2 * s)), 40) for b, s in shares.items()}
