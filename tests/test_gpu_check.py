"""The check for machines with a GPU, rehearsed on a CPU: every command, path and flag of it runs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType

import cuda_emulator
import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_emulator.why_not() is not None, reason=cuda_emulator.why_not() or ""),
]


def call(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    folders = ["--state", str(folder / "state"), "--out", str(folder / "out")]
    command = ["bash", str(SCRIPT), "--rehearse", *folders, *flags]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check_parts", ROOT / "scripts" / "gpu" / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "gpu"))
    spec.loader.exec_module(module)
    return module


def test_the_whole_check_rehearsed_and_called_again(tmp_path: Path) -> None:
    # The minutes are for a machine that compiles the emulator's objects first and is busy.
    done = call(tmp_path, "--minutes", "15")
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    left_out = {name for name, record in records.items() if record["status"] != "done"}
    assert left_out == {"city_on_cpu", "gsplat", "scene"}, done.stdout
    assert records["tests"]["figures"]["skipped"] == records["tests"]["figures"]["tests"] > 0
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert "0 err" in records[tool]["figures"]["summary"][0]
    assert any("PSNR" in line for line in records["city"]["figures"]["scores"])
    assert records["ranks"]["figures"]["ranks"] == "2"
    # Decoding and drawing each read a number with work queued behind it; before, they had none of it.
    late = "waits with work queued behind, a step"
    assert (records["step"]["figures"][late], records["step"]["figures"][f"{late}, counted first"]) == (2.0, 0.0)
    table = (tmp_path / "out" / "gpu_check.md").read_text()
    assert "| racecheck | done (rehearsed) |" in table and "% of the bound" in table

    # What is done is kept; what was cut runs again.
    cut = tmp_path / "state" / "bandwidth.json"
    cut.write_text(json.dumps({"status": "cut"}))
    again = call(tmp_path)
    assert again.returncode == 0 and "bandwidth: done" in again.stdout
    assert again.stdout.count("done in") == 1


def test_a_part_that_outlives_the_minutes_is_cut(check: ModuleType, tmp_path: Path) -> None:
    call = check.Check(tmp_path, tmp_path, True, time.monotonic() + sys.modules["programs"].MARGIN + 1.0)

    def sleeps(of: object) -> dict[str, object]:
        of.run("bash", "-c", "sleep 600 & sleep 600")  # type: ignore[attr-defined]
        return {}

    part = check.Part("machine", 0.0, sleeps)
    start = time.monotonic()
    check.do(call, part)
    assert time.monotonic() - start < 300  # not the ten minutes of what it ran
    assert check.kept(call, part)["status"] == "cut"
    assert "| machine | cut" in (tmp_path / "gpu_check.md").read_text()


def test_a_part_that_fails_says_where_and_holds_back_those_that_need_it(
    check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = check.Check(tmp_path, tmp_path, True, time.monotonic() + 600)

    def fails(of: object) -> dict[str, object]:
        of.run("bash", "-c", "echo nvcc is broken; exit 3")  # type: ignore[attr-defined]
        return {}

    part = check.Part("build", 0.0, fails)
    check.do(call, part)
    record = check.kept(call, part)
    assert record["status"] == "failed" and "ended with 3; see build.log" in record["figures"]["why"]
    assert record["figures"]["end"][-1] == "nvcc is broken"
    check.do(call, check.BY_NAME["tests"])
    assert "tests: waits for build" in capsys.readouterr().out


def test_what_was_rehearsed_is_not_done(check: ModuleType, tmp_path: Path) -> None:
    calls = [check.Check(tmp_path, tmp_path, rehearse, time.monotonic() + 600) for rehearse in (True, False)]
    part = check.BY_NAME["kernels"]
    check.keep(calls[0], part, {"status": "done", "rehearsed": True})
    assert [check.kept(call, part)["status"] for call in calls] == ["done", "open"]


def test_it_explains_itself_and_refuses_unknown_parts(tmp_path: Path) -> None:
    said = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True, check=True).stdout
    assert "bash scripts/gpu_check.sh --minutes 25 --out FOLDER --wheels FOLDER" in said and "set -" not in said
    wrong = call(tmp_path, "--only", "tests,colour")
    assert wrong.returncode == 2 and "no part colour" in wrong.stderr


def write_wheel(folder: Path, name: str) -> None:
    """A package of one file that says where it is."""
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "here = __file__\n")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def test_wheels_are_installed_once_and_gsplat_apart(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("package_of_nobody", "gsplat"):
        write_wheel(wheels, name)
    for _ in range(2):
        done = call(tmp_path, "--wheels", str(wheels), "--only", "machine")
        assert done.returncode == 0, done.stdout + done.stderr
    site, apart = tmp_path / "state" / "site", tmp_path / "state" / "site_gsplat"
    assert (site / "package_of_nobody.py").exists() and not (site / "gsplat.py").exists()
    assert (apart / "gsplat.py").exists()


@pytest.mark.parametrize("tool", ["compute-sanitizer", "nvidia-smi"])
def test_stand_ins_refuse_unknown_flags(tool: str) -> None:
    stand_in = ROOT / "scripts" / "gpu" / "stand_ins" / tool
    assert subprocess.run([str(stand_in), "--colour", "red"], capture_output=True).returncode == 2
    assert shutil.which(str(stand_in)) is not None
