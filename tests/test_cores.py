"""The cores that a process may keep busy, and the threads that follow from them."""

import os
from pathlib import Path

import pytest

from momentum_gs.core import cores
from momentum_gs.core.cores import limit_threads, usable_cores


def group(folder: Path, **files: str) -> Path:
    """A control group as the system shows it."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_max", ".max").replace("cfs", "cpu.cfs")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n", encoding="ascii")
    return folder


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"cpu_max": "max 100000"}, 16),
        ({"cpu_max": "400000 100000"}, 4),
        ({"cpu_max": "150000 100000"}, 2),
        ({"cpu_max": "50000 100000"}, 1),
        ({"cpu_max": "6400000 100000"}, 16),
        ({"cpu_max": "no numbers here"}, 16),
        ({"cpu__cfs_quota_us": "-1", "cpu__cfs_period_us": "100000"}, 16),
        ({"cpu__cfs_quota_us": "300000", "cpu__cfs_period_us": "100000"}, 3),
    ],
)
def test_the_smaller_of_cores_and_quota_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert usable_cores(group(tmp_path, **files)) == expected


def test_threads_are_limited_by_a_quota_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # to be restored
    monkeypatch.delenv("OMP_NUM_THREADS")
    limit_threads(tmp_path)
    assert "OMP_NUM_THREADS" not in os.environ  # as torch chooses
    limit_threads(group(tmp_path, cpu_max="250000 100000"))
    assert os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    limit_threads(tmp_path)
    assert os.environ["OMP_NUM_THREADS"] == "7"  # the user's
