"""Every shipped sweep runs on a tiny scene, and a sweep that is killed during training continues."""

import argparse
import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import yaml
from tiny_run import SETTINGS
from tiny_scene import write_tiny_scene

from momentum_gs.cli import main as cli
from momentum_gs.cli import sweep as command
from momentum_gs.config.sweep import load_sweep
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.experiments import runner as sweep_run
from momentum_gs.experiments.plan import Request, n_blocks, plan_rows, run_folder

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
SMOKE = [
    *(s for s in SETTINGS if not s.startswith(("steps", "blocks.", "partition."))),
    "steps=2", "blocks.interval=1", "partition.assign=visibility", "partition.min_views=1", "partition.min_points=1",
]  # fmt: skip


def request(path: Path, *words: str) -> Request:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.request_of(parser.parse_intermixed_args([str(path), "-s", "scene", "-m", "out", *words]))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "config",
    ["demo", *(pytest.param(name, marks=pytest.mark.slow)
               for name in ("caliterra", "ablations/city", "ablations/caliterra", "scenes/building"))],
)  # fmt: skip
def test_every_row_is_a_different_experiment_with_equal_steps(path: Path, config: str) -> None:
    asked = request(path, "-c", str(ROOT / f"configs/{config}.yaml"))
    sweep = load_sweep(path)
    rows = {name: configs[0] for name, configs in plan_rows(asked, replace(sweep, seeds=(0,))).items()}
    assert len({rows[row.name].steps / row.stretch for row in sweep.rows}) == 1
    for c in rows.values():
        assert c.blocks.active == "all" or isinstance(n := n_blocks(c), int) and c.blocks.active <= n
    assert len({run_folder(Path("out"), c) for c in rows.values()}) == len(rows)


@pytest.mark.slow
def test_the_rows_of_the_paper_train_as_the_paper_does() -> None:
    """Without our additions; the row of the full method is one run that all tables of eight blocks share."""
    full = set()
    for path in SWEEPS:
        sweep = load_sweep(path)
        plan = plan_rows(request(path), replace(sweep, seeds=(0,)))
        for row in sweep.rows:
            config = plan[row.name][0]
            if row.paper or row.name == sweep.reference:
                b = config.blocks
                assert not b.offset_clamping and not b.boundary_finetuning and b.decoder_freeze_rounds == 0
                assert config.teacher.detach
            if row.name == sweep.reference and row.mode is not None and row.mode.stem == "full":
                full.add(run_folder(Path("out"), config))
    assert len(full) == 1


class InThisProcess(subprocess.Popen[bytes]):
    """Runs a command in this process: starting Python for each of 200 commands would take longer than their work."""

    def __init__(self, command: Sequence[str], *, stdout: IO[str], **_: object) -> None:
        assert list(command[1:3]) == ["-m", "momentum_gs"]
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
            self.returncode = cli.main(list(command[3:]))

    def poll(self) -> int:
        return self.returncode


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(Popen=InThisProcess, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(sweep_run, "subprocess", here)
    monkeypatch.setattr(sweep_run, "POLL_SECONDS", 0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A scene, and the folder of all its sweeps: they share their runs as those of a real scene do."""
    return write_tiny_scene(tmp_path_factory.mktemp("scene")), tmp_path_factory.mktemp("out")


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_row_runs_small(path: Path, tiny: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scene, out = tiny
    in_this_process(monkeypatch)
    rows = load_sweep(path).rows
    own = {setting.partition("=")[0] for row in rows for setting in row.settings}
    small = [setting for setting in SMOKE if setting.partition("=")[0] not in own]
    words = ["sweep", str(path), "-s", str(scene), "-m", str(out), "--lpips", "none", "--seeds", "0", *small]
    assert cli.main(words) == 0
    table = list(csv.DictReader((out / f"{path.stem}.csv").read_text().splitlines()))
    assert [row["row"] for row in table] == [row.name for row in rows]
    # Two steps give a grey image, but all scores are finite, and every row has a score of its worst block.
    assert all(math.isfinite(float(row[f"{key}_mean"])) for row in table for key in ("PSNR", "worst_block_PSNR"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_all_rows_are_scored_in_the_cells_of_the_reference(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that two sweeps share is trained once, and rendered again with the cells of the other's reference."""
    scene, _ = tiny
    in_this_process(monkeypatch)
    rows = [{"name": "two", "set": ["partition.dim=[2,1,1]"]}, {"name": "one", "mode": "single"}]
    common = {"set": ["blocks.active=1"], "rows": rows, "seeds": [0]}
    three = {"name": "three", "set": ["partition.dim=[1,3,1]"]}
    (tmp_path / "first.yaml").write_text(yaml.safe_dump({**common, "reference": "one"}))
    (tmp_path / "second.yaml").write_text(yaml.safe_dump({**common, "rows": [three, *rows]}))

    def sweep(name: str, *words: str) -> list[dict[str, str]]:
        words = ("sweep", str(tmp_path / name), "-s", str(scene), "-m", str(tmp_path), "--lpips", "none", *words)
        assert cli.main([*words, *SMOKE]) == 0
        return list(csv.DictReader((tmp_path / name).with_suffix(".csv").read_text().splitlines()))

    def cells() -> list[tuple[int, int, int]]:
        maps = sorted(tmp_path.glob("runs/*/test/ours_2/cells/partition.json"))
        return [PartitionTable.load(path).dim for path in maps]

    sweep("first.yaml")
    assert cells() == [(2, 1, 1)] * 2, "the reference is one block, so the cells are those of the first row with more"
    before = sweep("second.yaml", "--only", "three")
    assert [bool(row["worst_block_PSNR_mean"]) for row in before] == [True, False, False]
    after = sweep("second.yaml")
    assert cells() == [(1, 3, 1)] * 3 and all(row["worst_block_PSNR_mean"] for row in after)
    assert [row["PSNR_mean"] for row in after] == [row["PSNR_mean"] for row in before]
    logs = [path.read_text() for path in tmp_path.glob("runs/*/sweep.log")]
    assert sorted((log.count("== train"), log.count("== render:")) for log in logs) == [(1, 1), (1, 2), (1, 2)]


@pytest.mark.slow
def test_a_sweep_survives_a_kill_and_never_trains_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to find the training that a sweep has started")
    scene = write_tiny_scene(tmp_path / "scene")
    sweep, out = tmp_path / "tiny.yaml", tmp_path / "out"
    rows = [{"name": "momentum", "mode": "momentum"}, {"name": "too many blocks", "set": ["blocks.active=5"]}]
    # A row with the settings of the first one: the same run.
    rows.append({"name": "again", "set": ["weighting.enabled=false"]})
    sweep.write_text(yaml.safe_dump({"rows": rows, "seeds": [0]}))
    settings = [s for s in SETTINGS if not s.startswith(("blocks.active", "steps"))]
    words = ["sweep", str(sweep), "-s", str(scene), "-m", str(out), "--lpips", "none", "--jobs", "1", *settings]
    words += ["steps=100", "log.checkpoint_every=20", "partition.assign=visibility", "partition.min_points=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "momentum_gs", *words], env=environment)
    try:
        while not list(out.glob("runs/*/checkpoint/step_*")):
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        for pid in (process.pid, *children(process.pid)):
            os.kill(pid, signal.SIGKILL)
        process.wait()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cli.main(words) == 1  # One row cannot train; the others did.
    printed = capfd.readouterr()
    assert "too many blocks, seed 0 failed: train ended with status 2" in printed.err
    assert "again, seed 0 has the same settings as momentum, seed 0" in printed.out
    finished = run_of(out, "momentum")
    log = (finished / "sweep.log").read_text()
    assert log.count("== train") == 2 and log.count("--resume") == 1 and log.count("== eval") == 1
    # Only the merged model is kept.
    assert not (finished / "checkpoint").exists() and not list(finished.rglob("point_cloud_block*.ply"))
    assert len(list(finished.rglob("point_cloud.ply"))) == 1
    table = list(csv.DictReader((out / "tiny.csv").read_text().splitlines()))
    assert [row["row"] for row in table] == ["momentum", "again"]
    assert table[0]["PSNR_mean"] == table[1]["PSNR_mean"] and float(table[1]["PSNR_minus_reference"]) == 0
    assert all((out / f"tiny.{suffix}").stat().st_size for suffix in ("md", "tex", "json"))

    assert cli.main([*words, "--only", "momentum,again"]) == 0
    assert (finished / "sweep.log").read_text() == log


def children(parent: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # It has just ended.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def run_of(out: Path, row: str) -> Path:
    rows = json.loads((out / "tiny.json").read_text())["rows"]
    return out / "runs" / next(r for r in rows if r["row"] == row)["runs"]["0"]["folder"]
