"""The Python interface: it gives what the command line gives, and its documented example runs."""

import contextlib
import io
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import CPU, make_config, train, write_table
from tiny_scene import write_tiny_scene

import momentum_gs as mgs
from momentum_gs.cli.main import main
from momentum_gs.config.load import dump_config
from momentum_gs.core.comm import LocalComm
from momentum_gs.data.scene import load_scene
from momentum_gs.eval.results import read_json
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
WEIGHTS = Path(os.environ.get("MOMENTUM_GS_SHARED", ROOT.parent / "shared")) / "weights"
GAUSSIANS = [
    *("model.primitive=gaussians", "loss.volume=0", "teacher.enabled=false", "weighting.enabled=false"),
    *("blocks.boundary_finetuning=false", "blocks.offset_clamping=false", "blocks.decoder_freeze_rounds=0"),
]
CORRECTED = ["appearance.model=affine", "optim.pose=0.001"]


def examples() -> list[str]:
    """The code blocks of docs/python.md."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four blocks of the tiny scene in moved coordinates, with learned colours and poses; merged, rendered, scored."""
    folder = tmp_path_factory.mktemp("api")
    scene = write_tiny_scene(folder / "scene")
    config = make_config(scene, folder / "out", "scene.offset=1,2,0", "device=cpu", *CORRECTED)
    write_table(config)
    train(config)
    out = folder / "out"
    (out / "config.yaml").write_text(dump_config(config))
    assert main(["merge", str(out)]) == 0
    assert main(["render", str(out), "--split", "both"]) == 0
    for split in ("test", "train"):
        assert main(["eval", str(out), "--split", split, "--lpips", "none"]) == 0
    return out


def test_the_root_loads_nothing_until_a_name_is_used() -> None:
    code = (
        "import sys, momentum_gs as mgs\n"
        "assert {'load_model', '__version__'} <= set(dir(mgs)) and 'torch' not in sys.modules, 'torch was imported'\n"
        "assert mgs.load_model.__module__ == 'momentum_gs.api' and 'torch' in sys.modules\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_name_is_there_and_hides_no_package() -> None:
    for name in mgs.__all__:
        assert getattr(mgs, name).__doc__, name
    # Importing a package writes its name into the root, over whatever is there.
    assert not {module.name for module in pkgutil.iter_modules(mgs.__path__)} & set(mgs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = mgs.load_modle


@pytest.mark.parametrize("split", ["test", "train"])
def test_scores_are_those_of_the_command_line(run: Path, split: str) -> None:
    scene, model = mgs.load_scene(run=run), mgs.load_model(run, device="cpu")
    per_view = read_json(run / ("per_view.json" if split == "test" else "per_view_train.json"))["ours_60"]
    cameras = getattr(scene, split)
    for camera in (cameras[0], cameras[-1]):
        image = mgs.render_image(model, camera, as_trained=split == "train")
        scores = mgs.score_image(image, mgs.load_image(scene, camera))
        assert scores == {metric: per_view[metric][camera.name] for metric in scores}
        assert {"PSNR", "SSIM", "PSNR_cc", "SSIM_cc"} <= scores.keys()


def test_learned_corrections_are_those_of_training_views_alone(run: Path) -> None:
    scene, model = mgs.load_scene(run=run), mgs.load_model(run, device="cpu")
    assert model.appearance is not None and model.poses is not None

    def changed(camera: mgs.Camera) -> bool:
        return not torch.equal(mgs.render_image(model, camera), mgs.render_image(model, camera, as_trained=True))

    assert changed(scene.train[0])
    assert not changed(scene.test[0])


def test_the_coordinates_are_those_of_the_run(run: Path) -> None:
    ours, own = mgs.load_scene(run=run), mgs.load_scene(run.parent / "scene", resolution=1)
    shift = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(ours.test[0].center, own.test[0].center - shift)
    halves = mgs.load_scene(run=run, resolution=2).test[0]
    assert (halves.width, halves.height) == (ours.test[0].width // 2, ours.test[0].height // 2)


def test_a_scene_that_moved(run: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run.parent / "scene", tmp_path / "moved"))
    scene = mgs.load_scene(moved, run=run)
    assert scene.path == moved and scene.test[0].name == mgs.load_scene(run=run).test[0].name


def test_a_block_has_what_the_merge_keeps_of_it(run: Path) -> None:
    blocks = [mgs.load_model(run, block=block, device="cpu") for block in range(4)]
    merged = mgs.load_model(run, device="cpu")
    assert 0 < len(merged) <= sum(len(block) for block in blocks)
    rows = {tuple(row) for block in blocks for row in block.primitives.position.tolist()}
    assert {tuple(row) for row in merged.primitives.position.tolist()} <= rows


def test_a_file_alone_is_rendered_as_in_its_run(run: Path) -> None:
    scene, model = mgs.load_scene(run=run), mgs.load_model(run, device="cpu")
    alone = mgs.load_model(model.file, device="cpu")
    assert torch.equal(mgs.render_image(alone, scene.test[0]), mgs.render_image(model, scene.test[0]))


def test_explicit_gaussians(tmp_path: Path) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    config = make_config(scene, tmp_path / "out", "stage=coarse", "steps=5", "device=cpu", *GAUSSIANS)
    Training(config, load_scene(config.scene), None, LocalComm(), CPU).run(Observers())
    (tmp_path / "out" / "config.yaml").write_text(dump_config(config))
    model = mgs.load_model(tmp_path / "out", device="cpu")
    assert isinstance(model.primitives, mgs.Splats) and len(model) > 0
    camera = mgs.load_scene(run=tmp_path / "out").test[0]
    image = mgs.render_image(model, camera.resized(20, 10))
    assert image.shape == (3, 10, 20) and 0 <= float(image.min()) < float(image.max()) <= 1


def test_errors_say_what_to_do(run: Path, tmp_path: Path) -> None:
    scene = mgs.load_scene(run=run)
    with pytest.raises(mgs.UserError, match="neither path nor run"):
        mgs.load_scene()
    with pytest.raises(mgs.UserError, match="load_scene: unknown setting 'scene.resolutoin'"):
        mgs.load_scene(run=run, resolutoin=2)
    with pytest.raises(mgs.UserError, match="found 4 blocks"):
        mgs.load_model(run, block=4)
    with pytest.raises(mgs.UserError, match="no trained model"):
        mgs.load_model(tmp_path)
    with pytest.raises(mgs.UserError, match="expected a view of"):
        mgs.load_image(scene, replace(scene.test[0], name="other"))
    with pytest.raises(mgs.UserError, match="the image is 24x18, expected 48x36"):
        mgs.score_image(torch.zeros(3, 18, 24), mgs.TargetImage(torch.zeros(3, 36, 48)))


def test_the_documented_example_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "demo").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(examples()[0], "docs/python.md", "exec"), {})
    assert re.fullmatch(r"\S+\.png \d+\.\d\d dB, SSIM \d\.\d{4}\n", printed.getvalue().splitlines(True)[0])
    assert len(printed.getvalue().splitlines()) == len(mgs.load_scene(run=run).test) + 1


def test_every_documented_name_is_there() -> None:
    used = set(re.findall(r"\bmgs\.(\w+)", (ROOT / "docs" / "python.md").read_text()))
    assert used <= set(mgs.__all__)
    assert set(mgs.__all__) - {"Anchors", "Splats", "Lpips", "TargetImage", "Scene", "Camera", "TrainedModel"} <= used


@pytest.mark.skipif(
    not (WEIGHTS / "squeezenet1_1-b8a52dc0.pth").exists(),
    reason="no squeezenet1_1-b8a52dc0.pth below MOMENTUM_GS_SHARED or ../shared (weights/)",
)
def test_lpips_is_added(run: Path) -> None:
    scene, model = mgs.load_scene(run=run), mgs.load_model(run, device="cpu")
    lpips = mgs.load_lpips("squeeze", weights=WEIGHTS, device="cpu")
    camera = scene.test[0].resized(96, 72)  # The backbone takes no smaller images.
    image, target = mgs.render_image(model, camera), mgs.load_image(scene, camera)
    assert mgs.score_image(image, target, lpips)["LPIPS_squeeze"] > 0
    assert mgs.score_image(target.image, target, lpips)["LPIPS_squeeze"] == 0
