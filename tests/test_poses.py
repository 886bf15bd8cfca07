"""Learned poses: their gradient, their mean (the pin), and that ranks and resume change no bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_run import (
    BASE,
    CPU,
    SETTINGS,
    Runs,
    assert_same_bits,
    make_config,
    model_of,
    run_ranks,
    train,
    write_table,
)
from tiny_scene import nadir_camera, write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import project
from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.data.colmap.model import read_cameras, read_points, write_model
from momentum_gs.data.scene import load_scene
from momentum_gs.model.poses import PoseTable, load_poses, moved, save_poses, skew
from momentum_gs.render.nudge import nudged
from momentum_gs.render.rasterize import rasterize
from momentum_gs.train.corrections.poses import NO_POSES, SharedPoses, make_poses
from momentum_gs.train.corrections.tables import make_corrections
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training

pytestmark = pytest.mark.usefixtures("one_thread")

POSES = "optim.pose=1e-3"
NAMES = ("a.png", "b.png", "c.png")
TEST = ("005.png", "010.png")
VIEW = nadir_camera("a.png", 0.3, -0.2)


def some_gaussians(n: int = 12, dtype: torch.dtype = torch.float64) -> Gaussians:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return Gaussians(
        means=(draw(n, 3) - 0.5) * torch.tensor([3.0, 2.0, 1.0], dtype=dtype),
        scales=0.1 + 0.3 * draw(n, 3),
        quats=F.normalize(draw(n, 4) - 0.5),
        opacities=0.3 + 0.6 * draw(n, 1),
        colors=draw(n, 3),
    )


def quat_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Product of quaternions in rows (w, x, y, z)."""
    real = a[:, :1] * b[:, :1] - (a[:, 1:] * b[:, 1:]).sum(1, keepdim=True)
    rest = a[:, :1] * b[:, 1:] + b[:, :1] * a[:, 1:] + torch.linalg.cross(a[:, 1:], b[:, 1:])
    return torch.cat([real, rest], 1)


def image(gaussians: Gaussians, camera: Camera) -> torch.Tensor:
    return rasterize(gaussians, camera, torch.zeros(3, dtype=gaussians.means.dtype)).image


def test_moving_the_camera_is_moving_the_gaussians_the_other_way() -> None:
    gaussians, row = some_gaussians(), torch.tensor([0.05, -0.1, 0.3, 0.2, -0.1, 0.15], dtype=torch.float64)
    turn, shift = row.split(3)
    angle = turn.norm()
    back = torch.cat([(angle / 2).cos()[None], -(angle / 2).sin() * turn / angle])[None]
    arm = gaussians.means - VIEW.center
    others = replace(
        gaussians,
        means=VIEW.center + (arm - shift) @ torch.matrix_exp(skew(turn)),
        quats=quat_product(back.expand(len(gaussians), 4), gaussians.quats),
    )
    wanted = image(others, VIEW)
    assert (wanted - image(gaussians, VIEW)).abs().max() > 0.1
    torch.testing.assert_close(image(gaussians, moved(VIEW, row)), wanted)


def test_a_camera_turns_about_its_centre_and_then_moves() -> None:
    row = torch.tensor([0.0, 0.0, 0.1, 1.0, 2.0, 3.0], dtype=torch.float64)
    found = moved(VIEW, row)
    torch.testing.assert_close(found.center, VIEW.center + row[3:])
    torch.testing.assert_close(found.rotation.T @ VIEW.rotation, torch.matrix_exp(skew(row[:3])))
    back = moved(found, -row)
    torch.testing.assert_close(back.world_view, VIEW.world_view)


@pytest.mark.parametrize("start", [[0.0] * 6, [0.02, -0.01, 0.3, 0.1, -0.1, 0.2]])
def test_the_gradient_is_that_of_central_differences(start: list[float]) -> None:
    gaussians, camera = some_gaussians(), moved(VIEW, torch.tensor(start, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, camera.height, camera.width, generator=generator, dtype=torch.float64)
    nudge = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    (image(nudged(gaussians, camera, nudge), camera) * weights).sum().backward()
    assert nudge.grad is not None
    step = 1e-6 * torch.eye(6, dtype=torch.float64)
    found = [
        ((image(gaussians, moved(camera, d)) - image(gaussians, moved(camera, -d))) * weights).sum() / 2e-6
        for d in step
    ]
    torch.testing.assert_close(nudge.grad, torch.stack(found), rtol=1e-4, atol=1e-4)


def test_zeros_change_no_bit() -> None:
    gaussians = some_gaussians(dtype=torch.float32)
    same = nudged(gaussians, VIEW, torch.zeros(6))
    assert torch.equal(same.means, gaussians.means) and torch.equal(same.quats, gaussians.quats)
    turned = moved(VIEW, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    for camera in (VIEW, turned):
        still = moved(camera, torch.zeros(6))
        assert torch.equal(still.world_view, camera.world_view)


def learner(rows: torch.Tensor | None = None) -> SharedPoses:
    config = Config()
    config = replace(config, optim=replace(config.optim, pose=0.01))
    start = torch.zeros(3, 6) if rows is None else rows
    return SharedPoses(config, PoseTable(NAMES, start, torch.zeros(3, dtype=torch.bool)), CPU, 1.0)


def step(poses: SharedPoses, wanted: dict[str, torch.Tensor]) -> None:
    """One update along given gradients, with one image for each block."""
    poses.begin_step(True, len(wanted))
    for position, (name, gradient) in enumerate(wanted.items()):
        nudge = poses.pose(replace(VIEW, name=name))[1]
        assert nudge is not None
        (nudge * gradient).sum().backward()
        poses.take_gradient(position)
    poses.finish_step()


def test_the_mean_motion_of_the_images_shown_is_zero() -> None:
    poses, generator = learner(), torch.Generator().manual_seed(1)
    step(poses, {"a.png": torch.ones(6)})
    assert not poses.table.rows.any(), "one image alone is the mean: its place is the scene's"
    for i in range(20):
        step(poses, {name: torch.randn(6, generator=generator) for name in NAMES[: 1 + i % 2]})
        assert poses.table.rows[:2].mean(0).abs().max() < 1e-8
        assert not poses.table.rows[2].any()
    assert poses.table.rows.abs().max() > 1e-3
    # A motion of the whole scene is the same for all images and is removed.
    alike = learner()
    for _ in range(3):
        step(alike, {name: torch.ones(6) for name in NAMES})
    assert alike.table.rows.abs().max() < 1e-8


def test_fixed_poses_are_used_and_take_no_gradient() -> None:
    poses = learner(torch.randn(3, 6))
    poses.begin_step(False, 1)
    camera, nudge = poses.pose(VIEW)
    assert nudge is None and poses.gradients == ()
    torch.testing.assert_close(camera.world_view, moved(VIEW, poses.table.rows[0]).world_view)


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    assert load_poses(tmp_path) is None
    table = PoseTable(("ä/1.jpg", "b.jpg"), torch.randn(2, 6), torch.tensor([True, False]))
    save_poses(tmp_path, table)
    found = load_poses(tmp_path)
    assert found is not None and found.names == table.names
    assert torch.equal(found.rows, table.rows) and torch.equal(found.shown, table.shown)
    assert found.camera(VIEW) is VIEW, "an image that it does not hold"
    save_poses(tmp_path, replace(table, rows=torch.zeros(2, 7)))
    with pytest.raises(UserError, match=r"rows of shape \(2, 7\)"):
        load_poses(tmp_path)


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_scene(tmp_path_factory.mktemp("tiny"))
    (folder / "sparse" / "0" / "test.txt").write_text("\n".join(TEST))
    return folder


@pytest.fixture(scope="module")
def runs(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(scene_folder, tmp_path_factory.mktemp("runs"))


PERTURBED = 0.02
"""Standard deviation of the errors of poses, in radians and scene units at a height of 4: one to two pixels."""


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Camera], list[Camera]]:
    """OUT of a coarse run on poses with errors, whose images overlap well; the training cameras with errors, and the
    true ones."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wrong = write_tiny_scene(tmp_path_factory.mktemp("wrong"), grid=7)
    (wrong / "sparse" / "0" / "test.txt").write_text("\n".join(TEST))
    config = make_config(wrong, tmp_path_factory.mktemp("true"))
    true = load_scene(config.scene).train
    rows = torch.randn(len(true), 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * PERTURBED
    rows = dict(zip((camera.name for camera in true), rows - rows.mean(0), strict=True))
    views, points = read_cameras(wrong / "sparse" / "0"), read_points(wrong / "sparse" / "0")
    write_model(wrong / "sparse" / "0", [moved(v, rows[v.name]) if v.name in rows else v for v in views], points)
    out = tmp_path_factory.mktemp("learnt")
    settings = [*SETTINGS, "stage=coarse", "steps=600", "optim.lr_steps=600", "optim.pose=1e-2"]
    assert main(["train", *BASE, "-s", str(wrong), "-m", str(out), *settings]) == 0
    torch.set_num_threads(threads)
    return out, load_scene(config.scene).train, true


def poses_of(out: Path) -> PoseTable:
    (folder,) = (out / "point_cloud").glob("iteration_*")
    table = load_poses(folder)
    assert table is not None
    return table


def everything(out: Path) -> dict[str, torch.Tensor]:
    table = poses_of(out)
    return model_of(out) | {"rows": table.rows, "shown": table.shown}


def pixel_errors(found: list[Camera], true: list[Camera]) -> float:
    """Root mean square, over cameras and points of the ground in view, of the error in pixels."""
    squares = []
    for camera, truth in zip(found, true, strict=True):
        x, y = torch.meshgrid(*(torch.linspace(-1.5, 1.5, 4, dtype=torch.float64),) * 2, indexing="ij")
        ground = torch.stack([x.flatten(), y.flatten(), torch.zeros(16, dtype=torch.float64)], 1)
        ground[:, :2] += truth.center[:2]
        squares.append((project(ground, camera)[0] - project(ground, truth)[0]).square().sum(1))
    return float(torch.cat(squares).mean().sqrt())


@pytest.mark.slow
def test_errors_of_poses_become_smaller(learnt: tuple[Path, list[Camera], list[Camera]]) -> None:
    out, wrong, true = learnt
    table = poses_of(out)
    before, after = pixel_errors(wrong, true), pixel_errors([table.camera(c) for c in wrong], true)
    assert before > 1
    assert after < 0.65 * before
    assert table.shown.all() and table.rows.mean(0).abs().max() < 1e-6


@pytest.mark.slow
def test_training_views_are_rendered_from_learned_poses(
    learnt: tuple[Path, list[Camera], list[Camera]],
) -> None:
    out, wrong, true = learnt
    table = poses_of(out)
    assert not set(TEST) & set(table.names), "held-out views keep their poses"
    assert main(["render", str(out), "--split", "both"]) == 0
    record = {s: json.loads((out / s / "ours_600/render.json").read_text()) for s in ("train", "test")}
    assert (record["train"]["refined_poses"], record["test"]["refined_poses"]) == (True, False)


@pytest.mark.slow
def test_blocks_start_from_the_coarse_runs_poses(
    scene_folder: Path, learnt: tuple[Path, list[Camera], list[Camera]], tmp_path: Path
) -> None:
    out = learnt[0]
    config = make_config(scene_folder, tmp_path, POSES, f"partition.coarse={out}")
    names = poses_of(out).names
    found = make_poses(config, names, CPU, 1.0, fresh=True)
    assert found.table is not None
    torch.testing.assert_close(found.table.rows, poses_of(out).rows)
    alone = make_poses(make_config(scene_folder, tmp_path, POSES), names, CPU, 1.0, fresh=True)
    assert alone.table is not None and not alone.table.rows.any()
    assert make_poses(make_config(scene_folder, tmp_path), names, CPU, 1.0, fresh=True) is NO_POSES


@pytest.mark.slow
def test_poses_in_other_coordinates_are_refused(
    scene_folder: Path, learnt: tuple[Path, list[Camera], list[Camera]], tmp_path: Path
) -> None:
    """Motions have a length, so they depend on the coordinates; corrections of colour do not."""
    for unit in ("scene.unit=2", "scene.unit=auto", "scene.offset=[1,0,0]"):
        config = make_config(scene_folder, tmp_path, POSES, unit, f"partition.coarse={learnt[0]}")
        scene = load_scene(config.scene)
        with pytest.raises(UserError, match=r"pose corrections with scene.unit=1.0, scene.offset=.*, expected"):
            make_corrections(config, scene, CPU, 1.0, fresh=True)
        other = replace(config, optim=replace(config.optim, pose=None))
        make_corrections(other, scene, CPU, 1.0, fresh=True)
    same = make_config(scene_folder, tmp_path, POSES, "scene.offset=[0,0,0]", f"partition.coarse={learnt[0]}")
    assert make_corrections(same, load_scene(same.scene), CPU, 1.0, fresh=True).poses.table is not None


GAUSSIANS = (
    *("model.primitive=gaussians", "loss.volume=0", "teacher.enabled=false", "gaussians.from_coarse=false"),
    *("blocks.boundary_finetuning=false", "blocks.offset_clamping=false", "blocks.decoder_freeze_rounds=0"),
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [(), GAUSSIANS, ("appearance.model=affine",)], ids=["anchors", "gaussians", "both"])
def test_ranks_do_not_change_model_or_poses(scene_folder: Path, tmp_path: Path, mode: tuple[str, ...]) -> None:
    overrides = [POSES, "blocks.active=3", *mode]
    train(make_config(scene_folder, tmp_path / "one", *overrides))
    run_ranks(scene_folder, tmp_path / "many", 2, *overrides)
    assert_same_bits(everything(tmp_path / "one"), everything(tmp_path / "many"))
    assert poses_of(tmp_path / "one").rows.any()


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoint", "ranks"), [(37, 1), (37, 2), (97, 1)])
def test_resume_is_bit_for_bit(scene_folder: Path, runs: Runs, tmp_path: Path, checkpoint: int, ranks: int) -> None:
    whole, parts = runs.whole(POSES), shutil.copytree(runs.interrupted(checkpoint, POSES), tmp_path / "parts")
    if ranks == 1:
        train(make_config(scene_folder, parts, POSES, f"log.checkpoint_every={checkpoint}"), resume=True)
    else:
        run_ranks(scene_folder, parts, ranks, POSES, "--resume")
    assert_same_bits(everything(whole), everything(parts))


@pytest.mark.slow
def test_poses_are_fixed_while_the_decoder_is_frozen(scene_folder: Path, runs: Runs, tmp_path: Path) -> None:
    out = shutil.copytree(runs.whole(POSES), tmp_path / "run")
    before = poses_of(out)
    config = make_config(scene_folder, out, POSES, "steps=90")
    Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU, only=[1]).run(Observers())
    after = load_poses(out / "point_cloud" / "iteration_90")
    assert after is not None and torch.equal(after.rows, before.rows)


@pytest.mark.slow
def test_off_writes_and_changes_nothing(scene_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a learning rate of zero, poses stay as given and the model is that without pose corrections."""
    train(make_config(scene_folder, tmp_path / "off"))
    monkeypatch.setattr("momentum_gs.train.corrections.poses.exponential", lambda *_: lambda _: 0.0)
    train(make_config(scene_folder, tmp_path / "still", POSES))
    assert_same_bits(model_of(tmp_path / "off"), model_of(tmp_path / "still"))
    assert not list((tmp_path / "off").rglob("poses*"))
    assert list((tmp_path / "still").rglob("poses*"))
