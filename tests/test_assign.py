"""Assignment of training views to blocks."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from anchor_scene import random_decoder
from tiny_run import BASE
from tiny_scene import write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.core.image import ssim
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera, RenderOutput
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.io import save_decoder, save_ply
from momentum_gs.partition.assign import assign_cameras, view_changes, view_contributions, weak_blocks
from momentum_gs.partition.cover import block_boxes, view_cover
from momentum_gs.render import ownership
from momentum_gs.render.rasterize import rasterize
from momentum_gs.render.view import render_image, render_view

BLACK = torch.zeros(3)
DECODER = random_decoder()
# Blocks 0 and 1 meet at x = 0; the second row of the grid (blocks 2 and 3) lies beyond y = 50 and holds nothing.
TABLE = PartitionTable((-20.0, 0.0, -5.0, 20.0, 100.0, 20.0), (2, 2, 1), torch.eye(3, dtype=torch.float64), [[]] * 4)


def town(center: float, count: int = 150) -> Anchors:
    """Anchors on a plane, 8 wide, around (center, 0, 0)."""
    generator = keyed_generator("town", int(center))
    place = (torch.rand(count, 3, generator=generator) - 0.5) * torch.tensor([8.0, 8.0, 0.5])
    return Anchors(
        position=place + torch.tensor([center, 0, 0]),
        offset=torch.randn(count, 4, 3, generator=generator) * 0.3,
        feature=10 * torch.randn(count, 8, generator=generator),  # large, so that an untrained decoder gives contrast
        log_scale=torch.full((count, 6), math.log(0.4)),
        rotation=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        opacity=torch.zeros(count, 1),
    )


TOWNS = Anchors.cat([town(-10.0), town(10.0)])


def looking(name: str, eye: tuple[float, float, float], target: tuple[float, float, float]) -> Camera:
    """A camera at ``eye`` with ``target`` in the middle of its image."""
    at, to = torch.tensor(eye, dtype=torch.float64), torch.tensor(target, dtype=torch.float64)
    forward = torch.nn.functional.normalize(to - at, dim=0)
    right = torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    right = right / right.norm()
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward])
    return Camera(name, 48, 36, 40.0, 40.0, 24.0, 18.0, rotation, -rotation @ at)


OVER_A = looking("over_a.jpg", (-10, 0, 6), (-10, 0, 0))
OVER_B = looking("over_b.jpg", (10, 0, 6), (10, 0, 0))
HIGH = looking("high.jpg", (-1, 0, 19), (-1, 0, 0))
A_TO_B = looking("a_to_b.jpg", (-2, 0, 8), (10, 0, 0))
CAMERAS = [OVER_A, OVER_B, HIGH, A_TO_B]


CELL = TABLE.cell_of(TOWNS.position)


def assign(threshold: float = 0.05, by: str = "ssim") -> list[list[str]]:
    ways = {
        "ssim": lambda camera: view_changes(TOWNS, DECODER, camera, CELL, BLACK),
        "contribution": lambda camera: view_contributions(TOWNS, DECODER, camera, CELL),
        "visibility": partial(view_cover, table=TABLE, boxes=block_boxes(TABLE, TOWNS.position)),
    }
    return assign_cameras(CAMERAS, TABLE, ways[by], threshold)


@pytest.mark.parametrize("by", ["ssim", "contribution", "visibility"])
def test_a_camera_trains_the_blocks_that_it_sees_and_the_one_it_is_in(by: str) -> None:
    seen = assign(by=by)
    assert seen == [["over_a.jpg", "high.jpg", "a_to_b.jpg"], ["over_b.jpg", "high.jpg", "a_to_b.jpg"], [], []]
    # The camera is in block 0 and sees nothing of it.
    assert TABLE.owner(A_TO_B) == 0
    assert set(view_changes(TOWNS, DECODER, A_TO_B, CELL, BLACK)) == {1}


@pytest.mark.parametrize("by", ["ssim", "contribution", "visibility"])
def test_a_higher_threshold_gives_fewer_views_but_keeps_those_of_cameras_in_the_block(by: str) -> None:
    few, many = assign(0.9, by), assign(0.001, by)
    assert all(set(a) <= set(b) for a, b in zip(few, many, strict=True))
    for camera in CAMERAS:
        assert camera.name in few[TABLE.owner(camera)]


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.name)
def test_change_is_that_of_leaving_the_block_out(camera: Camera) -> None:
    """All Gaussians are decoded once, and those of a block left out; rendering without its anchors gives the same."""
    changes = view_changes(TOWNS, DECODER, camera, CELL, BLACK)
    whole = render_image(TOWNS, DECODER, camera, BLACK)
    for block in range(TABLE.n):
        without = render_image(TOWNS.subset(block != CELL), DECODER, camera, BLACK)
        # 1e-5: a matrix product over other rows rounds differently, and SSIM sums 5,000 such pixels.
        assert changes.get(block, 0.0) == pytest.approx(1 - float(ssim(whole, without)), abs=1e-5)
        if block not in changes:  # nothing of it is in the image
            torch.testing.assert_close(without, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: camera.name)
def test_contributions_sum_to_alpha(camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        alpha = float(render_view(TOWNS, DECODER, camera, BLACK).output.alpha.mean())
    # With 40 blocks, and however many renders their channels are distributed over.
    dealt = torch.arange(len(TOWNS)) % 40
    whole = view_contributions(TOWNS, DECODER, camera, dealt)
    monkeypatch.setattr(ownership, "CHANNELS", 7)
    parts = view_contributions(TOWNS, DECODER, camera, dealt)
    # 1e-6: float32 sums of 1,728 pixels in another order.
    assert sum(whole.values()) == pytest.approx(alpha, abs=1e-6) and alpha > 0.1
    assert parts == pytest.approx(whole, abs=1e-6)
    joined = view_contributions(TOWNS, DECODER, camera, dealt // 10)
    for block, weight in joined.items():
        assert weight == pytest.approx(sum(w for b, w in whole.items() if b // 10 == block), abs=1e-6)


def test_contribution_is_one_render(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def counting(*args: Any) -> RenderOutput:
        drawn.append(args)
        return rasterize(*args)

    monkeypatch.setattr(ownership, "rasterize", counting)
    assert len(view_contributions(TOWNS, DECODER, HIGH, torch.arange(len(TOWNS)) % 40)) == 40 and len(drawn) == 1


def test_a_skipped_block_has_no_change() -> None:
    assert set(view_changes(TOWNS, DECODER, HIGH, CELL, BLACK)) == {0, 1}
    assert set(view_changes(TOWNS, DECODER, HIGH, CELL, BLACK, skip=0)) == {1}


def test_weak_blocks_are_named_with_their_cell() -> None:
    table = replace(TABLE, views=[["a", "b"], ["a"], [], ["c", "d", "e"]])
    lines = weak_blocks(table)
    assert len(lines) == 2
    assert "block 1 (cell x 2/2, y 1/2, z 1/1) has 1 training view" in lines[0]
    assert "block 2 (cell x 1/2, y 2/2, z 1/1) has 0" in lines[1] and "partition.threshold" in lines[1]
    assert len(weak_blocks(table, minimum=1)) == 1


def write_coarse(folder: Path) -> None:
    """Writes random anchors on the plane of the tiny scene where coarse training would write its model."""
    iteration = folder / "point_cloud" / "iteration_10"
    iteration.mkdir(parents=True)
    anchors = Anchors.cat([town(-4.0), town(4.0)])
    save_ply(iteration / "point_cloud.ply", anchors)
    save_decoder(iteration, DECODER)


@pytest.mark.slow
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, out = write_tiny_scene(tmp_path / "scene"), tmp_path / "out"
    command = ["partition", *BASE, str(scene), "-m", str(out), "partition.blocks=4", "device=cpu"]

    assert main(command) == 2
    message = capsys.readouterr().err
    assert "no coarse model" in message and "assign=visibility" in message and "\n" not in message.strip()

    write_coarse(out / "coarse")
    for by in ("ssim", "contribution", "visibility"):
        assert main([*command, f"partition.assign={by}"]) == 0
        table = PartitionTable.load(out / "partition.json")
        assert table.n == 4 and table.meta["assign"] == by
        assert sum(map(len, table.views)) >= 14  # all but the 2 of 16 that are held out
        assert (out / "partition.png").is_file()
        printed = capsys.readouterr().out
        assert "x 2/2, y 2/2, z 1/1" in printed
        assert sum(row["points"] for row in table.meta["coverage"]) == 1500
        assert [row["views"] for row in table.meta["coverage"]] == [len(names) for names in table.views]

    for threshold, dropped in ((0.4, True), (0.001, False)):
        windows = ["partition.assign=contribution", "blocks.windows=true", f"partition.threshold={threshold}"]
        assert main([*command, *windows]) == 0
        assert ("lower partition.threshold" in capsys.readouterr().out) == dropped


@pytest.mark.slow
def test_without_a_coarse_model_by_visibility(tmp_path: Path) -> None:
    scene, out = write_tiny_scene(tmp_path / "scene"), tmp_path / "out"
    command = ["partition", *BASE, str(scene), "-m", str(out), "partition.blocks=4", "partition.assign=visibility"]
    assert main(command) == 0
    assert PartitionTable.load(out / "partition.json").n == 4


@pytest.mark.slow
def test_starved_blocks_are_joined_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, out = write_tiny_scene(tmp_path / "scene"), tmp_path / "out"
    write_coarse(out / "coarse")
    box = "partition.aabb=-6,-6,-1,6,100,5"  # cut at y = 47, beyond every camera and anchor
    command = ["partition", *BASE, str(scene), "-m", str(out), box, "partition.dim=2,2,1", "device=cpu"]
    assert main(command) == 0
    table = PartitionTable.load(out / "partition.json")
    assert (table.n, table.joined) == (2, (0, 1, 0, 1))
    printed = capsys.readouterr().out
    assert printed.count("joined: ") == 2 and "x 1/2, y 2/2, z 1/1: 0 training view(s) and 0 sparse" in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["partition.blocks", "blocks.n"])
def test_blocks_by_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    scene, out = write_tiny_scene(tmp_path / "scene"), tmp_path / "out"
    command = ["partition", *BASE, str(scene), "-m", str(out)]
    command += [f"{name}=auto", "partition.assign=visibility", "device=cpu"]
    size = "model.voxel_size=0.05"
    assert main([*command, size]) == 0  # half of this machine's memory holds the whole scene
    assert PartitionTable.load(out / "partition.json").n == 1
    assert main([*command, size, "anchors.max_per_block=5000"]) == 0
    assert PartitionTable.load(out / "partition.json").n > 1
    assert "bound: 5,000" in capsys.readouterr().out
    assert main([*command, size, "anchors.max_per_block=10"]) == 2
    assert "partition.blocks: auto finds no number" in capsys.readouterr().err


@pytest.mark.slow
def test_one_block_needs_no_coarse_model(tmp_path: Path) -> None:
    scene, out = write_tiny_scene(tmp_path / "scene"), tmp_path / "out"
    assert main(["partition", *BASE, str(scene), "-m", str(out), "partition.blocks=1", "device=cpu"]) == 0
    assert len(PartitionTable.load(out / "partition.json").views[0]) == 14


@pytest.mark.slow
def test_block_without_a_view_is_an_error_with_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, out = write_tiny_scene(tmp_path / "scene"), tmp_path / "out"
    write_coarse(out / "coarse")
    box = "partition.aabb=-6,-6,-1,6,100,5"  # cut at y = 47, beyond every camera and anchor
    settings = [box, "partition.dim=1,2,1", "device=cpu", "partition.min_views=0", "partition.min_points=0"]
    assert main(["partition", *BASE, str(scene), "-m", str(out), *settings]) == 2
    assert "block 1 (cell x 1/1, y 2/2, z 1/1) has 0 training view" in capsys.readouterr().err
    assert (out / "partition.png").is_file()
