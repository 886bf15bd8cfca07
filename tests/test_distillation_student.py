"""Students: pseudo-labels of several teachers, pruning by importance, resume, ranks, errors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from splat_scene import random_splats
from test_gaussians_training import GAUSSIANS
from tiny_run import CPU, SETTINGS, assert_same_bits, interrupt, make_config, model_of, run_ranks, train, write_table
from tiny_scene import nadir_camera, write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.load import dump_config, load_config
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import pixel_directions
from momentum_gs.core.image import to_uint8
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.eval.results import read_json
from momentum_gs.model.background import Background
from momentum_gs.model.io import BACKGROUND_FILE, load_model, model_file, model_folder, save_background
from momentum_gs.model.splat_io import load_splats, save_splats
from momentum_gs.model.splats import Harmonics
from momentum_gs.render.view import background_of, decode_view, draw, learned_background, render_view
from momentum_gs.train.blocks.splat_block import SplatBlock
from momentum_gs.train.distillation.teachers import PseudoLabels, Teacher, load_teachers, mean_render
from momentum_gs.train.growth.importance import importance, most_important, sample_by_importance
from momentum_gs.train.optim import LAST_RATE

pytestmark = pytest.mark.usefixtures("one_thread")

TEACHER = (*GAUSSIANS, "gaussians.from_coarse=false", "gaussians.reset_every=0", "steps=30", "gaussians.until=20")
STUDENT = (
    *TEACHER, "steps=40", "gaussians.until=20", "distill.gaussians=30%", "distill.prune_at=20", "distill.keep_at=30",
    "distill.structure_every=3", "distill.grid=16",
)  # fmt: skip


def uniform(level: int, index: torch.Tensor) -> torch.Tensor:
    return keyed_uniform(index, "test")


def test_importance_is_the_coverage_of_the_images() -> None:
    splats, cameras = random_splats(60), [nadir_camera("a.png", 0, 0), nadir_camera("b.png", 1, 0.5)]
    weight = importance(splats, Harmonics(3), cameras)
    with torch.no_grad():
        alphas = [draw(decode_view(splats, Harmonics(3), c).gaussians, c, torch.zeros(3)).alpha for c in cameras]
    assert float(weight.sum()) == pytest.approx(float(sum(alpha.sum() for alpha in alphas)), rel=1e-4)
    half = torch.arange(60) < 30
    hidden = importance(splats.subset(half), Harmonics(3), cameras, splats.subset(~half))
    assert torch.allclose(hidden, weight[:30], rtol=1e-4, atol=1e-4), "those around hide, but are not weighed"


def test_sampling_is_in_proportion_to_importance_and_never_takes_what_has_none() -> None:
    weight = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0])
    draws = 1000
    taken = torch.zeros(5)
    for seed in range(draws):
        rows = sample_by_importance(weight, 1, lambda level, index, s=seed: keyed_uniform(index, s))
        assert len(rows) == 1
        taken[rows] += 1
    assert torch.allclose(taken / draws, weight / weight.sum(), atol=0.05)
    assert sample_by_importance(weight, 10, uniform).tolist() == [1, 2, 3, 4]
    assert len(sample_by_importance(weight, 0, uniform)) == 0
    # The draw of a row depends on its number alone.
    many = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 0.1
    rows = sample_by_importance(many, 300, uniform)
    assert len(rows) == 300 == len(rows.unique()) and bool((rows.diff() > 0).all())
    assert float(many[rows].mean()) > float(many.mean())


def test_the_most_important_rows_have_the_share_and_no_more_than_needed() -> None:
    weight = torch.tensor([1.0, 5.0, 0.0, 3.0, 1.0])
    assert most_important(weight, 0.8).tolist() == [False, True, False, True, False]
    assert most_important(weight, 0.81).sum() == 3
    assert most_important(weight, 1.0).tolist() == [True, True, False, True, True]


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"), points=400)


@pytest.fixture(scope="module")
def teachers(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A teacher of Gaussians and one of anchors, trained and merged as the commands do it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folders = []
    for name, settings in (("gaussians", TEACHER), ("anchors", ("steps=30", "model.background=constant"))):
        out = tmp_path_factory.mktemp(name)
        write_table(make_config(scene_folder, out))
        words = [*SETTINGS, *settings]
        file = out / "given.yaml"
        file.write_text(dump_config(make_config(scene_folder, out, *words)))
        assert main(["train", "-c", str(file)]) == 0
        assert main(["merge", str(out)]) == 0
        folders.append(out)
    torch.set_num_threads(threads)
    return folders


def student(scene: Path, out: Path, teachers: list[Path], *overrides: str) -> Path:
    named = "distill.teachers=[" + ",".join(map(str, teachers)) + "]"
    train(make_config(scene, out, *STUDENT, named, *overrides))
    return out


@pytest.fixture(scope="module")
def whole(scene_folder: Path, teachers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = student(scene_folder, tmp_path_factory.mktemp("student"), teachers)
    torch.set_num_threads(threads)
    return out


def loaded(scene_folder: Path, teachers: list[Path]) -> tuple[list[Teacher], list[Camera]]:
    scene = load_scene(make_config(scene_folder, scene_folder).scene)
    config = scene.frame.recorded(make_config(scene_folder, scene_folder).scene)
    return load_teachers([str(path) for path in teachers], scene, config, CPU), scene.train


@pytest.mark.slow
def test_a_label_is_the_mean_of_all_teachers_whether_kept_or_not(
    scene_folder: Path, teachers: list[Path], tmp_path: Path
) -> None:
    found, cameras = loaded(scene_folder, teachers)
    one = to_uint8(torch.zeros(3, cameras[0].height, cameras[0].width)).nbytes
    kept = PseudoLabels(found, tmp_path / "kept" / "rank0", 2 * one)
    anew = PseudoLabels(found, tmp_path / "anew" / "rank0", 0)
    for camera in (*cameras[:4], *cameras[:4]):
        label = kept.image(camera)
        assert torch.equal(label, anew.image(camera))
        mean = (found[0].render(camera) + found[1].render(camera)) / 2
        assert float((label - mean).abs().max()) <= 0.5 / 255 + 1e-6
        assert torch.allclose(mean_render(found, camera), mean)
    assert len(list((tmp_path / "kept" / "rank0").iterdir())) == 2, "no more than the bound allows"
    assert not (tmp_path / "anew").exists()
    kept.close()
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_the_number_of_gaussians_is_shared_out_and_kept(scene_folder: Path, teachers: list[Path], whole: Path) -> None:
    first = len(load_splats(teachers[0] / "point_cloud/iteration_30/point_cloud.ply"))
    table = write_table(make_config(scene_folder, whole))
    inside = 0
    for block in range(4):
        splats = load_splats(whole / f"point_cloud/iteration_40/point_cloud_block{block}.ply")
        inside += int((table.cell_of(splats.position.detach().double()) == block).sum())
    assert 0.2 * first < inside <= 0.3 * first
    assert not (whole / "labels").exists()


@pytest.mark.slow
def test_a_resumed_student_is_bit_for_bit_the_uninterrupted_one(
    scene_folder: Path, teachers: list[Path], whole: Path, tmp_path: Path
) -> None:
    named = "distill.teachers=[" + ",".join(map(str, teachers)) + "]"
    config = make_config(scene_folder, tmp_path, *STUDENT, named, "log.checkpoint_every=25")
    interrupt(config, 33)
    train(replace(config, distill=replace(config.distill, labels_gb=0.0)), resume=True)
    assert_same_bits(model_of(tmp_path), model_of(whole))


@pytest.mark.slow
def test_ranks_do_not_change_a_student(
    scene_folder: Path, teachers: list[Path], whole: Path, tmp_path: Path
) -> None:
    named = "distill.teachers=[" + ",".join(map(str, teachers)) + "]"
    assert_same_bits(run_ranks(scene_folder, tmp_path, 2, *STUDENT, named), model_of(whole))


@pytest.mark.slow
def test_each_part_changes_the_student(scene_folder: Path, teachers: list[Path], whole: Path, tmp_path: Path) -> None:
    name = "point_cloud_block0.sh_dc"
    for without in ("distill.lambda_kd=0", "distill.structure=0", "distill.counts=marginals", "distill.pick=most"):
        other = model_of(student(scene_folder, tmp_path / without, teachers, without))[name]
        mine = model_of(whole)[name]
        assert other.shape != mine.shape or not torch.equal(other, mine), without


@pytest.mark.slow
def test_windows_give_every_gaussian_to_one_block(scene_folder: Path, teachers: list[Path], tmp_path: Path) -> None:
    out = student(scene_folder, tmp_path, teachers, "blocks.windows=true")
    assert all(bool(row.isfinite().all()) and len(row) for row in model_of(out).values())


@pytest.mark.slow
def test_teachers_that_do_not_fit_are_refused_in_one_line(
    scene_folder: Path, teachers: list[Path], tmp_path: Path
) -> None:
    def refusal(*overrides: str, of: list[Path] = teachers, scene: Path = scene_folder) -> str:
        with pytest.raises(UserError) as caught:
            student(scene, tmp_path / "refused", of, *overrides)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "other held-out views" in refusal("scene.test_every=5")
    assert "pixels there, expected 24x18" in refusal("scene.resolution=2")
    assert "scene.unit" in refusal("scene.unit=2")
    other = write_tiny_scene(tmp_path / "other", grid=5, points=100)
    assert "another scene (16 images, expected 25" in refusal(scene=other)
    assert "expected at most the" in refusal("distill.gaussians=1M")
    assert "there are no teachers" in refusal(of=[])
    unmerged = tmp_path / "unmerged"
    train(make_config(scene_folder, unmerged, *TEACHER))
    (unmerged / "config.yaml").write_text(dump_config(make_config(scene_folder, unmerged, *TEACHER)))
    assert "not merged yet" in refusal(of=[unmerged])
    assert "expected the output folder" in refusal(of=[tmp_path / "nothing"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.gaussians=many"], "a number such as"),
        (["distill.gaussians=0"], "a number such as"),
        (["distill.teachers=[a]", "model.primitive=anchors"], "gaussians with distill.teachers"),
        (["distill.gaussians=1k", "model.primitive=gaussians", "gaussians.until=16000"], "gaussians.until"),
        (["distill.keep=0"], "a share in"),
        (["distill.pick=merge"], "sample or most"),
    ],
)
def test_settings_that_make_no_sense_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, overrides)


def test_numbers_of_gaussians_in_all_spellings() -> None:
    for text, number in (("500000", 500_000), ("0.5M", 500_000), ("12k", 12_000), ("20%", 2000), ("2.5%", 250)):
        config = load_config(None, ["distill.teachers=[a]", f"distill.gaussians={text}", "model.primitive=gaussians"])
        assert config.distill.count(10_000) == number
    assert load_config(None).distill.count(7) is None


def test_a_learned_background_is_behind_splats_wherever_they_are_read(tmp_path: Path) -> None:
    splats, view, background = random_splats(30), nadir_camera("a.png", 0, 0), Background(2)
    torch.nn.init.normal_(background.sh, generator=torch.Generator().manual_seed(0))
    save_splats(tmp_path / "point_cloud.ply", splats)
    assert learned_background(load_model(tmp_path / "point_cloud.ply")[1], view, torch.zeros(3)) is None
    save_background(tmp_path, background)
    model, harmonics = load_model(tmp_path / "point_cloud.ply")
    with torch.no_grad():
        found = render_view(model, harmonics, view, torch.zeros(3)).output
        black = draw(decode_view(model, harmonics, view).gaussians, view, torch.zeros(3)).image
        behind = background(pixel_directions(view, torch.zeros(3))).T.view_as(black)
        torch.testing.assert_close(found.image, black + (1 - found.alpha) * behind)
    (tmp_path / BACKGROUND_FILE).write_bytes(b"damaged")
    with pytest.raises(UserError, match="not a learned background"):
        load_model(tmp_path / "point_cloud.ply")


def test_all_rates_fall_where_a_student_starts_from_its_teacher() -> None:
    def rates(step: int, *overrides: str) -> dict[str, float]:
        config = load_config(["distill/student"], ["steps=100", "distill.teachers=[a]", *overrides])
        block = SplatBlock.from_splats(0, random_splats(3), [nadir_camera("a.png", 0, 0)], config, CPU)
        block.step = step
        block.set_rates(config)
        return {group["name"]: group["lr"] for group in block.optimizer.param_groups}

    points, teacher = rates(100), rates(100, "distill.start=teacher")
    assert teacher == pytest.approx({name: LAST_RATE * rate for name, rate in points.items()})
    assert rates(0, "distill.start=teacher") == rates(0)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["points", "teacher"])
def test_the_command_makes_a_run_like_any_other_and_continues(
    teachers: list[Path], tmp_path: Path, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the anchors' run first: its settings are the student's, and its partition unless another is asked for."""
    out = tmp_path / "student"
    words = ["distill", str(teachers[1]), str(teachers[0]), "-m", str(out), "--gaussians", "300", "steps=20"]
    other = ["-c", "distill/student"] if start == "points" else ["partition.blocks=1", "partition.dim=null"]
    words += ["gaussians.sh_degree=1", *other]
    assert main(words) == 0
    assert (PartitionTable.load(out / "partition.json").n > 1) == (start == "points")
    results = read_json(out / "results.json")["ours_20"]
    assert 0 < results["protocol"]["gaussians"] <= 300 and results["PSNR"] > 5
    assert (out / "report.html").is_file() and (out / "partition.json").is_file()
    scores = read_json(out / "teachers.json")
    assert len(scores["teachers"]) == 2 and scores["fused"]["PSNR"] > 5
    background, learned = (background_of(load_model(model_file(model_folder(run)))[1]) for run in (out, teachers[1]))
    assert background is not None and learned is not None and torch.equal(background.sh, learned.sh)
    config = load_config(out / "config.yaml")
    assert config.distill.teachers == (str(teachers[1]), str(teachers[0])) and config.model.primitive == "gaussians"
    capsys.readouterr()
    assert main(words) == 0
    assert "train: done before" in capsys.readouterr().out
    assert main([*words, "seed=1"]) == 2, "another command"
    assert main(["export", str(out), "-o", str(out / "student.ply")]) == 0


def test_the_command_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "steps=3", "-m", str(tmp_path / "out")]) == 2
    assert "no RUN is given" in capsys.readouterr().err
