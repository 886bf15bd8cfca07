"""Automatic layout: it is upright, rotates with the scene, and is balanced."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from momentum_gs.config.schema import PartitionConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import uncontract
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.partition.figure import draw_partition
from momentum_gs.partition.layout import SNAP_DEGREES, Box, Layout, automatic_layout, even_cuts, fit_dim

Balance = Literal["area", "cameras", "points", "contracted"]

NADIR = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]], dtype=torch.float64)


def survey(width: float = 40, depth: float = 20, height: float = 8, pitch: float = 0.0) -> list[Camera]:
    """Cameras on lines flown back and forth above a rectangle of the plane z = 0, tilted ahead by ``pitch`` degrees."""
    cameras = []
    for i, x in enumerate(torch.linspace(-width / 2, width / 2, 12, dtype=torch.float64)):
        for j, y in enumerate(torch.linspace(-depth / 2, depth / 2, 7, dtype=torch.float64)):
            heading = turn([0, 0, 1], 180 * (i % 2))
            rotation = turn([1, 0, 0], -pitch) @ NADIR @ heading
            center = torch.stack([x, y, torch.tensor(height, dtype=torch.float64)])
            cameras.append(Camera(f"{i}-{j}.jpg", 64, 48, 50.0, 50.0, 32.0, 24.0, rotation, -rotation @ center))
    return cameras


def city(width: float = 50, depth: float = 28, count: int = 3000, seed: int = 0) -> Tensor:
    """Points of flat ground with houses of various heights on part of it."""
    generator = keyed_generator("city", seed)
    u = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    x, y = (u[:, 0] - 0.5) * width, (u[:, 1] - 0.5) * depth
    house = torch.sin(x) * torch.cos(1.3 * y)
    return torch.stack([x, y, torch.where(house > 0.3, 4 * house * u[:, 2], 0.05 * u[:, 2])], 1)


def turn(axis: list[float], degrees: float) -> Tensor:
    a = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0)
    x, y, z = (a * math.radians(degrees)).tolist()
    return torch.linalg.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64))


def turned(cameras: list[Camera], points: Tensor, by: Tensor) -> tuple[list[Camera], Tensor]:
    """The scene after ``by``; the images stay the same."""
    return [replace(camera, rotation=camera.rotation @ by.T) for camera in cameras], points @ by.T


def shares(layout: Layout, points: Tensor) -> Tensor:
    cells = layout.table().cell_of(points)
    return torch.bincount(cells, minlength=math.prod(layout.dim)) / len(points)


def degrees_between(a: Tensor, b: Tensor) -> float:
    return math.degrees(math.acos(min(1.0, float(a @ b / (a.norm() * b.norm())))))


def test_given_layout_is_taken_as_it_is() -> None:
    config = PartitionConfig(aabb=(-1.0, -2.0, -3.0, 4.0, 5.0, 6.0), dim=(2, 1, 4))
    layout = automatic_layout(survey(), city(), config)
    assert (layout.aabb, layout.dim) == (config.aabb, config.dim)
    assert layout.rotation.equal(torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("pitch", [0, 30, 60])
@pytest.mark.parametrize("by", [turn([1, 2, 3], 50), turn([3, -1, 0.5], 160), turn([1, 0, 0], 90)])
def test_up_is_where_the_cameras_are(by: Tensor, pitch: float) -> None:
    cameras, points = turned(survey(pitch=pitch), city(), by)
    up = automatic_layout(cameras, points, PartitionConfig()).rotation[2]
    # Houses are not distributed evenly, so the plane through the points is not exactly the ground.
    assert degrees_between(up, by[:, 2]) < 2


def test_almost_upright_scene_is_taken_as_upright() -> None:
    for degrees in (0.0, 2.0, 10.0):
        layout = automatic_layout(*turned(survey(), city(), turn([1, 1, 0], degrees)), PartitionConfig())
        # The fit is wrong by less than 2 degrees (test above), so none of these three is near the limit.
        assert layout.rotation.equal(torch.eye(3, dtype=torch.float64)) == (degrees + 2 < SNAP_DEGREES)


@pytest.mark.parametrize("balance", ["area", "cameras", "points", "contracted"])
@pytest.mark.parametrize("blocks", [4, 6, 8])
def test_turned_scene_gets_the_same_blocks(blocks: int, balance: Balance) -> None:
    config = PartitionConfig(blocks=blocks, balance=balance)
    scenes = [turned(survey(), city(), turn(axis, angle)) for axis, angle in (([1, 2, 3], 40.0), ([-2, 1, 1], 130.0))]
    layouts = [automatic_layout(*scene, config) for scene in scenes]
    assert layouts[0].dim == layouts[1].dim
    one, other = (shares(layout, points) for layout, (_, points) in zip(layouts, scenes, strict=True))
    # x may point in either direction, which renumbers the blocks; round-off may move a point across a border.
    assert min(float((one - found).abs().max()) for found in (other, other.flip(0))) < 1.5 / len(city())


def test_x_runs_along_the_longer_side() -> None:
    by = turn([0, 0, 1], 33)
    for width, depth in ((40, 20), (20, 40), (20, 20)):
        layout = automatic_layout(*turned(survey(width, depth), city(width + 8, depth + 8), by), PartitionConfig())
        long_side = by[:, 0] if width >= depth else by[:, 1]
        cosine = float((layout.rotation[0] @ long_side).abs())
        if width == depth:  # a square has no longer side, but its sides are still those of the grid
            cosine = max(cosine, float((layout.rotation[0] @ by[:, 1]).abs()))
        assert cosine > math.cos(math.radians(1.5))  # directions are tried in steps of one degree


@pytest.mark.parametrize(
    ("blocks", "width", "depth", "dim"),
    [
        (8, 40.0, 20.0, (4, 2)),
        (4, 30.0, 30.0, (2, 2)),
        (4, 100.0, 5.0, (4, 1)),
        (7, 40.0, 30.0, (7, 1)),
        (1, 9.0, 2.0, (1, 1)),
    ],
)
def test_cells_are_as_square_as_the_count_allows(blocks: int, width: float, depth: float, dim: tuple[int, int]) -> None:
    assert fit_dim(blocks, width, depth) == dim


@pytest.mark.parametrize(
    ("balance", "blocks", "limit"),
    [
        # Houses shift the medians of the points a little; the rest is sampling error.
        *(("points", blocks, 1.12) for blocks in (2, 4, 8, 9)),
        # The same for up to 2 cells along an axis. With more, the borders of outer cells are curved outside of the core
        # box, so no box is balanced perfectly; the best one is within a third of it.
        *(("contracted", blocks, limit) for blocks, limit in ((2, 1.05), (4, 1.1), (8, 1.35), (9, 1.35))),
    ],
)
def test_even_ground_gives_even_blocks(balance: Balance, blocks: int, limit: float) -> None:
    points = city()
    layout = automatic_layout(survey(), points, PartitionConfig(blocks=blocks, balance=balance))
    assert float(shares(layout, points).max()) < limit / blocks


def test_default_balances_points_and_keeps_a_given_grid() -> None:
    cameras, points = survey(), city()
    box = PartitionConfig(aabb=(-20.0, -10.0, -10.0, 20.0, 10.0, 10.0), dim=(4, 2, 1))
    for config, same in ((PartitionConfig(), "points"), (box, "contracted")):
        named = automatic_layout(cameras, points, replace(config, balance=same))
        default = automatic_layout(cameras, points, config)
        assert (default.aabb, default.cuts) == (named.aabb, named.cuts)
    assert automatic_layout(cameras, points, box).cuts is None


@pytest.mark.parametrize("aabb", [None, (-20.0, -12.0, -1.0, 20.0, 10.0, 10.0)])
def test_balance_area_cuts_the_box_into_equal_slices(aabb: Box | None) -> None:
    """Along each axis, by the edges of the cells inside the box."""
    layout = automatic_layout(survey(), city(), PartitionConfig(aabb=aabb, dim=(4, 3, 1), balance="area"))
    grid = layout.table().grid
    for axis, count in ((0, 4), (1, 3)):
        edges = torch.full((count - 1, 3), 0.5, dtype=torch.float64)
        edges[:, axis] = torch.tensor(grid.edges[axis][1:-1], dtype=torch.float64)
        low, high = layout.aabb[axis], layout.aabb[axis + 3]
        wanted = low + (high - low) * torch.arange(1, count).double() / count
        torch.testing.assert_close(uncontract(edges, layout.aabb)[:, axis], wanted)


@pytest.mark.parametrize("aabb", [None, (-9.0, -4.0, -1.0, 12.0, 6.0, 10.0)])
@pytest.mark.parametrize("balance", ["cameras", "points"])
def test_every_axis_is_cut_into_equal_numbers(balance: Balance, aabb: Box | None) -> None:
    """Also with a box that most cameras or points are outside of, where the borders of cells are curved."""
    cameras, points = survey(), city(seed=2)
    layout = automatic_layout(cameras, points, PartitionConfig(aabb=aabb, dim=(4, 3, 1), balance=balance))
    grid = layout.table().grid
    places = torch.stack([camera.center for camera in cameras]) if balance == "cameras" else points
    cells = torch.tensor([grid.cell(block) for block in layout.table().cell_of(places).tolist()])
    # 12 lines of 7 cameras: along x four cells have 3 lines each, up to one camera where borders are curved; along y
    # three cells have 2, 3 and 2 of 7. Points: those far from the cameras are not counted in the layout.
    for axis, allowed in ((0, 1 / 84), (1, 3 / 7 - 1 / 3)) if balance == "cameras" else ((0, 0.01), (1, 0.01)):
        share = torch.bincount(cells[:, axis]) / len(places)
        assert float((share - 1 / len(share)).abs().max()) <= allowed + 1e-6


def test_cameras_in_too_few_places_are_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"cameras along y are in 7 place\(s\), expected at least 8, .*balance=area"):
        automatic_layout(survey(), city(), PartitionConfig(dim=(1, 8, 1), balance="cameras"))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(1, 5))
def test_cuts_lie_between_places(values: list[int], cells: int) -> None:
    places = torch.tensor(values, dtype=torch.float64) / 16
    if len(set(values)) < cells:
        with pytest.raises(UserError, match="expected at least"):
            even_cuts(places, cells, "points along x")
        return
    cuts = torch.tensor(even_cuts(places, cells, "points along x"), dtype=torch.float64)
    counts = torch.bincount(torch.bucketize(places, cuts), minlength=cells)
    assert not set(cuts.tolist()) & set(places.tolist()) and bool((counts > 0).all()) and len(counts) == cells
    if cells == 2:  # no other gap gives halves that are more alike
        ordered = sorted(values)
        unlike = [abs(2 * i - len(values)) for i in range(1, len(values)) if ordered[i - 1] < ordered[i]]
        assert abs(int(counts[0] - counts[1])) == min(unlike)


def test_uneven_ground_is_cut_where_the_points_are() -> None:
    """Nine tenths of the points are in a quarter of the ground, which would be one cell of an even grid."""
    points = city()
    dense = points * torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64) + torch.tensor([12.0, 7.0, 0])
    points = torch.cat([dense, points[::10]])
    layout = automatic_layout(survey(), points, PartitionConfig(dim=(2, 2, 1)))
    low, high = points.amin(0).tolist(), points.amax(0).tolist()
    naive = replace(layout, aabb=(*low, *high), rotation=torch.eye(3, dtype=torch.float64), cuts=None)
    assert float(shares(naive, points).max()) > 0.85
    assert float(shares(layout, points).max()) < 0.35


def test_far_background_does_not_move_the_grid() -> None:
    points = city()
    hills = torch.randn(400, 3, generator=keyed_generator("hills"), dtype=torch.float64) * 2000
    alone, with_hills = (automatic_layout(survey(), p, PartitionConfig()) for p in (points, torch.cat([points, hills])))
    assert alone.rotation.equal(with_hills.rotation)
    moved = torch.tensor(alone.aabb) - torch.tensor(with_hills.aabb)
    assert float(moved.abs().max()) < 1  # of 50: quantiles shift a little, bounds would move by thousands


@pytest.mark.parametrize("dim", [(4, 2, 1), (3, 3, 1)])
def test_a_camera_is_in_the_cell_of_the_ground_below_it(dim: tuple[int, int, int]) -> None:
    layout = automatic_layout(survey(), city(), PartitionConfig(dim=dim))
    cut = layout.table()
    for camera in survey():
        below = camera.center.clone()
        below[2] = 0
        assert cut.owner(camera) == int(cut.cell_of(below[None]))


def test_given_box_is_cut_along_the_ground_whatever_axis_is_up() -> None:
    by = turn([1, 0, 0], 90)  # z up becomes -y up, as in many COLMAP models
    config = PartitionConfig(aabb=(-20.0, -5.0, -10.0, 20.0, 5.0, 10.0), blocks=8)
    layout = automatic_layout(*turned(survey(), city(), by), config)
    assert layout.dim == (4, 1, 2)


def test_too_few_points_or_one_place_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="3 sparse points"):
        automatic_layout(survey(), city(count=3), PartitionConfig())
    with pytest.raises(UserError, match="in one place"):
        automatic_layout(survey(), torch.ones(50, 3, dtype=torch.float64), PartitionConfig())


@pytest.mark.slow
def test_map_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cameras, points = survey(), city()
    for name, config in (("auto", PartitionConfig()), ("layers", PartitionConfig(dim=(2, 2, 2)))):
        layout = automatic_layout(cameras, points, config)
        path = tmp_path / f"{name}.png"
        colors = torch.full((len(points), 3), 90, dtype=torch.uint8)
        draw_partition(path, layout.table(), cameras, PointCloud(points, colors))
        assert path.read_bytes().startswith(b"\x89PNG")
