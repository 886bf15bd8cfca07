"""``momentum-gs run``: all stages on a tiny city, interruptions, and errors."""

import argparse
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import model_of
from tiny_scene import write_tiny_scene

import momentum_gs.cli.prepare
import momentum_gs.cli.run
import momentum_gs.eval.lpips_metric
import momentum_gs.experiments.run_time
from momentum_gs.cli import main as cli
from momentum_gs.config.run import load_run_config
from momentum_gs.core.errors import UserError
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.data.synthetic.scene import CitySettings, write_city
from momentum_gs.eval.lpips_metric import LpipsMissing
from momentum_gs.experiments import pipeline
from momentum_gs.experiments.choose import Choice
from momentum_gs.experiments.run_state import RunState
from momentum_gs.train.events import Event, RoundStarted
from momentum_gs.train.loop import Training

FAST = ["steps=30", "log.tensorboard=false", "scene.resolution=1"]
ONE_BLOCK = ["start", "doctor", "train", "render", "eval", "report"]


@pytest.fixture(autouse=True)
def no_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS is left out, so that nothing is downloaded."""

    def missing(*args: object) -> None:
        raise LpipsMissing("LPIPS left out: no weights")

    monkeypatch.setattr(momentum_gs.eval.lpips_metric, "load_lpips", missing)
    monkeypatch.setattr(momentum_gs.experiments.run_time, "load_lpips", missing)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("city") / "scene"
    write_city(folder, CitySettings(blocks_x=1, blocks_y=1, views=16, width=64, height=48))
    return folder


@pytest.fixture
def interrupted_after_each(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each command does one stage and is then interrupted as by Ctrl-C."""
    stage = pipeline.Pipeline.stage

    def once(self: pipeline.Pipeline, name: str, do: Callable[[], None]) -> None:
        over = self._state.done(name)
        stage(self, name, do)
        if not over:
            raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.Pipeline, "stage", once)
    yield


def state_of(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())


@pytest.mark.slow
def test_from_a_scene_to_a_report(city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["run", str(city), str(out), *FAST]) == 0
    printed = capsys.readouterr().out
    state = state_of(out)
    assert list(state["stages"]) == ONE_BLOCK
    assert all(stage["done"] for stage in state["stages"].values())
    assert [line.split()[-1] for line in printed.splitlines() if line.startswith("all")] == ["s"]
    for name in ("report.html", "results.json", "config.yaml", "point_cloud/iteration_30/point_cloud.ply"):
        assert (out / name).is_file(), name
    # Choices are printed with their reasons, recorded, and those that the run was trained with.
    chosen = {choice["key"]: choice["value"] for choice in state["choices"]}
    assert set(chosen) == {"model.voxel_size", "partition.blocks"}
    assert all(f"chosen   {Choice(**choice)}" in printed for choice in state["choices"])
    lines = (out / "config.yaml").read_text().splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        f"# chosen: {Choice(**choice)}" for choice in state["choices"]
    ]
    config = load_run_config(out)
    assert (config.stage, config.steps, config.model.voxel_size) == ("coarse", 30, chosen["model.voxel_size"])
    assert config.scene.unit != "auto"

    # The same command has nothing left to do; another is refused.
    before = (out / "report.html").stat().st_mtime_ns
    assert cli.main(["run", str(city), str(out), *FAST]) == 0
    assert (out / "report.html").stat().st_mtime_ns == before
    capsys.readouterr()
    assert cli.main(["run", str(city), str(out), *FAST, "--quality", "draft"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "quality: 'normal' there, 'draft' now" in error


@pytest.mark.slow
@pytest.mark.usefixtures("interrupted_after_each", "one_thread")
def test_interrupted_after_every_stage(city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for done in range(1, len(ONE_BLOCK)):
        assert cli.main(["run", str(city), str(out), *FAST]) == 130
        assert list(state_of(out)["stages"]) == ONE_BLOCK[: done + 1]
        assert "the same command continues the run" in capsys.readouterr().err
    assert cli.main(["run", str(city), str(out), *FAST]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_interrupted_in_training(city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main(["run", str(city), str(whole), *FAST]) == 0

    step = Training._tell

    def interrupt(self: Training, *args: object) -> None:
        step(self, *args)  # type: ignore[arg-type]
        if self._step == 10:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_tell", interrupt)
        assert cli.main(["run", str(city), str(parts), *FAST]) == 130
    assert not state_of(parts)["stages"]["train"]["done"]
    assert cli.main(["run", str(city), str(parts), *FAST]) == 0
    ours, theirs = model_of(parts), model_of(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_images_are_prepared_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """'prepare' has its own tests; here it only has to run first, and once."""
    images, out, words = tmp_path / "images", tmp_path / "out", []
    write_tiny_scene(tmp_path / "source")
    (tmp_path / "source" / "images").rename(images)

    def prepare(args: argparse.Namespace) -> None:
        words.append((args.words, args.resolution))
        write_tiny_scene(Path(args.words[1]))

    monkeypatch.setattr(momentum_gs.cli.prepare, "run", prepare)
    for _ in range(2):
        assert cli.main(["run", str(images), str(out), "steps=30", "log.tensorboard=false"]) == 0
    assert words == [([str(images), str(out / "scene")], -1.0)]
    assert list(state_of(out)["stages"])[:3] == ["start", "prepare", "doctor"]
    assert load_run_config(out).scene.path == str(out / "scene")


@pytest.mark.slow
def test_more_blocks_are_cut_trained_and_merged(
    city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ``--view`` shows the training of the blocks, not that of the coarse model; each passes over the pixels as
    often as asked for."""
    out, shown = tmp_path / "out", []

    class Viewer:
        def __init__(self, folder: Path, port: int) -> None:
            assert (folder, port) == (out, 8080)

        def on_event(self, event: Event) -> None:
            if isinstance(event, RoundStarted):
                shown.append(state_of(out)["stages"].keys())

        def close(self) -> None:
            shown.append("closed")

    monkeypatch.setattr(momentum_gs.cli.run, "watchers", lambda folder, port: [Viewer(folder, port)])
    settings = [*FAST, "steps=2 passes", "partition.blocks=2", "blocks.active=1", "blocks.interval=5"]
    assert cli.main(["run", str(city), str(out), "--view", "8080", *settings]) == 0
    config = load_run_config(out)
    assert config.blocks.windows and config.growth.until == round(0.8 * config.steps)
    asked = 2 * len(load_scene(config.scene).train) * 64 * 48
    assert json.loads((out / "coarse" / "train.json").read_text())["pixels"] == asked
    owned = PartitionTable.load(out / "partition.json").views_per_step(windows=True) * config.steps * 64 * 48
    assert owned == pytest.approx(asked, rel=0.1), "up to a step of both blocks"
    # Pixels beside the owned ones count, too, but not all; the last steps of a block are a part of a pass.
    assert 0.9 * owned < json.loads((out / "train.json").read_text())["pixels"] < 2 * config.steps * 64 * 48
    assert "blocks.windows" in {choice["key"] for choice in state_of(out)["choices"]}
    stages = ["start", "doctor", "coarse", "partition", "blocks", "merge", "render", "eval", "report"]
    assert shown.pop() == "closed" and shown and all("partition" in before for before in shown)
    assert list(state_of(out)["stages"]) == stages
    assert (out / "partition.json").is_file()
    assert (out / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_time_limit_sets_the_number_of_steps(
    blocks: int, city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "MIN_STEPS", 60)
    out = tmp_path / "out"
    settings = [f"partition.blocks={blocks}", "blocks.interval=50", "log.tensorboard=false"]
    assert cli.main(["run", str(city), str(out), "--minutes", "0.01", *settings]) == 0
    assert load_run_config(out).steps == 60
    assert "time allows" in next(c["reason"] for c in state_of(out)["choices"] if c["key"] == "steps")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{tmp}/nothing", "{tmp}/out"], "is not a folder"),
        (["{tmp}", "{tmp}/out"], "holds neither images"),
        (["{city}", "{city}"], "holds no run.json"),
        (["{city}/images", "{city}/images/out"], "choose a folder outside of it"),
        (["{city}", "{tmp}/out", "stage=coarse"], "stage is given"),
        (["{city}", "{tmp}/out", "--minutes", "0"], "expected a time above 0"),
        (["{city}", "{tmp}/out", "--minutes", "5", "steps=100"], "each says how long"),
        (["{city}", "{tmp}/out", "--minutes", "5", "steps=2 passes"], "each says how long"),
        (["{city}", "{tmp}/out", "growth.intervall=3"], "did you mean 'growth.interval'"),
    ],
)
def test_errors_are_one_line(
    argv: list[str], message: str, city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note.txt").write_text("no image")
    assert cli.main(["run", *(word.format(tmp=tmp_path, city=city) for word in argv)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_scene_with_errors_stops_at_the_stage_doctor(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = tmp_path / "scene"
    write_tiny_scene(scene)
    (scene / "images" / "003.png").unlink()
    assert cli.main(["run", str(scene), str(tmp_path / "out"), *FAST]) == 2
    captured = capsys.readouterr()
    assert "003.png" in captured.out
    assert "the doctor found 1 errors" in captured.err
    # When the scene is repaired, the same command continues the run.
    write_tiny_scene(scene)
    assert cli.main(["run", str(scene), str(tmp_path / "out"), *FAST]) == 0


@pytest.mark.slow
def test_commands_choose_settings_if_no_file_is_given(
    city: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "-s", str(city), "-m", str(tmp_path / "out"), "stage=coarse", "steps=4", FAST[1]]
    assert cli.main(command) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("chosen")]
    assert [line.split()[1] for line in printed] == ["scene.resolution", "model.voxel_size"]
    config = load_run_config(tmp_path / "out")
    assert (config.scene.resolution, config.optim.lr_steps, config.optim.lr_scale) == (1, 4, 5)
    # A run that is resumed keeps its choices and their reasons.
    assert cli.main([*command, "--resume"]) == 0
    assert "chosen" not in capsys.readouterr().out
    assert load_run_config(tmp_path / "out") == config
    assert (tmp_path / "out" / "config.yaml").read_text().count("# chosen: ") == 2


def test_the_doctor_names_all_that_is_wrong_where_nothing_can_be_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    for name in ("003.png", "004.png"):
        (scene / "images" / name).unlink()
    assert cli.main(["doctor", str(scene), "--quick"]) == 1
    printed = capsys.readouterr().out
    assert "missing 2 of 16, first: 003.png" in printed


def test_stages_count_their_time_over_all_attempts(tmp_path: Path) -> None:
    now = [0.0]
    state = RunState.open(tmp_path / "out", {"source": "a"}, clock=lambda: now[0])
    with pytest.raises(ZeroDivisionError), state.stage("train"):
        now[0] += 3
        raise ZeroDivisionError
    again = RunState.open(tmp_path / "out", {"source": "a"}, clock=lambda: now[0])
    assert (again.stages["train"].seconds, again.done("train")) == (3, False)
    with again.stage("train") as note:
        now[0] += 1
        assert note() == 4
        now[0] += 2
    assert (again.seconds, again.done("train")) == (6, True)
    assert "100%" in again.table()


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        RunState.open(tmp_path, {})
