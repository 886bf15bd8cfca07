"""The wheel: built here and installed without compiler or checkout, it runs everything from a scene to a report.

Nothing is downloaded: only what the wheel requires is linked from the environment of the tests.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="the wheel is built with a compiler"),
]
TINY = [
    "steps=24", "scene.resolution=1", "model.voxel_size=0.2", "growth.interval=4", "log.tensorboard=false",
    "weighting.view_stride=2", "device=cpu",
]  # fmt: skip


def required(wheel: str) -> Iterator[metadata.Distribution]:
    """The requirements of a distribution without extras, and theirs; asserts that installed versions are allowed."""
    todo, seen = [Requirement(text) for text in metadata.requires(wheel) or []], set()
    while todo:
        need = todo.pop()
        if need.name in seen or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        seen.add(need.name)
        found = metadata.distribution(need.name)
        assert need.specifier.contains(found.version, prereleases=True), f"{need}, but here is {found.version}"
        todo += map(Requirement, found.requires or [])
        yield found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new wheel. Compiled objects are kept beside the environment, in a folder for each checkout."""
    out = tmp_path_factory.mktemp("dist")
    build = Path(sys.prefix) / "wheels" / hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]
    env = {**os.environ, "OUT": str(out), "BUILD": str(build), "PYTHON": sys.executable}
    env.pop("PYTHONPATH", None)
    command = ["bash", str(ROOT / "scripts" / "build_wheels.sh"), "momentum-gs"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``momentum-gs`` of an environment that has the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("environment")
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    sys.path.insert(0, str(site))  # Its metadata, not those of the editable install.
    try:
        dependencies = list(required("momentum-gs"))
    finally:
        sys.path.remove(str(site))
    for dependency in dependencies:
        for name in {file.parts[0] for file in dependency.files or []} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(str(dependency.locate_file(name)))
    return folder / "bin" / "momentum-gs"


def call(program: Path, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder, without checkout, compiler or anything else on the path."""
    env = {"PATH": str(folder / "nothing"), "CC": "false", "CXX": "false", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(program), *argv], cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_all_stages_run_from_the_wheel(program: Path, tmp_path: Path) -> None:
    def run(*argv: str) -> str:
        done = call(program, tmp_path, *argv)
        assert done.returncode == 0, f"{' '.join(argv)}\n{done.stderr}"
        return done.stdout

    settings = ["-c", "own", "-c", "modes/full", "-s", "scene", *TINY]
    run("synth", "scene", "--blocks-x", "2", "--blocks-y", "2", "--views", "24", "--size", "96x72")
    printed = run("train", *settings, "-m", "out/coarse", "stage=coarse")
    assert re.match(r"device   cpu, 1 thread, kernels .*, built for", printed)
    run("partition", "scene", "-c", "own", *TINY, "-m", "out", "partition.blocks=2")
    run("train", *settings, "-m", "out", "partition.blocks=2", "blocks.active=1")
    run("merge", "out")
    assert run("render", "out").startswith("device   cpu")
    run("eval", "out", "out/coarse" if (tmp_path / "out/coarse/test").exists() else "out", "--lpips", "none")
    run("report", "out")
    assert {"results.json", "report.html", "partition.json"} <= {file.name for file in (tmp_path / "out").iterdir()}


def test_shipped_settings_are_those_of_the_checkout(program: Path, tmp_path: Path) -> None:
    python = program.with_name("python")
    code = (
        "import momentum_gs.eval.published as published\n"
        "from momentum_gs.config.load import load_settings\n"
        "from momentum_gs.config.shipped import find_sweep, shipped_folder\n"
        "from momentum_gs.config.sweep import load_sweep\n"
        "assert published.scene_keys()\n"
        "for file in sorted(shipped_folder().rglob('*.yaml')):\n"
        "    name = file.relative_to(shipped_folder()).with_suffix('').as_posix()\n"
        "    if name.startswith('sweeps/'): load_sweep(find_sweep(name))\n"
        "    else: load_settings(name)\n"
        "    print(name)\n"
    )
    done = call(python, tmp_path, "-I", "-c", code)
    assert done.returncode == 0, done.stderr
    here = {file.relative_to(ROOT / "configs").with_suffix("").as_posix() for file in ROOT.glob("configs/**/*.yaml")}
    assert set(done.stdout.split()) == here


def test_the_static_page_is_written_from_the_wheel(program: Path, tmp_path: Path) -> None:
    code = (
        "import torch\n"
        "from pathlib import Path\n"
        "from momentum_gs.core.types import Camera\n"
        "from momentum_gs.export.html.page import write_page\n"
        "from momentum_gs.model.splats import Splats\n"
        "eye, zero = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)\n"
        "camera = Camera('a.png', 4, 3, 4.0, 4.0, 2.0, 1.5, eye, zero)\n"
        "splats = Splats.fresh(torch.ones(1, 3), torch.ones(1, 3), torch.zeros(1, 3), 0)\n"
        "write_page(Path('page.html'), splats, [camera], title='x', up=-eye[1])\n"
    )
    done = call(program.with_name("python"), tmp_path, "-I", "-c", code)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").stat().st_size > 1_000_000  # With the renderer.
    licences = {file.name for file in program.parents[1].glob("**/export/html/vendor/LICENSE.*")}
    assert licences == {"LICENSE.spark", "LICENSE.three", "LICENSE.fflate"}


def test_nothing_of_the_checkout_is_used(program: Path, tmp_path: Path) -> None:
    python = program.with_name("python")
    names = ["momentum_gs", "diff_gaussian_rasterization", "simple_knn", "fused_ssim", "anchor_decode"]
    done = call(
        python, tmp_path, "-I", "-c", f"import {', '.join(names)}\nfor m in [{', '.join(names)}]: print(m.__file__)"
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert Path(line).is_relative_to(program.parents[1]), line
