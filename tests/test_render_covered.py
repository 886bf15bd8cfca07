"""Covered pixels, which at least three training views see: geometry in closed form, files, and scores over them."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from tiny_run import BASE, SETTINGS
from tiny_scene import nadir_camera, write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.sweep import MODES
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera
from momentum_gs.data.images import image_size, read_image, write_png
from momentum_gs.eval.covered import MIN_SHARE, CoveredPixels, count_views, read_map, seen_from
from momentum_gs.eval.results import read_json, write_json
from momentum_gs.partition.coverage import SEEN_BY

HEIGHT = 4.0


def ground_depth(camera: Camera) -> torch.Tensor:
    """Depth of the plane z = 0, infinite where the ray misses it."""
    column = (torch.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    row = (torch.arange(camera.height) + 0.5 - camera.cy) / camera.fy
    rays = torch.stack(torch.broadcast_tensors(column, row[:, None], torch.tensor(1.0)), dim=-1).double()
    down = -(rays @ camera.rotation)[..., 2]
    return torch.where(down > 1e-3, camera.center[2] / down, math.inf).float()


def ground_places(camera: Camera) -> tuple[torch.Tensor, torch.Tensor]:
    """x [W] and y [H] of the ground below a nadir camera's pixels."""
    x = camera.center[0] + (torch.arange(camera.width) + 0.5 - camera.cx) / camera.fx * HEIGHT
    y = camera.center[1] - (torch.arange(camera.height) + 0.5 - camera.cy) / camera.fy * HEIGHT
    return x, y


def oblique_cameras(count: int) -> list[Camera]:
    """Above the plane, looking down at up to 80 degrees from the vertical, with different headings."""
    generator = torch.Generator().manual_seed(0)
    cameras = []
    for i in range(count):
        tilt, turn = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        tilt, turn = 1.4 * tilt, 2 * math.pi * turn
        c, s = math.cos(tilt), math.sin(tilt)
        lean = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)
        c, s = math.cos(turn), math.sin(turn)
        spin = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
        rotation = lean @ torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64)) @ spin
        center = (torch.rand(3, generator=generator, dtype=torch.float64) - 0.5) * torch.tensor([6.0, 6, 0])
        center[2] = HEIGHT + i % 3
        cameras.append(Camera(f"{i}.png", 48, 36, 40.0, 40.0, 24.0, 18.0, rotation, -rotation @ center))
    return cameras


def test_ground_is_counted_by_the_images_that_it_lies_in() -> None:
    held_out = [nadir_camera("a", 0.0, 0.0), nadir_camera("b", 2.0, 1.0), nadir_camera("far", 50.0, 0.0)]
    # Shifted a little, so that no pixel of one image is projected onto the edge of another.
    training = [nadir_camera(f"{x} {y}", x + 0.013, y + 0.017) for x in (-2.0, 0.0, 2.0) for y in (-1.0, 0.0, 1.0)]
    found = count_views(held_out, training, ground_depth, ground_depth)
    for camera, count in zip(held_out, found, strict=True):
        x, y = ground_places(camera)
        inside = [
            ((y - t.center[1]).abs() < 18 / 40 * HEIGHT)[:, None] & ((x - t.center[0]).abs() < 24 / 40 * HEIGHT)
            for t in training
        ]
        assert torch.equal(count.long(), torch.stack(inside).sum(dim=0))
    assert found[0].unique().tolist() == [4, 6, 9]  # two or three images along each axis
    assert not found[2].any()


def test_points_behind_the_depth_of_a_view_are_not_seen_and_those_before_it_are() -> None:
    """A plate at half the height, |x| < 0.5, hides the ground at x in (-4, -2) from a camera above x = 3."""
    held_out = nadir_camera("a", -3.0, 0.0)
    other = replace(nadir_camera("wide", 3.0, 0.0), width=480, cx=240.0)
    column = (torch.arange(480) + 0.5 - 240) / 40
    plate = torch.where((3 + HEIGHT / 2 * column).abs() < 0.5, HEIGHT / 2, HEIGHT).expand(36, 480)
    x, _ = ground_places(held_out)
    hidden = ((3 + x) / 2).abs() < 0.5
    clear = ((x + 3).abs() - 1).abs() > 0.1  # farther from the shadow's edges than a pixel's width on the ground
    assert hidden[clear].any() and not hidden[clear].all()
    seen = seen_from(ground_depth(held_out), held_out, plate, other)
    assert torch.equal(seen[:, clear], ~hidden[clear].expand(36, -1))
    # The plate is seen, and so is anything above it: it would have been in front of the plate in that image.
    for depth in (HEIGHT / 2, HEIGHT / 4):
        assert seen_from(torch.full((36, 48), depth), nadir_camera("b", 0.0, 0.0), plate, other).all()
    # A pixel without depth is not seen, nor is any pixel by a view whose depth is 0 everywhere (ignored pixels).
    assert not seen_from(torch.full((36, 48), math.inf), held_out, plate, other).any()
    assert not seen_from(ground_depth(held_out), held_out, torch.zeros(36, 480), other).any()
    # A view of infinite depth sees everything in front of it.
    assert seen_from(ground_depth(held_out), held_out, torch.full((36, 480), math.inf), other).all()


def test_views_that_are_skipped_see_nothing() -> None:
    cameras = oblique_cameras(24)
    held_out, training = cameras[::4], cameras[1:]
    asked: list[str] = []

    def limit(camera: Camera) -> torch.Tensor:
        asked.append(camera.name)
        return ground_depth(camera)

    found = count_views(held_out, training, ground_depth, limit)
    assert len(asked) == len(set(asked))
    for camera, count in zip(held_out, found, strict=True):
        depth = ground_depth(camera)
        every = torch.stack([seen_from(depth, camera, ground_depth(other), other) for other in training])
        assert torch.equal(count.long(), every.sum(dim=0))
        itself = sum(other is camera for other in training)
        # In float32, about one pixel in a few thousand is projected beyond the edge of its own image.
        assert (count >= itself)[depth.isfinite()].float().mean() > 0.999
    assert max(int(count.max()) for count in found) >= SEEN_BY
    away = nadir_camera("away", 1e4, 0.0)
    count_views(held_out[:1], [away], lambda camera: torch.full((36, 48), HEIGHT), limit)
    assert "away" not in asked  # its depth is not rendered


def test_counts_do_not_depend_on_place_or_heading_of_the_scene() -> None:
    cameras = oblique_cameras(12)
    depths = {camera.name: ground_depth(camera) for camera in cameras}

    def depth_of(camera: Camera) -> torch.Tensor:
        return depths[camera.name]

    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    away = torch.tensor([5e5, -4e6, 100.0], dtype=torch.float64)  # metres of a national grid
    moved = []
    for camera in cameras:
        rotation = camera.rotation @ turn.T
        center = turn @ camera.center + away
        moved.append(replace(camera, rotation=rotation, translation=-rotation @ center))
    here, there = (count_views(some[:3], some[3:], depth_of, depth_of) for some in (cameras, moved))
    # The offset costs 1e-9 of a unit of precision: a pixel at an edge may be on either side of it.
    assert sum(float((a != b).float().mean()) for a, b in zip(here, there, strict=True)) < 3e-3


def test_covered_pixels_by_closed_form(tmp_path: Path) -> None:
    truth, render = torch.zeros(3, 6, 10), torch.full((3, 6, 10), 0.5)
    counts = torch.zeros(6, 10, dtype=torch.uint8)
    counts[:, :4] = SEEN_BY
    counts[:, 4:8] = SEEN_BY - 1
    render[:, :, :4] = 0.1

    def write(name: str, counts: torch.Tensor) -> None:
        (tmp_path / name).write_bytes(cv2.imencode(".png", counts.numpy())[1].tobytes())

    write("a.png", counts)
    write("none.png", torch.zeros_like(counts))
    pixels = CoveredPixels(tmp_path)
    scores = pixels.score("a.png", render, truth, None)
    assert scores == {"covered_share": pytest.approx(0.4), "PSNR_covered": pytest.approx(20, abs=1e-5)}
    mask = torch.ones(1, 6, 10)
    mask[:, :, :2] = 0
    assert pixels.score("a.png", render, truth, mask)["covered_share"] == pytest.approx(12 / 48)
    assert MIN_SHARE > 0 and pixels.score("none.png", render, truth, None) == {"covered_share": 0}
    # The hash depends on which pixels are covered, not on the counts.
    shas = []
    for changed in (counts, counts * 2, counts + 1):
        write("b.png", torch.where(counts == 0, 0, changed).to(torch.uint8))
        other = CoveredPixels(tmp_path)
        other.score("b.png", render, truth, None)
        shas.append(other.sha256)
    assert len(set(shas)) == 2
    with pytest.raises(UserError, match=r"a\.png: 10x6 of uint8, expected an 8-bit grey map of 6x10"):
        read_map(tmp_path / "a.png", 6, 10)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("covered") / "scene")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, scene: Path) -> Callable[[str], Path]:
    """Coarse runs by primitive, each trained once; tests work on copies."""
    folder = tmp_path_factory.mktemp("runs")

    def run(primitive: str) -> Path:
        out = folder / primitive
        if not out.exists():
            mode = ["-c", str(MODES / "gaussians.yaml")] if primitive == "gaussians" else BASE
            settings = [*SETTINGS, "stage=coarse", "steps=10", "device=cpu"]
            assert main(["train", *mode, "-s", str(scene), "-m", str(out), *settings]) == 0
        return out

    return run


@pytest.fixture()
def out(tmp_path: Path, trained: Callable[[str], Path]) -> Path:
    return Path(shutil.copytree(trained("anchors"), tmp_path / "run"))


def scored(out: Path, *options: str) -> dict[str, object]:
    assert main(["render", str(out), *options]) == 0
    assert main(["eval", str(out), "--lpips", "none"]) == 0
    return read_json(out / "results.json")["ours_10"]


@pytest.mark.slow
@pytest.mark.parametrize("primitive", ["anchors", "gaussians"])
def test_models_of_either_kind_give_maps(primitive: str, trained: Callable[[str], Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(trained(primitive), tmp_path / "run"))
    record = scored(out, "--covered", "--split", "both")
    about = read_json(out / "test/ours_10/render.json")["covered"]
    assert about["method"] == "ours_10" and about["training_views"] == 14
    for path in (out / "train/ours_10/covered").glob("*.png"):
        # A training view sees its own pixels, where the model has a surface.
        assert (read_map(path, 48, 36) >= 1).float().mean() > 0.9
    share = read_json(out / "per_view.json")["ours_10"]["covered_share"]
    assert 0 < record["covered_share"] < 1
    assert record["covered_share"] == pytest.approx(sum(share.values()) / len(share))
    assert record["protocol"]["covered_sha256"] is not None and record["PSNR_covered"] > 0
    # Computed here from the files: only views with enough covered pixels have a score.
    folder, mean = out / "test/ours_10", []
    for path in sorted((folder / "covered").glob("*.png")):
        render, truth = (read_image(folder / kind / path.name, 48, 36).double() / 255 for kind in ("renders", "gt"))
        seen = read_map(path, 48, 36) >= SEEN_BY
        if seen.float().mean() >= MIN_SHARE:
            mean.append(-10 * math.log10(float((render - truth).square().mean(dim=0)[seen].mean())))
    assert record["PSNR_covered"] == pytest.approx(sum(mean) / len(mean), abs=1e-4)
    assert main(["render", str(out)]) == 0  # Now the maps are of an earlier rendering.
    assert "covered" not in read_json(out / "test/ours_10/render.json")
    assert main(["eval", str(out), "--lpips", "none"]) == 0
    assert "PSNR_covered" not in read_json(out / "results.json")["ours_10"]


@pytest.mark.slow
def test_runs_compare_over_the_maps_of_one(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = scored(out, "--covered")
    other = Path(shutil.copytree(out, out.parent / "other"))
    shutil.rmtree(other / "test")
    same = scored(other, "--covered-by", str(out))
    assert same["protocol"]["covered_sha256"] == one["protocol"]["covered_sha256"]
    assert same["PSNR_covered"] == one["PSNR_covered"]
    capsys.readouterr()
    assert main(["eval", "--compare", str(out), str(other)]) == 0
    printed = capsys.readouterr().out
    assert "PSNR covered" in printed.splitlines()[0] and "covered %" in printed.splitlines()[0]
    results = read_json(other / "results.json")
    results["ours_10"]["protocol"]["covered_sha256"] = "f" * 64
    write_json(other / "results.json", results)
    assert main(["eval", "--compare", str(out), str(other)]) == 0
    printed = capsys.readouterr().out
    assert "covered" not in printed.splitlines()[0] and "PSNR covered left out" in printed
    # If one run has no covered scores, the other keeps its column.
    for key in ("PSNR_covered", "covered_share"):
        del results["ours_10"][key]
    results["ours_10"]["protocol"]["covered_sha256"] = None
    write_json(other / "results.json", results)
    assert main(["eval", "--compare", str(out), str(other)]) == 0
    assert "PSNR covered" in capsys.readouterr().out.splitlines()[0]


def test_wrong_maps_are_named_before_anything_is_rendered(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(*options: str) -> str:
        assert main(["render", str(out), *options]) == 2
        return capsys.readouterr().err

    assert "no maps of covered pixels" in refusal("--covered-by", str(out))
    assert "expected only one of them" in refusal("--blocks", "--covered")
    assert not (out / "test").exists()
    scored(out, "--covered")
    maps = sorted((out / "test/ours_10/covered").glob("*.png"))
    small = read_image(maps[0], *image_size(maps[0]))[:, ::2, ::2]
    write_png(maps[0], small.float() / 255)
    assert "24x18, expected 48x36 as the view is rendered" in refusal("--covered-by", str(out))
    maps[0].unlink()
    assert f"{maps[0].name}: missing" in refusal("--covered-by", str(out))
    with pytest.raises(SystemExit):
        main(["render", str(out), "--covered", "--covered-by", str(out)])


@pytest.mark.slow
def test_ignored_pixels_of_training_images_see_nothing(out: Path, scene: Path, tmp_path: Path) -> None:
    plain = scored(out, "--covered")["covered_share"]
    masked = Path(shutil.copytree(scene, tmp_path / "masked"))
    for image in (masked / "images").iterdir():
        write_png(masked / "masks" / image.name, torch.ones(3, 36, 48))
    same = scored(out, "--covered", "-s", str(masked))["covered_share"]
    assert same == plain
    held_out = set(read_json(out / "test/ours_10/render.json")["names"])
    for image in (masked / "images").iterdir():
        if image.name not in held_out:
            write_png(masked / "masks" / image.name, torch.zeros(3, 36, 48))
    assert scored(out, "--covered", "-s", str(masked))["covered_share"] == 0


def test_the_report_has_tables_of_fitted_and_of_covered_scores(out: Path) -> None:
    record = scored(out, "--covered")
    assert main(["report", str(out)]) == 0
    text = (out / "report.html").read_text()
    assert "Right half, colours fitted on the left half" in text and f"{record['PSNR_fit']:.2f}" in text
    assert f"Pixels whose surface at least {SEEN_BY} training views see" in text
    assert f"{record['PSNR_covered']:.2f}" in text and f"{100 * record['covered_share']:.1f}" in text
    assert json.loads((out / "results.json").read_text())["ours_10"]["PSNR_right"] > 0
