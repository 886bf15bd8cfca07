"""Windows together with other features: explicit Gaussians, corrections, depths, masks, weights, --only-blocks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scene_files import write_scene
from test_gaussians_training import GAUSSIANS
from test_tracks import NAMES, write_tracks
from tiny_run import BASE, CPU, SETTINGS, assert_same_bits, make_config, model_of, run_ranks, train, write_table
from tiny_run import InterruptAfter as Interrupt
from tiny_scene import nadir_camera, write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.schema import LossConfig, SceneConfig
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.core.window import MARGIN, RASTER, Window, window_of
from momentum_gs.data.scene import load_scene
from momentum_gs.data.views import Views
from momentum_gs.merge.blocks import merge_blocks
from momentum_gs.model.appearance import ROW_SHAPES, correct
from momentum_gs.model.splat_io import load_splats
from momentum_gs.render.score import score_views
from momentum_gs.render.view import render_image
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training
from momentum_gs.train.losses import reconstruction
from momentum_gs.train.sparse_depth import SparseDepths
from momentum_gs.train.step import StepInputs, train_step

pytestmark = pytest.mark.usefixtures("one_thread")

ON = ("blocks.windows=true", "teacher.enabled=false", "weighting.enabled=false")
SPLATS = (*GAUSSIANS, "blocks.windows=true", "gaussians.from_coarse=false", "gaussians.position_lr=[0.01,0.01]")


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"), points=400)


def a_window(camera: Camera, seed: int = 0) -> Window:
    owned = torch.rand(RASTER, RASTER, generator=torch.Generator().manual_seed(seed)) < 0.3
    owned[:9] = owned[25:] = owned[:, :5] = owned[:, 27:] = False
    window = window_of(owned, camera, CPU)
    assert window is not None
    return window


def started(config) -> Training:
    return Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU)


# What is computed for a window is that part of what is computed for the whole image.


@pytest.mark.parametrize("kind", ["affine", "bilateral"])
def test_the_correction_of_a_window_is_the_windows_part_of_the_correction(kind: str) -> None:
    window = a_window(replace(nadir_camera("a.png", 0, 0), width=101, height=70))
    image, row = torch.rand(3, 70, 101), 0.3 * torch.randn(ROW_SHAPES[kind])
    found = correct(window.crop(image), row, window)
    torch.testing.assert_close(found, window.crop(correct(image, row)), atol=1e-5, rtol=1e-5)


def test_depths_of_a_window_are_the_views_at_the_pixels_that_count(tmp_path: Path) -> None:
    write_tracks(write_scene(tmp_path, NAMES))
    depths = SparseDepths(load_scene(SceneConfig(path=str(tmp_path), test_every=0)), CPU)
    view = next(camera for camera in depths_cameras(tmp_path) if len(depths.of(camera).pixel))
    whole, maps = depths.of(view), torch.zeros(2, view.height * view.width)
    # Every third pixel has a point, so that some are in owned squares, some between them and some outside.
    at = torch.arange(0, view.height * view.width, 3)
    depths._known[view.name] = replace(whole, pixel=at, depth=at + 1.0, weight=torch.rand(len(at)) + 0.1)
    whole, window = depths.of(view), a_window(view)
    maps[0, whole.pixel], maps[1, whole.pixel] = whole.depth, whole.weight
    depth, weight = maps.view(2, view.height, view.width)
    found = depths.of(view, window)
    weight = window.crop(weight).flatten() * window.weights.flatten()
    assert torch.equal(found.weight[found.weight > 0], weight[weight > 0])
    assert torch.equal(found.pixel[found.weight > 0], weight.nonzero()[:, 0])
    assert torch.equal(found.depth, window.crop(depth).flatten()[found.pixel])
    assert 0 < int((weight > 0).sum()) < len(whole.pixel)


def depths_cameras(folder: Path) -> list[Camera]:
    return load_scene(SceneConfig(path=str(folder), test_every=0)).train


def test_ignored_pixels_of_a_window_get_no_gradient() -> None:
    window = a_window(replace(nadir_camera("a.png", 0, 0), width=96, height=70))
    image, other = torch.rand(2, 3, 70, 96)
    mask = torch.ones(1, 70, 96)
    mask[:, 20:45, 30:60] = 0
    image.requires_grad_()
    part = window.target(TargetImage(other, mask))
    terms = reconstruction(window.crop(image), part, LossConfig())
    (part.share * torch.stack(list(terms.values())).sum()).backward()
    assert image.grad is not None
    assert not image.grad[:, mask[0] == 0].any()
    inside = torch.zeros(70, 96)
    x, y, width, height = window.rectangle
    inside[y : y + height, x : x + width] = window.weights
    assert image.grad[:, (inside * mask[0]) > 0].any(dim=0).all()
    near = torch.nn.functional.max_pool2d(inside[None], 2 * MARGIN + 1, 1, MARGIN)[0] > 0
    assert not image.grad[:, ~near].any(), "beyond the reach of SSIM"


# Scores (eq. 7).


class Given(Views):
    """Views whose target images are given instead of read from files."""

    def __init__(self, targets: dict[str, TargetImage]) -> None:
        self._given = targets

    def prefetch(self, names: object) -> None:
        pass

    def target_or_skip(self, name: str, window: Window | None = None) -> TargetImage | None:
        return self._given[name] if window is None else window.target(self._given[name])


def with_noise(image: torch.Tensor, window: Window, margin: int) -> TargetImage:
    """The image with noise in all pixels farther than ``margin`` from those that count."""
    counts = torch.zeros(image.shape[1:])
    x, y, width, height = window.rectangle
    counts[y : y + height, x : x + width] = window.weights
    near = torch.nn.functional.max_pool2d(counts[None], 2 * margin + 1, 1, margin)[0] > 0
    return TargetImage(torch.where(near, image, torch.rand(image.shape)))


@pytest.mark.parametrize("source", ["measured", "running"])
def test_a_block_is_scored_on_its_pixels_amid_its_surroundings(scene_folder: Path, tmp_path: Path, source: str) -> None:
    on = ("blocks.windows=true", "teacher.enabled=false", f"weighting.source={source}")
    training = started(make_config(scene_folder, tmp_path, *on))
    round_, black = training.schedule[0], torch.zeros(3)
    state: Block = training._surroundings.activate(round_, True)[0]
    assert state.around is not None and len(state.around) > 0
    camera = training._plan.train[state.block][0]
    window = training._surroundings.window(state, camera)
    assert window is not None and window.share < 0.9
    student = training._decoders.student_of(state)
    # The render stays below 1 here, so that clamping makes no difference.
    image = render_image(state.model, student, camera, black, around=state.around)
    target = with_noise(image, window, MARGIN)

    def scored(target: TargetImage) -> tuple[float, float]:
        if source == "running":
            part = window.target(target)
            inputs = StepInputs(training.config, LocalComm(), black, lambda _: (camera, window, part))
            train_step(inputs, training._decoders, [state], (state.block,), torch.ones(4), False)
            found = state.score.take()
            assert found is not None
            return found
        scores = score_views(state.model, student, [camera], Given({camera.name: target}), black, None, state.around,
                             lambda camera: window)  # fmt: skip
        assert scores is not None
        return scores.psnr, scores.ssim

    wrong = target.image.clone()
    x, y, width, height = window.rectangle
    inner = wrong[:, y : y + height, x : x + width]
    inner[:] = torch.where(window.weights > 0, 1 - inner, inner)
    psnr, ssim = scored(target)
    assert psnr > 100 and ssim == pytest.approx(1, abs=1e-5), "noise elsewhere has no effect"
    assert scored(TargetImage(wrong))[0] < 30


@pytest.mark.slow
@pytest.mark.parametrize("source", ["measured", "running"])
def test_blocks_with_windows_are_weighted(scene_folder: Path, tmp_path: Path, source: str) -> None:
    on = ("blocks.windows=true", "teacher.enabled=false", "steps=20", "weighting.every=10")
    training = started(make_config(scene_folder, tmp_path, *on, f"weighting.source={source}"))
    training.run(Observers())
    assert training._scores.scores.isfinite().all()
    assert len(set(training._scores.weights().tolist())) > 1


# Whole runs.


@pytest.mark.slow
def test_gaussians_with_windows_resume_to_the_same_bits_and_merge_whole(scene_folder: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(make_config(scene_folder, whole, *SPLATS))
    config = make_config(scene_folder, broken, *SPLATS, "log.checkpoint_every=20")
    with pytest.raises(KeyboardInterrupt):
        started(config).run(Observers([Interrupt(47)]))
    train(config, resume=True)
    one = model_of(whole)
    assert_same_bits(model_of(broken), one)

    two = tmp_path / "two"
    assert_same_bits(run_ranks(scene_folder, two, 2, *SPLATS), one)
    (folder,) = (two / "point_cloud").iterdir()
    assert main(["merge", str(two)]) == 0
    merged = load_splats(folder / "point_cloud.ply")
    parts = [one[f"point_cloud_block{block}.position"] for block in range(4)]
    assert torch.equal(merged.position.detach(), torch.cat(parts))
    cropped = merge_blocks(folder, write_table(config))
    assert sum(cropped.dropped) > 0, "some have moved across the border"


@pytest.mark.slow
def test_corrections_work_with_windows(scene_folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    settings = (*ON, "steps=20", "optim.pose=1e-4", "appearance.model=bilateral",
                "model.background=directional")  # fmt: skip
    training = started(make_config(scene_folder, one, *settings))
    training.run(Observers())
    poses, appearance = training._corrections.poses.table, training._corrections.appearance.table
    assert poses is not None and appearance is not None
    for table in (poses, appearance):
        assert table.rows.isfinite().all() and table.rows[table.shown].any()
    assert_same_bits(run_ranks(scene_folder, two, 2, *settings), model_of(one))


@pytest.mark.slow
def test_chosen_blocks_train_on_and_the_others_stay(scene_folder: Path, tmp_path: Path) -> None:
    command = ["train", *BASE, "-s", str(scene_folder), "-m", str(tmp_path), *SETTINGS, *ON]
    write_table(make_config(scene_folder, tmp_path))
    assert main([*command, "steps=30"]) == 0
    before = model_of(tmp_path)
    assert main([*command, "steps=45", "--only-blocks", "3,1"]) == 0
    after = model_of(tmp_path, 45)
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"point_cloud_block1", "point_cloud_block3"}
    assert main(["merge", str(tmp_path)]) == 0
