"""How a call of the GPU check runs programs: with a log, with the time that is left, and on which loads."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "scripts" / "gpu"
EXTENSIONS = {
    "diff-gaussian-rasterization": "diff_gaussian_rasterization",
    "simple-knn": "simple_knn",
    "fused-ssim": "fused_ssim",
    "anchor-decode": "anchor_decode",
}
RESULT = "RESULT "
"""How the programs in this folder begin the line with their figures, as JSON."""
MARGIN = 8.0
"""Seconds of a call that are left for the table."""

Figures = dict[str, Any]


class Cut(Exception):
    """The minutes are over."""


class Failed(Exception):
    """A program failed; the message says where to look."""


@dataclass(frozen=True)
class Load:
    """How much a part does."""

    bench: tuple[str, ...]
    anchors: int
    city: tuple[str, ...]
    steps: int
    timed: int
    tests: tuple[str, ...]


FULL = Load(
    bench=(),
    anchors=1_000_000,
    city=("--blocks-x", "4", "--blocks-y", "4", "--views", "80", "--size", "480x360"),
    steps=900,
    timed=40,
    tests=("tests", *(f"submodules/{name}/tests" for name in EXTENSIONS)),
)
REHEARSED = Load(
    bench=("--gaussians", "200", "--points", "50", "--size", "64x48", "--repeats", "1"),
    anchors=200,
    city=("--blocks-x", "1", "--blocks-y", "1", "--views", "8", "--size", "48x36"),
    steps=6,
    timed=2,
    tests=("submodules/simple-knn/tests/test_simple_knn.py",),
)


@dataclass
class Check:
    """One call."""

    out: Path
    state: Path
    rehearse: bool
    ends: float
    """When the minutes are over, as ``time.monotonic`` counts."""
    scene: Path | None = None
    log: Path = field(default=Path())

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def load(self) -> Load:
        return REHEARSED if self.rehearse else FULL

    def left(self) -> float:
        return self.ends - MARGIN - time.monotonic()

    def run(self, *command: str | Path, folder: Path = ROOT, **variables: str) -> str:
        """What a program prints; it is appended to the part's log.

        Raises:
            Cut: The minutes were over before it ended.
            Failed: It ended with an error.
        """
        path = os.pathsep.join([*packages(), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path} | variables
        if self.rehearse:
            environment["PATH"] = f"{HERE / 'stand_ins'}{os.pathsep}{environment['PATH']}"
        words = [str(word) for word in command]
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(words)}\n")
            log.flush()
            start = log.tell()
            with subprocess.Popen(
                words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            ) as process:
                try:
                    status = process.wait(timeout=max(self.left(), 1))
                except BaseException as stopped:  # Its children too: torchrun and nvcc start some.
                    os.killpg(process.pid, 9)
                    if isinstance(stopped, subprocess.TimeoutExpired):
                        raise Cut from stopped
                    raise
        printed = self.log.read_bytes()[start:].decode(errors="replace")
        if status:
            raise Failed(f"{' '.join(words[:4])} ... ended with {status}; see {self.log.name}")
        return printed

    def python(self, *arguments: str | Path, **variables: str) -> str:
        return self.run(sys.executable, *arguments, **variables)

    def momentum_gs(self, *arguments: str | Path) -> str:
        return self.python("-m", "momentum_gs", *arguments)

    def tool(self, name: str, *arguments: str | Path, **variables: str) -> Figures:
        """The figures of a program of this folder."""
        printed = self.python(HERE / f"{name}.py", *arguments, **variables)
        return json.loads(printed.rpartition(RESULT)[2].splitlines()[0])

    @property
    def work(self) -> Path:
        return self.state / "work"


def packages() -> Iterator[str]:
    """The folders of extensions that were built in place."""
    for folder, package in EXTENSIONS.items():
        if any((ROOT / "submodules" / folder / package).glob("*.so")):
            yield str(ROOT / "submodules" / folder)
