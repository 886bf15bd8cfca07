"""Checks of the arguments of ``ops.py``: every message names the argument, and what was expected of it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diff_gaussian_rasterization.library import HAS_CUDA

Window = tuple[int, int, int, int]
"""Part of an image: x and y of its corner, width, height, in pixels."""

TILE = 16
"""Side, in pixels, of the squares that a mask of tiles names."""


class Around(NamedTuple):
    """Gaussians that are drawn among others, and get no gradients; shapes as for ``rasterize``."""

    means: Tensor
    opacities: Tensor
    colors: Tensor
    scales: Tensor
    quats: Tensor


def check_dtype(tensor: Tensor, name: str, means: Tensor) -> None:
    if tensor.dtype != means.dtype or tensor.device != means.device:
        raise ValueError(
            f"rasterize: {name} is {tensor.dtype} on {tensor.device}, expected {means.dtype} on {means.device} as means"
        )


def check(
    tensor: Tensor, name: str, shape: tuple[int, ...], letters: str, means: Tensor, source: str | None = None
) -> None:
    if tuple(tensor.shape) != shape:
        note = " (wxyz order)" if name == "quats" else ""
        source = source or f"G={shape[0]} from means"
        raise ValueError(f"rasterize: {name} has shape {list(tensor.shape)}, expected {letters} with {source}{note}")
    check_dtype(tensor, name, means)


def split(
    means2d: Tensor | None, count: int, width: int, height: int, means: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What receives the gradient of the projected means [G,3], in NDC, and what the absolute one [G,2], in pixels."""
    if means2d is None:
        return None, None
    columns = means2d.shape[-1] if means2d.ndim == 2 and means2d.shape[-1] in (2, 4) else 3
    check(means2d, "means2d", (count, columns), "[G, 3] (or [G, 2], [G, 4])", means)
    if columns == 3:
        return means2d, None
    screen = torch.nn.functional.pad(means2d[:, :2], (0, 1))
    if columns == 2:
        return screen, None
    absolute = torch.stack([0.5 * width * means2d[:, 2], 0.5 * height * means2d[:, 3]], 1)
    return screen, absolute


def check_window(window: Window | None, width: int, height: int) -> list[int] | None:
    """The window as the operators take it."""
    if window is None:
        return None
    part = [int(entry) for entry in window]
    if len(part) == 4:
        x, y, columns, rows = part
        if columns > 0 and rows > 0 and 0 <= x <= width - columns and 0 <= y <= height - rows:
            return part
    raise ValueError(
        f"rasterize: window is {tuple(part)}, expected (x, y, width, height) of at least one pixel, inside of the "
        f"image of {width}x{height} pixels"
    )


def check_tiles(tiles: Tensor | None, window: Sequence[int], means: Tensor) -> None:
    if tiles is None:
        return
    shape = (-(-window[3] // TILE), -(-window[2] // TILE))
    if tuple(tiles.shape) != shape or tiles.dtype != torch.bool or tiles.device != means.device:
        raise ValueError(
            f"rasterize: tiles is {tiles.dtype} {list(tiles.shape)} on {tiles.device}, expected torch.bool "
            f"{list(shape)} on {means.device}: one for each {TILE}x{TILE} pixels of {window[2]}x{window[3]}"
        )


def check_around(around: Around | None, means: Tensor, colors: Tensor) -> None:
    if around is None:
        return
    columns = {"means": 3, "opacities": 1, "colors": colors.shape[1], "scales": 3, "quats": 4}
    for name, width in columns.items():
        source = f"n={len(around.means)} from around.means"
        check(getattr(around, name), f"around.{name}", (len(around.means), width), f"[n, {width}]", means, source)


def check_gaussians(
    means: Tensor,
    scales: Tensor | None,
    quats: Tensor | None,
    cov3d: Tensor | None,
    world_view: Tensor,
    width: int,
    height: int,
    near: float,
) -> None:
    if means.ndim != 2 or means.shape[1] != 3:
        raise ValueError(f"rasterize: means has shape {list(means.shape)}, expected [G, 3]")
    if means.device.type == "cuda" and not HAS_CUDA:
        raise ValueError(
            f"rasterize: means is on {means.device}, but diff-gaussian-rasterization was built for CPUs only; rebuild "
            "it with FORCE_CUDA=1, or move the tensors to the CPU"
        )
    if means.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"rasterize: means is {means.dtype}, expected torch.float32 or torch.float64")
    if cov3d is None and (scales is None or quats is None):
        missing = "scales" if scales is None else "quats"
        raise ValueError(f"rasterize: {missing} is missing; give scales and quats, or cov3d")
    if cov3d is not None and (scales is not None or quats is not None):
        raise ValueError("rasterize: got cov3d beside scales or quats; give scales and quats, or cov3d")
    count = means.shape[0]
    for tensor, name, columns in ((scales, "scales", 3), (quats, "quats", 4), (cov3d, "cov3d", 6)):
        if tensor is not None:
            check(tensor, name, (count, columns), f"[G, {columns}]", means)
    if tuple(world_view.shape) != (4, 4):
        raise ValueError(f"rasterize: world_view has shape {list(world_view.shape)}, expected [4, 4]")
    if width < 1 or height < 1:
        raise ValueError(f"rasterize: image of {width}x{height} pixels, expected at least 1x1")
    if not near >= 0:
        raise ValueError(f"rasterize: near is {near}, expected 0 or more")
