"""``momentum-gs render`` on a synthetic run: the PNG files hold the renders of its models."""

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from momentum_gs.cli.main import main
from momentum_gs.config.load import dump_config
from momentum_gs.config.schema import Config, PartitionConfig, SceneConfig
from momentum_gs.core.image import to_uint8
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.colmap.model import write_model
from momentum_gs.data.images import image_size, read_image, write_png
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.eval.results import read_json
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.io import load_decoder, load_ply, save_decoder, save_ply
from momentum_gs.render.view import render_image

BLOCKS = 2
AABB = (-5.0, -5.0, -5.0, 5.0, 5.0, 5.0)


def random_anchors(seed: int, n: int = 150) -> Anchors:
    """Coloured anchors on a plane below the cameras; each seed looks different."""
    generator = keyed_generator("render split test", seed)
    position = (torch.rand(n, 3, generator=generator) - 0.5) * torch.tensor([12.0, 12.0, 0.2])
    return Anchors(
        position=position,
        offset=torch.randn(n, 4, 3, generator=generator) * 0.3,
        feature=10 * torch.randn(n, 8, generator=generator),  # large, so that an untrained decoder gives contrast
        log_scale=torch.full((n, 6), math.log(0.4)),
        rotation=torch.tensor([1.0, 0, 0, 0]).repeat(n, 1),
        opacity=torch.zeros(n, 1),
    )


@pytest.fixture(scope="module")
def scene_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 cameras on a line along x, looking straight down; images of noise, in two folders."""
    folder = tmp_path_factory.mktemp("scene")
    down = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]], dtype=torch.float64)
    cameras = []
    for i in range(16):
        center = torch.tensor([(i - 7.5) / 2, 0.0, 4.0], dtype=torch.float64)
        camera = Camera(f"{'ab'[i % 4 // 2]}/{i:03d}.png", 48, 36, 40.0, 40.0, 24.0, 18.0, down, -down @ center)
        target = torch.rand(3, 36, 48, generator=keyed_generator("image", i))
        write_png(folder / "images" / camera.name, target)
        cameras.append(camera)
    points = PointCloud(torch.rand(20, 3, dtype=torch.float64), torch.zeros(20, 3, dtype=torch.uint8))
    write_model(folder / "sparse" / "0", cameras, points)
    return folder


@pytest.fixture()
def run(tmp_path: Path, scene_path: Path) -> tuple[Path, Scene]:
    """A finished run of two blocks cut along x, trained for 20 steps, with an older model at 7."""
    out = tmp_path / "out"
    config = Config(
        scene=SceneConfig(path=str(scene_path), resolution=1.0, test_every=2),
        partition=PartitionConfig(dim=(BLOCKS, 1, 1), aabb=AABB),
        device="cpu",
    )
    scene = load_scene(config.scene)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = GaussianDecoder(feature_dim=8, n_offsets=4)
    for iteration in (7, 20):
        folder = out / "point_cloud" / f"iteration_{iteration}"
        folder.mkdir(parents=True)
        save_ply(folder / "point_cloud.ply", random_anchors(iteration))
        save_decoder(folder, decoder)
        for block in range(BLOCKS):
            save_ply(folder / f"point_cloud_block{block}.ply", random_anchors(100 + block))
        views = [[camera.name for camera in scene.train]] * BLOCKS
        table = PartitionTable(AABB, (BLOCKS, 1, 1), torch.eye(3, dtype=torch.float64), views, {})
        table.save(folder / "partition.json")
    (out / "config.yaml").write_text(dump_config(replace(config, out=str(out))))
    return out, scene


def png(path: Path) -> torch.Tensor:
    return read_image(path, *image_size(path))


def expected(ply: Path, scene: Scene, name: str) -> torch.Tensor:
    camera = next(camera for camera in (*scene.test, *scene.train) if camera.name == name)
    return to_uint8(render_image(load_ply(ply), load_decoder(ply.parent), camera, torch.zeros(3)))


def test_merged_model(run: tuple[Path, Scene]) -> None:
    out, scene = run
    assert main(["render", str(out)]) == 0
    folder = out / "test" / "ours_20"
    names = [camera.name for camera in scene.test]
    assert len(names) == 8
    found = (path.relative_to(folder / "renders").as_posix() for path in (folder / "renders").rglob("*.png"))
    assert sorted(found) == sorted(names)
    for name in names:
        assert torch.equal(png(folder / "gt" / name), png(scene.path / "images" / name))
        shown = png(folder / "renders" / name)
        assert torch.equal(shown, expected(out / "point_cloud/iteration_20/point_cloud.ply", scene, name))
        assert shown.float().std() > 10  # not an empty image
    record = read_json(folder / "render.json")
    assert record["anchors"] == 150 and record["complete"] and record["names"] == names
    assert record["timed_views"] == len(names) - 5
    assert record["views_per_second"] == pytest.approx(1 / record["seconds_per_view"])
    assert record["peak_memory_bytes"] > 2**26  # torch alone is larger than 64 MiB
    assert not (folder / "errors").exists() and not (out / "train").exists()


@pytest.mark.slow
def test_each_view_by_the_block_that_owns_it(run: tuple[Path, Scene]) -> None:
    out, scene = run
    assert main(["render", str(out), "--blocks"]) == 0
    folder = out / "test" / "ours_20_blocks"
    owners = [int(camera.center[0] >= 0) for camera in scene.test]  # the cut is at x = 0
    assert set(owners) == {0, 1}
    for camera, owner in zip(scene.test, owners, strict=True):
        shown = png(folder / "renders" / camera.name)
        ply = out / f"point_cloud/iteration_20/point_cloud_block{owner}.ply"
        other = out / f"point_cloud/iteration_20/point_cloud_block{1 - owner}.ply"
        assert torch.equal(shown, expected(ply, scene, camera.name))
        assert not torch.equal(shown, expected(other, scene, camera.name))
    assert read_json(folder / "render.json")["anchors"] == 2 * 150


def test_older_iteration_both_splits_and_error_maps(run: tuple[Path, Scene]) -> None:
    out, scene = run
    assert main(["render", str(out), "--iteration", "7", "--split", "both", "--errors"]) == 0
    for split, cameras in (("test", scene.test), ("train", scene.train)):
        folder = out / split / "ours_7"
        for kind in ("renders", "gt", "errors"):
            assert len(list((folder / kind).rglob("*.png"))) == len(cameras)
    name = scene.test[0].name
    model = out / "point_cloud/iteration_7/point_cloud.ply"
    assert torch.equal(png(out / "test/ours_7/renders" / name), expected(model, scene, name))


@pytest.mark.slow
def test_render_then_eval_gives_one_table(run: tuple[Path, Scene], capsys: pytest.CaptureFixture[str]) -> None:
    out, scene = run
    for options in ([], ["--blocks"]):
        assert main(["render", str(out), *options]) == 0
    capsys.readouterr()
    assert main(["eval", str(out), "--lpips", "none"]) == 0
    printed = capsys.readouterr().out
    results = read_json(out / "results.json")
    assert set(results) == {"ours_20", "ours_20_blocks"}
    for method, scores in results.items():
        assert 0 < scores["PSNR"] < 30  # random anchors against noise
        assert scores["protocol"]["views"] == len(scene.test)
        assert scores["protocol"]["anchors"] == read_json(out / "test" / method / "render.json")["anchors"]
        assert f"{scores['SSIM_cc']:.4f}" in printed
    merged, blocks = results["ours_20"], results["ours_20_blocks"]
    assert merged["protocol"]["config_sha256"] is not None
    assert printed.count("worst block") == 1  # the same views, sizes and ground truth: one table
    model = out / "point_cloud/iteration_20"
    sizes = {name: (model / name).stat().st_size for name in ("point_cloud.ply", "decoder.safetensors")}
    protocol = merged["protocol"]
    assert protocol["storage_bytes"] == sum(sizes.values())
    assert 0 < protocol["gaussians_drawn_per_view"] <= protocol["gaussians_per_view"] <= 150 * 4
    assert (protocol["seed"], protocol["n"], protocol["k"]) == (0, BLOCKS, None)  # it was not trained
    # Both are scored on the same pixels; the blocks together have all pixels that show something.
    count = {block: scores["pixels"] for block, scores in merged["blocks"].items()}
    assert count == {block: scores["pixels"] for block, scores in blocks["blocks"].items()}
    assert 0 < sum(count.values()) <= 48 * 36 * len(scene.test)
    assert merged["blocks"] != blocks["blocks"]
    assert merged["merge_gap"]["PSNR"] == merged["PSNR"] - blocks["PSNR"]
    assert merged["border"]["share"] + merged["interior"]["share"] == 1
    assert 0 < merged["border"]["share"] < 0.5


@pytest.mark.slow
def test_cells_of_another_partition_assign_the_pixels_to_blocks(run: tuple[Path, Scene], tmp_path: Path) -> None:
    out, scene = run
    assert main(["render", str(out)]) == 0
    own = png(out / "test/ours_20/renders" / scene.test[0].name)
    other = tmp_path / "other.json"
    views: list[list[str]] = [[], [], []]
    PartitionTable(AABB, (3, 1, 1), torch.eye(3, dtype=torch.float64), views, {}).save(other)
    assert main(["render", str(out), "--cells", str(other)]) == 0
    assert torch.equal(png(out / "test/ours_20/renders" / scene.test[0].name), own)
    assert main(["eval", str(out), "--lpips", "none"]) == 0
    scores = read_json(out / "results.json")["ours_20"]
    assert set(scores["blocks"]) == {"0", "1", "2"} and scores["protocol"]["n"] == BLOCKS
    assert scores["protocol"]["cells_sha256"] == PartitionTable.load(other).cells_sha256
    assert PartitionTable.load(out / "test/ours_20/cells/partition.json").dim == (3, 1, 1)

    with pytest.raises(SystemExit):
        main(["render", str(out), "--cells", str(other), "--blocks"])


@pytest.mark.slow
def test_blocks_are_scored_over_the_covered_pixels_of_the_merged_model(run: tuple[Path, Scene]) -> None:
    out, _ = run
    assert main(["render", str(out), "--covered"]) == 0
    assert main(["render", str(out), "--blocks"]) == 0
    assert main(["eval", str(out), "--lpips", "none"]) == 0
    merged, blocks = (read_json(out / "results.json")[name] for name in ("ours_20", "ours_20_blocks"))
    assert merged["covered_share"] == blocks["covered_share"] and 0.5 < merged["covered_share"] < 1
    assert merged["protocol"]["covered_sha256"] == blocks["protocol"]["covered_sha256"]
    assert merged["merge_gap"]["PSNR_covered"] == merged["PSNR_covered"] - blocks["PSNR_covered"]
    assert not (out / "test" / "ours_20_blocks" / "covered").exists()


@pytest.mark.parametrize(
    "missing, options, message",
    [
        ("point_cloud/iteration_20/point_cloud.ply", [], "run 'momentum-gs merge' first"),
        ("point_cloud/iteration_20/point_cloud_block1.ply", ["--blocks"], "point_cloud_block1.ply: missing"),
        ("config.yaml", [], "config.yaml is missing"),
        (None, ["--iteration", "8"], r"no iteration 8, found [7, 20]"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_rendered(
    run: tuple[Path, Scene],
    capsys: pytest.CaptureFixture[str],
    missing: str | None,
    options: list[str],
    message: str,
) -> None:
    out, _ = run
    if missing:
        (out / missing).unlink()
    assert main(["render", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (out / "test").exists()


@pytest.mark.slow
def test_script_renders_and_scores(run: tuple[Path, Scene]) -> None:
    out, _ = run
    script = Path(__file__).parents[1] / "scripts" / "eval.sh"
    environment = {**os.environ, "PYTHON": sys.executable, "LPIPS": "none"}
    answer = subprocess.run(["bash", str(script), str(out)], env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    rows = [line.split() for line in answer.stdout.splitlines() if line.startswith(str(out))]
    assert [row[1] for row in rows] == ["ours_20"]


def test_script_explains_itself() -> None:
    script = Path(__file__).parents[1] / "scripts" / "eval.sh"
    answer = subprocess.run(["bash", str(script)], capture_output=True, text=True)
    assert answer.returncode == 2
    assert "bash scripts/eval.sh RUN..." in answer.stdout and "set -" not in answer.stdout
