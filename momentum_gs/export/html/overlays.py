"""What the page knows of the scene beside its Gaussians: cameras, cells and the first views, as JSON values."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.geometry import project, uncontract
from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable

SAMPLE = 20_000
"""Gaussians from which the distance to the surface is found."""
CENTRAL = 0.5
"""Part of an image's width and height in which that surface lies."""
DIGITS = 7
"""Significant digits of a number, as float32 has them."""
_FACE = 1e-6
"""Keeps corners of cells off the faces of contracted space, which lie at infinity."""


def camera_values(camera: Camera, origin: Float[Tensor, "3"], focus: float) -> dict[str, Any]:
    """A camera relative to ``origin``: w2c rotation by rows, centre, and the distance ``focus`` that it looks at."""
    return {
        "name": camera.name,
        "size": [camera.width, camera.height],
        "pinhole": _numbers([camera.fx, camera.fy, camera.cx, camera.cy]),
        "rotation": _numbers(camera.rotation.flatten().tolist()),
        "center": _numbers((camera.center - origin).tolist()),
        "focus": _number(focus),
    }


def focus_distances(cameras: Sequence[Camera], points: Float[Tensor, "n 3"]) -> list[float]:
    """The distance of each camera to what it looks at: the median depth of points in the centre of its image.

    Cameras that see no point have the median of the others, or 1 if there is none.

    Args:
        cameras: Any number.
        points: World points, of which a part is used.
    """
    points = points[:: max(1, len(points) // SAMPLE)].double()
    found: list[float | None] = []
    for camera in cameras:
        pixels, depth = project(points, camera)
        middle = torch.tensor([camera.width / 2, camera.height / 2], dtype=pixels.dtype)
        seen = (depth > 0) & ((pixels - middle).abs() < CENTRAL * middle).all(dim=1)
        found.append(float(depth[seen].median()) if seen.any() else None)
    known = [distance for distance in found if distance is not None]
    usual = float(np.median(known)) if known else 1.0
    return [usual if distance is None else distance for distance in found]


def overview(
    cameras: Sequence[Camera], focus: Sequence[float], up: Float[Tensor, "3"], origin: Float[Tensor, "3"]
) -> dict[str, Any]:
    """A view of the whole from obliquely above: eye, target and radius of what is looked at, relative to ``origin``."""
    centers = torch.stack([camera.center for camera in cameras])
    ahead = torch.stack([camera.rotation[2] for camera in cameras])
    looked_at = centers + ahead * torch.tensor(focus, dtype=ahead.dtype)[:, None]
    target = looked_at.median(dim=0).values
    radius = torch.cat([centers, looked_at]).sub(target).norm(dim=1).quantile(0.9).clamp_min(1e-9)
    back = (centers[0] - target) - (centers[0] - target).dot(up) * up
    if back.norm() < 1e-6 * radius:  # The first camera looks straight down: behind is below its image.
        back = cameras[0].rotation[1] - cameras[0].rotation[1].dot(up) * up
    back = torch.nn.functional.normalize(back, dim=0)
    eye = target + 1.9 * radius * torch.nn.functional.normalize(back + up, dim=0)
    return {
        "eye": _numbers((eye - origin).tolist()),
        "target": _numbers((target - origin).tolist()),
        "radius": _number(float(radius)),
    }


def cell_values(
    table: PartitionTable,
    scores: Mapping[int, float],
    low: Float[Tensor, "3"],
    high: Float[Tensor, "3"],
    origin: Float[Tensor, "3"],
) -> list[dict[str, Any]]:
    """The cells as boxes, relative to ``origin``: block, PSNR or null, and corners, the last axis changing fastest.

    Outside of the core box of a partition the borders of cells are curved; here they end with straight lines.

    Args:
        table: The partition, in the coordinates of the scene.
        scores: Block -> PSNR in dB of those that have one.
        low: Lower corner of what is shown, in the grid's frame; cells end there, for the outer ones are unbounded.
        high: Upper corner.
        origin: World.
    """
    values = []
    for cell in range(table.grid.n):
        ends = uncontract(_faces(table.grid.cell_bounds(cell)), table.aabb)
        start, end = ends[::2].diagonal(), ends[1::2].diagonal()
        start, end = start.maximum(low), end.minimum(high)
        if not bool((start < end).all()):
            continue
        corners = torch.tensor([*itertools.product(*zip(start.tolist(), end.tolist(), strict=True))])
        block = int(table.block_of(torch.tensor(cell)))
        score = scores.get(block)
        values.append({
            "block": block,
            "psnr": None if score is None else round(score, 2),
            "corners": [_numbers(corner.tolist()) for corner in corners.double() @ table.rotation.double() - origin],
        })  # fmt: skip
    return values


def _faces(bounds: Float[Tensor, "6"]) -> Float[Tensor, "6 3"]:
    """Points in contracted space on the low and the high face of a cell, axis by axis, level with the core's centre, so
    that the contraction changes no other coordinate."""
    points = torch.full((6, 3), 0.5, dtype=torch.float64)
    for axis in range(3):
        points[2 * axis, axis] = bounds[axis].clamp(_FACE, 1 - _FACE)
        points[2 * axis + 1, axis] = bounds[axis + 3].clamp(_FACE, 1 - _FACE)
    return points


def _numbers(values: Sequence[float]) -> list[float]:
    return [_number(value) for value in values]


def _number(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
