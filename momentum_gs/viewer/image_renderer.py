"""Renders a model for the viewer: the exact image, or a map of depth, opacity, blocks, anchors, contributions or
errors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from momentum_gs.core.image import to_uint8
from momentum_gs.core.types import Camera
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.expand import Decoded
from momentum_gs.render.blending import blending_weights
from momentum_gs.render.view import decode_view, draw, learned_background
from momentum_gs.viewer.colors import GREY, block_color, heat, score_colors
from momentum_gs.viewer.shown import Shown

COLOR, DEPTH, ALPHA, BLOCK, BLOCK_PSNR, ANCHOR_SIZE, CONTRIBUTION = (
    "color", "depth", "alpha", "block", "block PSNR", "anchor size", "contribution"
)  # fmt: skip
ERROR_HELD_OUT, ERROR_TRAINING = ERRORS = ("error, held-out views", "error, training views")
"""Modes that need ``Shown.error``."""
MODES = (COLOR, DEPTH, ALPHA, BLOCK, BLOCK_PSNR, ANCHOR_SIZE, CONTRIBUTION, *ERRORS)
NOTHING = 1e9
"""Depth of a pixel that shows nothing, viewer units: behind everything."""
_SOLID = 0.5
"""Accumulated opacity from which a pixel hides what is behind its depth."""


@dataclass(frozen=True)
class Image:
    """A rendered view."""

    rgb: UInt8[np.ndarray, "h w 3"]
    depth: Float[np.ndarray, "h w"]
    """Camera z in training units; ``NOTHING`` where the model is transparent."""


@torch.no_grad()
def render(
    shown: Shown, camera: Camera, background: Float[Tensor, "3"], mode: str = COLOR,
    block_psnr: Mapping[int, float] | None = None, error_range: tuple[float, float] | None = None,
) -> Image:  # fmt: skip
    """Renders one view.

    Args:
        shown: The model, on the device that renders.
        camera: The view, training coordinates.
        background: Colour behind everything, on the device; in [0, 1].
        mode: One of ``MODES``.
        block_psnr: Block -> dB, for ``BLOCK_PSNR``.
        error_range: Errors that are blue and red (``range_of``), for ``ERRORS``; None: all is grey.
    """
    decoded = decode_view(shown.model, shown.decoder, camera)
    if mode in ERRORS:
        colors = _error_colors(shown, error_range)[rows_of(shown, decoded).cpu()]
        decoded = replace(decoded, gaussians=replace(decoded.gaussians, colors=colors.to(background)))
    elif mode not in (COLOR, DEPTH, ALPHA):
        colors = _colors(shown, decoded, camera, mode, dict(block_psnr or {}))
        decoded = replace(decoded, gaussians=replace(decoded.gaussians, colors=colors.to(background)))
    behind = learned_background(shown.decoder, camera, background) if mode == COLOR else None
    output = draw(decoded.gaussians, camera, background, behind)
    alpha = output.alpha.cpu().numpy()
    depth = np.where(alpha >= _SOLID, output.depth.cpu().numpy() / np.maximum(alpha, 1e-6), NOTHING)
    if mode == DEPTH:
        rgb = _depth_colors(depth)
    elif mode == ALPHA:
        rgb = np.repeat(np.rint(255 * alpha.clip(0, 1)).astype(np.uint8)[..., None], 3, axis=2)
    else:
        rgb = to_uint8(output.image.clamp(0, 1)).permute(1, 2, 0).cpu().numpy()
    return Image(np.ascontiguousarray(rgb), depth.astype(np.float32))


def beside(left: Image, right: Image, share: float) -> Image:
    """One image up to ``share`` of the width, then another of the same size, with a white line between."""
    column = round(share * left.rgb.shape[1])
    rgb = np.concatenate([left.rgb[:, :column], right.rgb[:, column:]], axis=1)
    rgb[:, max(column - 1, 0) : column + 1] = 255
    return Image(rgb, np.concatenate([left.depth[:, :column], right.depth[:, column:]], axis=1))


def rows_of(shown: Shown, decoded: Decoded) -> Int[Tensor, "g"]:
    """The anchor or splat that each Gaussian comes from."""
    return decoded.visible.repeat_interleave(shown.model.n_offsets)[decoded.kept]


def _colors(
    shown: Shown, decoded: Decoded, camera: Camera, mode: str, block_psnr: dict[int, float]
) -> Float[Tensor, "g 3"]:
    """Colours of the Gaussians in [0, 1]."""
    rows = rows_of(shown, decoded)
    if mode in (BLOCK, BLOCK_PSNR):
        scores = score_colors(block_psnr)
        count = int(shown.block.max()) + 1 if len(shown.block) else 1
        table = [block_color(b) if mode == BLOCK else scores.get(b, GREY) for b in range(count)]
        return torch.tensor(table, device=rows.device)[shown.block[rows]] / 255
    if mode == ANCHOR_SIZE:
        model = shown.model
        size = (model.scales[:, :3] if isinstance(model, Anchors) else model.scales).log().mean(dim=1)
        values = _spread(size)[rows]
    else:
        values = _spread(blending_weights(decoded.gaussians, camera).clamp_min(1e-6).log())
    return torch.from_numpy(heat(values.cpu().numpy())).to(rows.device) / 255


def range_of(values: Float[Tensor, "n"]) -> tuple[float, float]:
    """The 2nd and the 98th percentile of the values that are not NaN; zeros without any."""
    known = values[~values.isnan()].sort().values
    last = len(known) - 1
    return (float(known[int(0.02 * last)]), float(known[int(0.98 * last)])) if len(known) else (0.0, 0.0)


def _error_colors(shown: Shown, limits: tuple[float, float] | None) -> Float[Tensor, "n 3"]:
    """Colours of the rows: grey where nothing is known."""
    colors = (torch.tensor(GREY) / 255).repeat(len(shown.model), 1)
    if shown.error is not None and limits is not None:
        low, high = limits
        values = shown.error.cpu()
        known = ~values.isnan()
        shares = (values[known] - low) / max(high - low, 1e-9)
        colors[known] = torch.from_numpy(heat(shares.numpy())).float() / 255
    return colors


def _spread(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Values as shares of the range from their 2nd to their 98th percentile."""
    if len(values) == 0:
        return values
    ordered = values.sort().values
    low, high = ordered[int(0.02 * (len(values) - 1))], ordered[int(0.98 * (len(values) - 1))]
    return ((values - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)


def _depth_colors(depth: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Near is red and far is blue, by inverse depth between the percentiles of the view; black where nothing is."""
    there = depth < NOTHING
    rgb = np.zeros((*depth.shape, 3), np.uint8)
    if there.any():
        inverse = 1 / np.maximum(depth[there], 1e-6)
        low, high = np.percentile(inverse, (2, 98))
        rgb[there] = heat((inverse - low) / max(high - low, 1e-9))
    return rgb
