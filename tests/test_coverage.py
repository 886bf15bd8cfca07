"""The coverage table of blocks: cameras, views, points, areas."""

import torch
from tiny_scene import nadir_camera

from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.partition.coverage import coverage, ground_box

# Over a ground of 8 x 6: a column of cameras at x = -2 and one at x = 2.
CAMERAS = [nadir_camera(f"{x} {y}", x, y) for x in (-2.0, 2.0) for y in (-2.0, 0.0, 2.0)]
AABB = (-4.0, -3.0, -1.0, 4.0, 3.0, 5.0)
EYE = torch.eye(3, dtype=torch.float64)


def table(dim: tuple[int, int, int], views: list[list[Camera]], **parts: object) -> PartitionTable:
    names = [[camera.name for camera in cameras] for cameras in views]
    return PartitionTable(AABB, dim, EYE, names, **parts)  # type: ignore[arg-type]


def ground(count: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    xy = (torch.rand(count, 2, generator=generator, dtype=torch.float64) - 0.5) * torch.tensor([8.0, 6.0])
    return torch.cat([xy, torch.zeros(count, 1, dtype=torch.float64)], 1)


def test_cameras_points_and_views_are_counted() -> None:
    points = ground()
    left, right = coverage(table((2, 1, 1), [CAMERAS, CAMERAS[3:]]), CAMERAS, points)
    assert (left.inside, right.inside, left.views, right.views) == (3, 3, 6, 3)
    assert (left.points, right.points) == (int((points[:, 0] < 0).sum()), int((points[:, 0] >= 0).sum()))


def test_seen_counts_only_the_blocks_own_views() -> None:
    """From a height of 4 an image shows 4.8 x 3.6 units of the ground."""
    points = ground()
    near = [*CAMERAS[:3], nadir_camera("more", -2.0, 1.0)]
    left, right = coverage(table((2, 1, 1), [near, CAMERAS[:2]]), [*CAMERAS, near[3]], points)
    x, y = points[:, 0], points[:, 1]
    times = sum((((x + 2).abs() < 2.4) & ((y - at).abs() < 1.8)).long() for at in (-2.0, 0.0, 2.0, 1.0))
    well = (times >= 3) & (x < 0)
    assert 0.1 < left.seen < 0.9
    assert abs(left.seen - float(well.sum() / (x < 0).sum())) < 1e-6  # a share in float32
    assert right.seen == 0  # two views cannot be three


def test_areas_are_those_of_the_ground() -> None:
    points = ground()
    low, high = ground_box(torch.stack([c.center for c in CAMERAS]), points)
    whole = float((high - low)[0] * (high - low)[1])
    cut = table((2, 1, 2), [CAMERAS] * 4, cuts=((0.4,), (), (0.5,)))
    areas = [row.area for row in coverage(cut, CAMERAS, points)]
    edge = -4 + 8 * (0.4 - 0.25) / 0.5
    wanted = (edge - float(low[0])) / float((high - low)[0]) * whole
    # The tolerance is one of the raster's 300 columns.
    assert abs(areas[0] - wanted) < whole / 300 and abs(areas[0] + areas[1] - whole) < 1e-9 * whole
    assert areas[2:] == areas[:2]  # layers above each other have the same ground
    joined = table((2, 1, 2), [CAMERAS] * 2, cuts=((0.4,), (), (0.5,)), joined=(0, 1, 0, 1))
    assert [row.area for row in coverage(joined, CAMERAS, points)] == areas[:2]  # counted once


def test_block_without_points_has_none_seen() -> None:
    points = ground()
    rows = coverage(table((2, 1, 1), [CAMERAS, CAMERAS]), CAMERAS, points[points[:, 0] < 0])
    assert (rows[1].points, rows[1].seen) == (0, 0.0)
