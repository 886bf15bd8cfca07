"""Errors if the compiled packages are missing, from another project, or compiled for another torch."""

import os
import subprocess
import sys
from pathlib import Path

import fused_ssim
import pytest
import torch

from momentum_gs.core import kernels
from momentum_gs.core.errors import UserError

ROOT = Path(__file__).parents[1]


def with_package(folder: Path, files: dict[str, str]) -> str:
    """The error of the program if another package simple_knn comes before ours; it must be one line, with status 2."""
    (folder / "simple_knn").mkdir()
    for name, text in {"__init__.py": "", **files}.items():
        (folder / "simple_knn" / name).write_text(text)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-m", "momentum_gs", "synth", str(folder / "city")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    return done.stderr


def test_the_installed_packages_pass() -> None:
    kernels.check_kernels()
    assert kernels.cpu_kernels() == fused_ssim.cpu_kernels()


def test_a_cpu_without_avx2_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise RuntimeError("fused_ssim: the kernels for CPUs need AVX2 and FMA")

    monkeypatch.setattr(fused_ssim, "cpu_kernels", refuse)
    with pytest.raises(UserError, match="need AVX2 and FMA"):
        kernels.cpu_kernels()


@pytest.mark.slow
def test_a_package_of_the_same_name_is_recognised(tmp_path: Path) -> None:
    printed = with_package(tmp_path, {"_C.py": "def distCUDA2(points): ..."})
    assert f"kernels: simple_knn in {tmp_path / 'simple_knn'} comes from" in printed
    assert "expected the package that momentum-gs brings under this name; " in printed
    assert f"bash {ROOT / 'scripts' / 'setup.sh'}" in printed


@pytest.mark.slow
def test_a_package_laid_over_ours_is_recognised(tmp_path: Path) -> None:
    """The files of our package remain, but the module that is imported registers no operator."""
    assert "expected the package that momentum-gs brings" in with_package(tmp_path, {"_C.py": "", "reference.py": ""})


@pytest.mark.slow
def test_a_library_of_another_torch_names_both(tmp_path: Path) -> None:
    broken = "raise OSError('_kernels.so: undefined symbol: _ZN3c10')"
    printed = with_package(tmp_path, {"_C.py": broken, "reference.py": ""})
    assert "simple_knn does not load (_kernels.so: undefined symbol: _ZN3c10), compiled for torch of unknown" in printed
    assert f"found torch {torch.__version__}; run: bash " in printed


@pytest.mark.slow
def test_a_library_of_another_minor_version_is_not_loaded(tmp_path: Path) -> None:
    record = '{"torch": "2.5.1+cu124"}'
    printed = with_package(tmp_path, {"_C.py": "1 / 0", "reference.py": "", "built.json": record})
    assert f"simple_knn was compiled for torch 2.5.1+cu124, found torch {torch.__version__}; run: bash " in printed


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_folder", lambda package: None)
    with pytest.raises(UserError, match="the package diff_gaussian_rasterization is not installed, expected"):
        kernels.check_kernels()


@pytest.mark.parametrize("version", ["2.13.0", "2.13.1+cu130"])
def test_another_patch_version_is_accepted(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ".".join(torch.__version__.split(".")[:2])
    monkeypatch.setattr(kernels, "build_record", lambda package: {"torch": version.replace("2.13", own)})
    kernels.check_kernels()
