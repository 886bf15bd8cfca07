"""The share of an image that a block's box covers."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_scene import nadir_camera

from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import Camera
from momentum_gs.core.window import RASTER
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.partition.cover import block_boxes, view_cover

TURN = quat_to_matrix(torch.tensor([0.9, 0.1, -0.3, 0.2], dtype=torch.float64))
TABLE = PartitionTable((-4.0, -4.0, -1.0, 4.0, 4.0, 1.0), (2, 1, 1), torch.eye(3, dtype=torch.float64), [[], []])


def box(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers, [math.nan] * 6], dtype=torch.float64)


def cover(camera: Camera, *numbers: float, table: PartitionTable = TABLE) -> float:
    return view_cover(camera, table, box(*numbers)).get(0, 0.0)


@pytest.mark.parametrize("height", [3.0, 8.0])
def test_slab_seen_from_above_covers_what_its_top_covers(height: float) -> None:
    """48 x 36 pixels of focal length 40: a square of side s at depth d is (40 s / d)^2 pixels."""
    camera = nadir_camera("a", 0.3, -0.2, height)
    share = (40 * 1 / (height - 0.5)) ** 2 / (48 * 36)
    # The width of half a ray on each side of both axes.
    error = (40 / (height - 0.5) + 48 / RASTER) ** 2 / (48 * 36) - share
    assert cover(camera, 0, -0.5, 0, 1, 0.5, 0.5) == pytest.approx(share, abs=error)


def test_boxes_around_behind_and_beside_the_camera() -> None:
    camera = nadir_camera("a", 0.0, 0.0, 4.0)
    assert cover(camera, -1, -1, 3, 1, 1, 5) == 1
    assert cover(camera, -9, -9, 4.5, 9, 9, 6) == 0
    assert cover(camera, -90, -90, -1, 90, 90, 0) == 1
    # A box beside the camera that reaches behind it: the part in front counts, here the right half of the image.
    assert cover(camera, 0, -90, -90, 90, 90, 90) == 0.5


def test_boxes_side_by_side_add_up() -> None:
    camera = nadir_camera("a", 0.4, 0.1, 4.0)
    left, right = cover(camera, -1, -1, 0, 0.2, 1, 0), cover(camera, 0.2, -1, 0, 1, 1, 0)
    assert left > 0 and right > 0 and left + right == cover(camera, -1, -1, 0, 1, 1, 0)


def test_rotation_of_camera_and_grid_changes_nothing() -> None:
    """The camera and the grid are rotated alike, so that the box is in the same place in the grid."""
    camera, size = nadir_camera("a", 0.3, -0.2, 5.0), (0, -0.5, 0, 1, 0.5, 0.5)
    turned = replace(camera, rotation=camera.rotation @ TURN.T)
    table = replace(TABLE, rotation=TURN.T)
    assert cover(turned, *size, table=table) == pytest.approx(cover(camera, *size), abs=1 / RASTER**2)


def test_a_box_contains_its_points_without_outliers() -> None:
    points = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points[7] = torch.tensor([90.0, 80, 70])
    boxes = block_boxes(TABLE, points)
    assert boxes[0].isnan().all()  # all points are right of the cut
    low, high = boxes[1].split(3)
    # Of uniform numbers the outer hundredth is left out; the sample quantiles have a standard deviation of 0.003.
    torch.testing.assert_close(low, torch.full((3,), 0.01).double(), rtol=0, atol=0.015)
    torch.testing.assert_close(high, torch.full((3,), 0.99).double(), rtol=0, atol=0.015)
