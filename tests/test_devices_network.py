"""Devices, edges and the cloud on one machine: what arrives, and what faults cost."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import SETTINGS, write_table
from tiny_scene import write_tiny_scene

from momentum_gs.aggregate.device import write_device_scene
from momentum_gs.aggregate.simulate import Ended, Simulation, edges_of, seconds_to_model, start
from momentum_gs.aggregate.upload import MODEL, read_upload
from momentum_gs.cli import devices
from momentum_gs.cli import main as cli
from momentum_gs.config.load import load_config
from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.model.io import load_model

GAUSSIANS = ["model.primitive=gaussians", "teacher.enabled=false", "blocks.boundary_finetuning=false",
             "blocks.offset_clamping=false", "loss.volume=0", "weighting.enabled=false"]  # fmt: skip
ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"))


def config_of(scene: Path, out: Path, *overrides: str) -> Config:
    few = ["steps=8", "scene.test_every=0", "aggregate.tree=[2,2]", "aggregate.steps=3", "compress.steps=1"]
    return load_config(None, [f"scene.path={scene}", f"out={out}", *SETTINGS, *GAUSSIANS, *few, *overrides])


def within(words: Sequence[str], log: Path) -> Ended:
    """Runs a command in this process, which takes a tenth of the time."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = cli.main(list(words))
    log.write_text(printed.getvalue())
    return Ended(status, 1.0, 1.0)


def simulation(config: Config, start=within) -> Simulation:
    table = write_table(config)
    return Simulation(config, load_scene(config.scene), table, start)


def model(out: Path) -> bytes:
    return (out / "network" / "model" / MODEL).read_bytes()


@pytest.fixture(scope="module")
def finished(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without faults."""
    out = tmp_path_factory.mktemp("finished")
    simulation(config_of(scene, out)).run()
    return out


def test_the_model_is_a_run_of_gaussians_and_everything_is_recorded(finished: Path) -> None:
    found, _ = load_model(finished / "point_cloud" / "iteration_8" / "point_cloud.ply")
    sent = read_upload(finished / "network" / "model")
    assert torch.equal(found.position, sent.splats.position) and sent.blocks == (0, 1, 2, 3)
    record = json.loads((finished / "devices.json").read_text())
    assert sorted(record["devices"]) == ["0", "1", "2", "3"] and sorted(record["edges"]) == ["0", "1"]
    for edge in record["edges"].values():
        assert edge["received"] > 0 and edge["models"] == 2
    total = sum(row["sent"] for row in record["devices"].values())
    assert total == sum(edge["received"] for edge in record["edges"].values())
    assert total < sum(row["image_bytes"] for row in record["devices"].values())


def test_a_device_has_its_images_and_no_other(finished: Path, scene: Path) -> None:
    table = PartitionTable.load(finished / "partition.json")
    for block, names in enumerate(table.views):
        folder = finished / "devices" / str(block)
        assert sorted(path.name for path in (folder / "scene" / "images").iterdir()) == sorted(names)
        assert str(scene) not in (folder / "settings.yaml").read_text()
        own = PartitionTable.load(folder / "run" / "partition.json")
        assert [sorted(views) for views in own.views] == [sorted(names) if b == block else [] for b in range(table.n)]


def test_calling_again_does_nothing(finished: Path, scene: Path) -> None:
    before = model(finished)

    def refuse(words: Sequence[str], log: Path) -> Ended:
        raise AssertionError(words)

    simulation(config_of(scene, finished), refuse).run()
    assert model(finished) == before


def test_a_device_that_dies_delays_nobody_and_is_added_later(
    finished: Path, scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def mortal(words: Sequence[str], log: Path) -> Ended:
        if words[0] == "train" and "/devices/2/" in words[2]:
            log.write_text("")
            return Ended(-9, 1.0, 1.0)
        return within(words, log)

    config = config_of(scene, tmp_path)
    simulation(config, mortal).run()
    lines = [line for line in capsys.readouterr().err.splitlines() if "device 2" in line]
    assert len(lines) == 1 and "signal 9" in lines[0]
    without = read_upload(tmp_path / "network" / "model")
    assert without.blocks == (0, 1, 3)
    table = PartitionTable.load(tmp_path / "partition.json")
    assert (table.cell_of(without.splats.position.detach().double()) == 2).any()  # Neighbours fill its cell.
    simulation(config).run()
    assert model(tmp_path) == model(finished)


def test_a_device_whose_model_could_not_be_compressed_is_not_trained_again(
    finished: Path, scene: Path, tmp_path: Path
) -> None:
    def full(words: Sequence[str], log: Path) -> Ended:
        if words[0] == "compress" and "/devices/3/" in words[1]:
            log.write_text("momentum-gs: disk full\n")
            return Ended(2, 1.0, 1.0)
        return within(words, log)

    config = config_of(scene, tmp_path)
    simulation(config, full).run()
    assert read_upload(tmp_path / "network" / "model").blocks == (0, 1, 2)
    ply = tmp_path / "devices" / "3" / "run" / "point_cloud" / "iteration_8" / "point_cloud.ply"
    before = ply.stat().st_mtime_ns
    simulation(config).run()
    assert ply.stat().st_mtime_ns == before and model(tmp_path) == model(finished)


def test_other_settings_aggregate_again(finished: Path, scene: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    simulation(config_of(scene, tmp_path / "copy", "aggregate.steps=0")).run()
    assert model(tmp_path / "copy") != model(finished)


def test_a_truncated_upload_is_sent_again(finished: Path, scene: Path, tmp_path: Path) -> None:
    config = config_of(scene, tmp_path)
    simulation(config).run()
    file = tmp_path / "network" / "edge0" / "device0" / MODEL
    file.write_bytes(file.read_bytes()[:50])
    trained = []

    def watch(words: Sequence[str], log: Path) -> Ended:
        trained.append(words[0])
        return within(words, log)

    simulation(config, watch).run()
    assert trained == [] and model(tmp_path) == model(finished)


def test_a_device_with_too_few_views_costs_one_line(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(scene, tmp_path)
    found, table = load_scene(config.scene), write_table(config)
    few = replace(table, views=[names if block != 1 else names[:2] for block, names in enumerate(table.views)],
                  windows=None)  # fmt: skip
    Simulation(config, found, few, within).run()
    lines = [line for line in capsys.readouterr().err.splitlines() if "device 1" in line]
    assert len(lines) == 1 and "2 views" in lines[0]
    assert read_upload(tmp_path / "network" / "model").blocks == (0, 2, 3)
    with pytest.raises(UserError, match="expected at least 3"):
        write_device_scene(tmp_path / "x", found, few, 1)


def test_without_any_model_there_is_one_error(scene: Path, tmp_path: Path) -> None:
    def fail(words: Sequence[str], log: Path) -> Ended:
        log.write_text("momentum-gs: out of memory\n")
        return Ended(1, 1.0, 1.0)

    with pytest.raises(UserError, match="no model has arrived"):
        simulation(config_of(scene, tmp_path), fail).run()


def test_edges_have_neighbouring_blocks() -> None:
    table = PartitionTable((0.0, 0.0, 0.0, 1.0, 1.0, 1.0), (4, 2, 1), torch.eye(3, dtype=torch.float64), [[]] * 8, {})
    assert edges_of(table, load_config(None, ["aggregate.tree=[4,2]"])) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert edges_of(table, load_config(None, ["blocks.groups=4"])) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert edges_of(table, load_config(None, [])) == [[*range(8)]]
    with pytest.raises(UserError, match="places for 8 blocks"):
        edges_of(table, load_config(None, ["aggregate.tree=[3,2]"]))


def test_the_slowest_device_decides_on_the_time() -> None:
    def row(seconds: float, sent: int) -> dict:
        return {"train": {"seconds": seconds}, "compress": {"seconds": 1.0}, "sent": sent}

    record = {
        "devices": {"0": row(10, 10**6), "1": row(20, 0), "2": row(5, 10**6)},
        "edges": {"0": {"process": {"seconds": 3.0}, "sent": 0}, "1": {"process": {"seconds": 0.0}, "sent": 10**6}},
        "cloud": {"process": {"seconds": 2.0}},
    }
    assert seconds_to_model(record, [[0, 1], [2]], 1.0, "seconds") == pytest.approx(20 + 1 + 3 + 2)
    assert seconds_to_model(record, [[0, 1], [2]], 0.1, "seconds") == pytest.approx(5 + 1 + 80 + 80 + 2)


def test_tree_is_read_from_the_command_line() -> None:
    assert devices.tree("4x2") == (4, 2)
    with pytest.raises(ValueError):
        devices.tree("4")


def test_processes_have_borders_of_their_own(scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user would: every command in a process of its own, of which one is killed in the middle."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = config_of(scene, tmp_path, "steps=2000")

    def kill(words: Sequence[str], log: Path) -> Ended:
        if words[0] == "train" and "/devices/0/" in words[2]:
            process = subprocess.Popen([sys.executable, "-m", "momentum_gs", *words], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)  # fmt: skip
            events = Path(words[2]).parent / "run" / "events.jsonl"
            while process.poll() is None and not (events.exists() and events.stat().st_size):
                time.sleep(0.05)
            process.kill()
            log.touch()
            return Ended(process.wait(), 0.0, 0.0)
        raise UserError("not asked for")

    with pytest.raises(UserError, match="no model has arrived"):
        simulation(config, kill).run()
    out = tmp_path / "quick"
    quick = config_of(scene, out, "aggregate.tree=[4,1]", "aggregate.steps=0", "compress.max_loss_db=null")
    table = write_table(quick)
    sole = replace(table, views=[names if block == 0 else [] for block, names in enumerate(table.views)], windows=None)
    Simulation(quick, load_scene(quick.scene), sole, start).run()
    assert read_upload(out / "network" / "model").blocks == (0,)
    assert os.path.exists(out / "devices" / "0" / "log.txt")
