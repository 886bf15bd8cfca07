"""Exported files: coordinates, crops, what they cost, and errors of one line."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from splat_scene import random_splats
from tiny_run import make_config, train
from tiny_scene import nadir_camera, write_tiny_scene

import momentum_gs.export.run as export_run
import momentum_gs.formats.converter as converter
from momentum_gs.bake.baking import bake
from momentum_gs.bake.shell import COUNT
from momentum_gs.cli.main import main
from momentum_gs.config.load import dump_config
from momentum_gs.config.run import load_run_config
from momentum_gs.core.types import Camera
from momentum_gs.data.frame import Frame
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.eval.results import read_json
from momentum_gs.export.files import PART, read_parts, write_parts
from momentum_gs.export.placement import FAR, Placement, placement
from momentum_gs.formats.converter import find_converter
from momentum_gs.formats.read import read_splats
from momentum_gs.model.background import Background
from momentum_gs.model.io import load_decoder, load_model, model_folder, save_decoder, save_splats
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.view import render_image

pytestmark = pytest.mark.slow

BLACK = torch.zeros(3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four merged blocks of the tiny scene, in coordinates of their own, rendered and scored."""
    folder = tmp_path_factory.mktemp("export")
    scene = write_tiny_scene(folder / "scene")
    config = make_config(scene, folder / "out", "scene.offset=1,2,0", "scene.unit=2", "device=cpu", "steps=30")
    train(config)
    out = folder / "out"
    (out / "config.yaml").write_text(dump_config(config))
    for command in (["merge"], ["render"], ["eval", "--lpips", "none"]):
        assert main([command[0], str(out), *command[1:]]) == 0
    return out


def export(run: Path, name: str, *flags: str) -> tuple[Splats, dict]:
    file = run / "export" / name
    assert main(["export", str(run), "-o", str(file), "--device", "cpu", *flags]) == 0
    return read_splats(file), read_json(file.with_name(f"{name}.json"))


def scene_of(run: Path) -> Scene:
    return load_scene(load_run_config(run).scene)


def rotation(seed: int = 0) -> torch.Tensor:
    matrix = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q
    return matrix * torch.linalg.det(matrix)


def test_a_moved_camera_sees_the_same_image_of_moved_gaussians() -> None:
    turn, shift = rotation(), torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    where = Placement(turn, 2.5, shift, torch.eye(4, dtype=torch.float64))
    splats, camera = random_splats(150), nadir_camera("a", 0.2, 0.1, 5.0)
    splats = replace(splats, log_scale=splats.log_scale - 1).as_leaves()
    center = 2.5 * turn @ camera.center + shift
    moved = camera.rotation @ turn.T
    there = Camera("a", 48, 36, 40.0, 40.0, 24.0, 18.0, moved, -moved @ center)
    before = render_image(splats, Harmonics(3), camera, BLACK)
    placed = where.placed(splats)
    after = render_image(placed, Harmonics(3), there, BLACK)
    assert float(before.max()) > 0.2
    torch.testing.assert_close(after, before, rtol=0, atol=2e-4)
    again = where.back(placed)
    for name in ("position", "sh_dc", "sh_rest", "log_scale", "opacity"):
        torch.testing.assert_close(getattr(again, name), getattr(splats, name), rtol=1e-4, atol=1e-5)
    same = (again.rotation * splats.rotation).sum(1).abs() / splats.rotation.square().sum(1)
    torch.testing.assert_close(same.detach(), torch.ones(150))


def test_files_are_in_the_coordinates_of_the_scene(run: Path) -> None:
    scene = scene_of(run)
    where = placement(scene)
    points = torch.randn(20, 3)
    splats = replace(random_splats(20), position=points)
    torch.testing.assert_close(where.placed(splats).position.double(), scene.frame.scene_points(points))
    assert torch.equal(where.to_scene, torch.eye(4, dtype=torch.float64))


def test_y_up_makes_the_ground_normal_y(run: Path) -> None:
    scene = scene_of(run)
    where = placement(scene, y_up=True)
    up = where.rotation @ torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)  # The tiny scene has z up.
    torch.testing.assert_close(up, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    assert float(torch.linalg.det(where.rotation)) == pytest.approx(1)
    splats = replace(random_splats(20), position=torch.randn(20, 3))
    placed = where.placed(splats).position.double()
    back = placed @ where.to_scene[:3, :3].T + where.to_scene[:3, 3]
    torch.testing.assert_close(back, scene.frame.scene_points(splats.position), rtol=1e-4, atol=1e-5)


def test_a_far_origin_is_recorded_instead_of_rounded(run: Path) -> None:
    far = replace(scene_of(run), frame=Frame((3 * FAR, 5e6, 0.0), 1.0))
    where = placement(far)
    splats = replace(random_splats(20), position=torch.randn(20, 3))
    placed = where.placed(splats).position
    assert torch.equal(placed, splats.position)
    points = placed.double() + where.to_scene[:3, 3]
    torch.testing.assert_close(points, far.frame.scene_points(splats.position))


def test_parts_of_a_file_are_the_file_of_the_whole(tmp_path: Path) -> None:
    splats = random_splats(50, 3)
    save_splats(tmp_path / "whole.ply", splats)
    parts = (splats.subset(rows) for rows in torch.arange(50).split(7))
    write_parts(tmp_path / "parts.ply", parts, 50, 3)
    assert (tmp_path / "parts.ply").read_bytes() == (tmp_path / "whole.ply").read_bytes()
    many = random_splats(PART + 5, 0)
    write_parts(tmp_path / "many.ply", [many], len(many), 0)
    read = list(read_parts(tmp_path / "many.ply"))
    assert [len(part) for part in read] == [PART, 5]
    for name, rows in Splats.cat(read).rows().items():
        assert torch.equal(rows, many.rows()[name].detach()), name


def test_the_price_is_what_eval_measures(run: Path) -> None:
    splats, record = export(run, "plain.ply")
    (scored,) = read_json(run / "results.json").values()
    assert record["model"]["PSNR"] == pytest.approx(scored["PSNR"], abs=1e-6)
    assert record["model"]["SSIM"] == pytest.approx(scored["SSIM"], abs=1e-6)
    assert record["lost"]["PSNR"] == pytest.approx(record["model"]["PSNR"] - record["export"]["PSNR"])
    assert (record["split"], record["views"]) == ("test", 2)
    assert record["gaussians"] == len(splats) and record["bytes"] == (run / "export" / "plain.ply").stat().st_size
    scene = scene_of(run)
    model, decoder = load_model(model_folder(run) / "point_cloud.ply")
    baked = placement(scene).placed(bake(model, decoder, scene.train))
    for name, rows in baked.rows().items():
        torch.testing.assert_close(splats.rows()[name].abs(), rows.abs(), rtol=1e-3, atol=1e-4)


def test_the_price_does_not_depend_on_the_coordinates(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = export(run, "z.ply")
    _, turned = export(run, "y.ply", "--y-up")
    assert turned["export"]["PSNR"] == pytest.approx(plain["export"]["PSNR"], abs=0.01)
    # A file that is too large to be kept is read in parts for each view.
    monkeypatch.setattr("momentum_gs.export.price.WHOLE", 0)
    _, parts = export(run, "parts.ply")
    assert parts["export"]["PSNR"] == pytest.approx(plain["export"]["PSNR"], abs=1e-4)


def test_refining_in_parts_gains(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, plain = export(run, "unrefined.ply", "--sh", "1")
    monkeypatch.setattr(export_run, "REFINED", len(whole) // 2 + 1)
    splats, refined = export(run, "refined.ply", "--sh", "1", "--refine", "30")
    assert len(splats) == len(whole) and refined["options"]["refine"] == 30
    assert refined["lost"]["PSNR"] < plain["lost"]["PSNR"]


def test_crops_and_blocks_hold_the_gaussians_inside(run: Path) -> None:
    whole, _ = export(run, "whole.ply", "--sh", "0")
    part, record = export(run, "part.ply", "--sh", "0", "--crop=-2,-1,-9,3,4,9")
    low, high = torch.tensor([-2.0, -1, -9]), torch.tensor([3.0, 4, 9])
    inside = ((whole.position >= low) & (whole.position < high)).all(dim=1)
    assert 0 < len(part) < len(whole)
    assert abs(len(part) - int(inside.sum())) <= 1  # Positions in the file are rounded.
    assert record["scored_with_model_outside_crop"]
    table = PartitionTable.load(model_folder(run) / "partition.json")
    counts = []
    for block in range(table.n):
        splats, _ = export(run, "block.ply", "--sh", "0", "--blocks", str(block))
        training = placement(scene_of(run)).back(splats).position.double()
        assert float((table.cell_of(training) == block).double().mean()) > 0.99
        counts.append(len(splats))
    assert sum(counts) == len(whole)


def test_the_number_of_gaussians_has_a_bound(run: Path) -> None:
    splats, record = export(run, "few.ply", "--max-gaussians", "300")
    assert len(splats) == record["gaussians"] == 300


def test_a_learned_background_is_seen_where_nothing_is_behind_the_file(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out, ignore=shutil.ignore_patterns("export", "checkpoint"))
    decoder = load_decoder(model_folder(out))
    decoder.background = Background(2)
    decoder.architecture["background_degree"] = 2
    decoder.background.sh.data = torch.rand(9, 3, generator=torch.Generator().manual_seed(0)) - 0.3
    save_decoder(model_folder(out), decoder)

    splats, record = export(out, "behind.ply", "--lod", "--sh", "2")
    shell = record["background_gaussians"]
    assert 0 < shell < COUNT / 2 and len(splats) == record["gaussians"] + shell  # All views look down.
    assert bool((splats.position[-shell:, 2] < splats.position[:-shell, 2].median()).all())
    assert record["export_on_black"]["PSNR"] == pytest.approx(record["export"]["PSNR"], abs=0.1)
    level = read_splats(out / "export" / "behind.lod3.ply")
    assert record["gaussians"] // 16 < len(level) - shell <= record["gaussians"] // 8
    for name, rows in level.rows().items():
        torch.testing.assert_close(rows[-shell:], splats.rows()[name][-shell:], rtol=1e-4, atol=1e-4)
    assert record["lod"][0]["PSNR"] == pytest.approx(record["export"]["PSNR"], abs=0.1)

    plain, bare = export(out, "bare.ply", "--sh", "2", "--no-background")
    assert len(plain) == record["gaussians"] and bare["background_gaussians"] == 0
    assert bare["export"]["PSNR"] == pytest.approx(record["export"]["PSNR"], abs=0.1)
    assert bare["export_on_black"]["PSNR"] < record["export_on_black"]["PSNR"] - 1
    part, cut = export(out, "part.ply", "--sh", "0", "--blocks", "0")
    assert len(part) == cut["gaussians"] and cut["background_gaussians"] == 0 and cut["export_on_black"] is None
    few, _ = export(out, "few.ply", "--sh", "0", "--max-gaussians", "300")
    assert len(few) == 300
    _, small = export(out, "small.spz", "--sh", "2")
    assert small["export_on_black"]["PSNR"] == pytest.approx(record["export_on_black"]["PSNR"], abs=0.2)


def test_explicit_gaussians_are_exported_as_they_are(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    folder = out / "point_cloud" / "iteration_30"
    folder.mkdir(parents=True)
    (out / "config.yaml").write_text((run / "config.yaml").read_text())
    scene = scene_of(run)
    model, decoder = load_model(model_folder(run) / "point_cloud.ply")
    baked = bake(model, decoder, scene.train, sh_degree=2)
    save_splats(folder / "point_cloud.ply", baked)
    splats, record = export(out, "same.ply")
    assert record["options"]["sh_degree"] == 2 and record["anchors"] is None
    assert splats.sh_degree == 3 and not splats.sh_rest[:, 8:].any(), "viewers read degree 0 or 3"
    torch.testing.assert_close(
        splats.log_scale, baked.log_scale + math.log(2), rtol=0, atol=1e-5
    )
    assert abs(record["lost"]["PSNR"]) < 0.01
    lower, _ = export(out, "lower.ply", "--sh", "0")
    assert lower.sh_rest.shape[1] == 0


def test_a_georeference_is_copied(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = scene_of(run).path / "scene.json"
    arguments = ["export", str(run), "-o", str(run / "export" / "geo.ply"), "--georeference", "--device", "cpu"]
    assert main(arguments) == 2
    file.write_text(json.dumps({"georeference": None}))
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("georeference") >= 2
    origin = {"latitude": 53.38, "longitude": -1.47, "height": 80.0}
    file.write_text(json.dumps({"georeference": origin, "unit_metres": 1.0, "up": [0, 0, 1]}))
    _, record = export(run, "geo.ply", "--georeference")
    assert record["georeference"] == {"origin": origin, "unit_metres": 1.0, "up": [0, 0, 1]}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--crop", "1,2,3"], "--crop is 1,2,3, expected six numbers"),
        (["--crop", "0,0,0,1,x,1"], "expected numbers separated by commas"),
        (["--crop", "1,0,0,0,1,1"], "x0 < x1"),
        (["--crop", "90,90,90,99,99,99"], "no Gaussian is left"),
        (["--blocks", "7"], "names block 7, expected 0 to 3"),
        (["--max-gaussians", "0"], "--max-gaussians is 0, expected at least 1"),
        (["--refine", "-1"], "--refine is -1, expected at least 0"),
        (["-o", "model.obj"], "expected a file that ends in"),
        (["--format", "ply,obj"], "--format is ply,obj, expected some of ply,"),
        (["--format", "ply,spz", "-o", "a.ply"], "for 2 formats, expected one; leave out -o"),
        (["--format", "ply,spz", "--lod"], "--lod with gaussians.ply, gaussians.spz, expected a PLY"),
    ],
)
def test_errors_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    flags: list[str], expected: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "--device", "cpu", *flags]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert expected in err[-1] and ";" in err[-1] + "; "
    assert not list(run.glob("export/*.part"))


def test_a_run_without_a_merge_names_the_command(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "point_cloud" / "iteration_30").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text())
    assert main(["export", str(tmp_path), "--device", "cpu"]) == 2
    assert "run 'momentum-gs merge' first" in capsys.readouterr().err


def test_levels_of_detail_keep_their_budget(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splats, record = export(run, "levels.ply", "--lod")
    whole, *coarser = record["lod"]
    assert math.isclose(whole["PSNR"], record["export"]["PSNR"], abs_tol=1e-3), "the budget of all Gaussians in view"
    assert [level["budget"] for level in coarser] == [whole["budget"] // share for share in (2, 4, 8)]
    for number, share in enumerate((2, 4, 8), start=1):
        level = read_splats(run / "export" / f"levels.lod{number}.ply")
        assert len(level) <= len(splats) // share
        low, high = splats.position.amin(0), splats.position.amax(0)
        assert ((level.position >= low - 1e-3) & (level.position <= high + 1e-3)).all(), "means of means"
    budget = coarser[0]["budget"]
    assert main(["render", str(run), "--budget", str(budget), "--device", "cpu"]) == 0
    [folder] = (run / "test").glob(f"ours_*_budget{budget}")
    assert read_json(folder / "render.json")["gaussians_per_view"] <= budget


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lod", "--blocks", "0"], "--lod with --crop or --blocks"),
        (["--lod", "-o", "a.splat"], "--lod with a.splat, expected a PLY"),
    ],
)
def test_levels_of_detail_are_of_the_whole_model(
    run: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--device", "cpu", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_budget_needs_levels_of_detail(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(run), "--budget", "0"]) == 2
    assert "--budget is 0, expected a number of Gaussians, at least 1" in capsys.readouterr().err


def test_several_formats_are_baked_once_and_scored(run: Path) -> None:
    kinds = ["ply", "compressed.ply", "splat", "spz", "html"]
    assert main(["export", str(run), "--format", ",".join(kinds), "--device", "cpu", "--sh", "1"]) == 0
    for kind in kinds:
        file = run / "export" / f"gaussians.{kind}"
        record = read_json(file.with_name(f"{file.name}.json"))
        assert record["bytes"] == file.stat().st_size
        assert not record["scored_before_quantization"]
        assert abs(record["export"]["PSNR"] - record["model"]["PSNR"]) < 1
    alone, _ = export(run, "alone.ply", "--sh", "1")
    together = read_splats(run / "export" / "gaussians.ply")
    # Two bakes differ in the last bits, as several threads may add a matrix product in another order.
    for name in Splats.LEARNABLE:
        torch.testing.assert_close(getattr(together, name), getattr(alone, name), rtol=1e-4, atol=1e-4)


def test_a_missing_writer_is_found_before_the_bake(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, "find_converter", lambda: None)
    monkeypatch.setattr(export_run, "contributions", lambda *_: pytest.fail("the bake has begun"))
    assert main(["export", str(run), "--format", "ply,sog", "--device", "cpu"]) == 2
    assert "gaussians.sog: the program splat-transform is not on PATH" in capsys.readouterr().err


@pytest.mark.skipif(find_converter() is None, reason="splat-transform is not installed")
def test_levels_of_detail_are_streamed(run: Path) -> None:
    export(run, "streamed.ply", "--lod", "--sh", "0")
    bundle = run / "export" / "streamed_lod"
    assert read_json(bundle / "lod-meta.json")["lodLevels"] == 4
    assert any(bundle.rglob("*.webp"))
