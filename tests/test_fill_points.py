"""Fill points, where views overlap but the sparse model has no points."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_run import CPU, assert_same_bits, make_config, write_table
from tiny_scene import nadir_camera, write_tiny_scene

from momentum_gs.core.geometry import in_any_view, in_view
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.fill_points import fill_points
from momentum_gs.data.scene import load_scene
from momentum_gs.train.blocks.start import FirstBlocks
from momentum_gs.train.blocks.views import plan_blocks

CAMERAS = [nadir_camera(f"{x}.png", x, 0.0) for x in (-1.0, 0.5, 2.0)]


def plane(count: int, low: float = -20.0, high: float = 20.0) -> PointCloud:
    """Random points of the ground, x between the bounds."""
    draw = torch.Generator().manual_seed(0)
    xyz = torch.rand(count, 3, generator=draw, dtype=torch.float64) * torch.tensor([high - low, 40, 0])
    xyz += torch.tensor([low, -20, 0])
    return PointCloud(xyz, torch.randint(0, 256, (count, 3), generator=draw, dtype=torch.uint8))


def new_of(points: PointCloud, share: float = 9.0, seed: int = 0) -> torch.Tensor:
    return fill_points(points, CAMERAS, share, seed).xyz[len(points) :]


def test_views_full_of_points_get_none() -> None:
    assert len(new_of(plane(200_000))) == 0


def test_a_hole_is_filled_on_the_surface_around_it() -> None:
    points = plane(50_000, high=0.0)
    filled = fill_points(points, CAMERAS, 9.0, 0)
    assert torch.equal(filled.xyz[: len(points)], points.xyz)
    assert torch.equal(filled.rgb[: len(points)], points.rgb)
    new = filled.xyz[len(points) :]
    assert len(new) > 20
    assert in_any_view(new, CAMERAS).all()
    torch.testing.assert_close(new[:, 2], torch.zeros(len(new), dtype=torch.float64))
    assert (new[:, 0] > -1).all(), "half of the ground has points"
    assert float(new[:, 0].max()) > 1.0
    # Views overlap: what the first of them has filled, the next ones do not fill again.
    alone = fill_points(points, CAMERAS[1:2], 9.0, 0).xyz[len(points) :]
    assert in_view(new, CAMERAS[1]).sum() < 1.5 * len(alone)


def test_fill_points_depend_on_the_seed() -> None:
    points = plane(50_000, high=0.0)
    assert torch.equal(new_of(points), new_of(points))
    assert not torch.equal(new_of(points), new_of(points, seed=1))


@pytest.mark.parametrize("share", [0.0, 0.001])
def test_the_share_bounds_the_number_of_fill_points(share: float) -> None:
    points = plane(50_000, high=0.0)
    assert len(new_of(points, share)) == int(share * len(points))


def test_a_view_without_points_is_left_alone() -> None:
    assert len(new_of(plane(1000, low=50, high=60))) == 0


def test_the_unit_of_the_scene_does_not_matter() -> None:
    def scaled(camera: Camera) -> Camera:
        return dataclasses.replace(camera, translation=8 * camera.translation)

    points = plane(50_000, high=0.0)
    large = PointCloud(8 * points.xyz, points.rgb)
    new = fill_points(large, [scaled(camera) for camera in CAMERAS], 9.0, 0).xyz[len(points) :]
    torch.testing.assert_close(new, 8 * new_of(points))


def test_a_block_starts_alike_whichever_blocks_were_made_before_it(tmp_path: Path) -> None:
    scene_folder = write_tiny_scene(tmp_path / "scene")
    config = make_config(scene_folder, tmp_path / "out", "model.fill_points=0.5")
    scene, table = load_scene(config.scene), write_table(config)
    left = scene.points.xyz[:, 0] < 0
    scene = dataclasses.replace(scene, points=PointCloud(scene.points.xyz[left], scene.points.rgb[left]))
    plan = plan_blocks(scene, table)
    one_rank = FirstBlocks(scene, plan, config, CPU)
    blocks = [one_rank(block).model for block in range(4)]
    assert_same_bits(FirstBlocks(scene, plan, config, CPU)(3).model.rows(), blocks[3].rows())
    # Half of the ground has no points: without filling, no anchor lies there.
    assert sum(int((anchors.position[:, 0] > 0.5).sum()) for anchors in blocks) > 20
    plain = FirstBlocks(scene, plan, make_config(scene_folder, tmp_path / "out"), CPU)
    assert all(int((plain(block).model.position[:, 0] > 0.5).sum()) == 0 for block in range(4))
