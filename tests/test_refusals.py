"""Errors in a scene or its settings are reported in one line, before training starts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_run import BASE
from tiny_scene import write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.schema import SceneConfig
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene

BOUNDS = (-4.0, -4.0, -1.0, 4.0, 4.0, 5.0)
SETTINGS = ["partition.dim=[2,2,1]", "steps=4", "blocks.interval=2", "blocks.active=2", "model.voxel_size=0.3"]


def missing_image(scene: Path, out: Path) -> list[str]:
    (scene / "images" / "003.png").unlink()
    return SETTINGS


def truncated_points(scene: Path, out: Path) -> list[str]:
    points = scene / "sparse" / "0" / "points3D.bin"
    points.write_bytes(points.read_bytes()[:-100])
    return SETTINGS


def another_grid(scene: Path, out: Path) -> list[str]:
    return ["partition.dim=[4,1,1]", *SETTINGS[1:]]


def unknown_key(scene: Path, out: Path) -> list[str]:
    return [*SETTINGS, "growth.intervall=5"]


def too_many_active(scene: Path, out: Path) -> list[str]:
    return [*SETTINGS, "blocks.active=5"]


def no_partition(scene: Path, out: Path) -> list[str]:
    (out / "partition.json").unlink()
    return SETTINGS


def trained_before(scene: Path, out: Path) -> list[str]:
    (out / "point_cloud").mkdir()
    return SETTINGS


def nothing_to_resume(scene: Path, out: Path) -> list[str]:
    return [*SETTINGS, "--resume"]


CASES: list[tuple[Callable[[Path, Path], list[str]], list[str]]] = [
    (missing_image, ["003.png", "missing"]),
    (truncated_points, ["points3D.bin"]),
    (another_grid, ["grid", "4", "re-run 'momentum-gs partition'"]),
    (unknown_key, ["growth.intervall", "growth.interval"]),
    (too_many_active, ["k = 5", "n = 4"]),
    (no_partition, ["partition.json", "momentum-gs partition"]),
    (trained_before, ["--resume"]),
    (nothing_to_resume, ["no checkpoint"]),
]


@pytest.fixture(scope="module")
def whole_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(("damage", "words"), CASES, ids=[c[0].__name__ for c in CASES])
def test_one_line_before_training(
    damage: Callable[[Path, Path], list[str]],
    words: list[str],
    whole_scene: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scene, out = tmp_path / "scene", tmp_path / "out"
    shutil.copytree(whole_scene, scene)
    out.mkdir()
    loaded = load_scene(SceneConfig(path=str(scene), resolution=1.0))
    table = PartitionTable(BOUNDS, (2, 2, 1), torch.eye(3, dtype=torch.float64), [[]] * 4)
    views = [[c.name for c in loaded.train if table.owner(c) == b] for b in range(4)]
    PartitionTable(BOUNDS, (2, 2, 1), table.rotation, views).save(out / "partition.json")
    settings = damage(scene, out)
    assert main(["train", *BASE, "-s", str(scene), "-m", str(out), "-r", "1", *settings]) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message, message
    for word in words:
        assert word in message, message
    assert not list(out.glob("point_cloud/iteration_*"))
    assert not (out / "events.jsonl").exists(), "nothing was trained"
