"""Build of momentum-gs: the program, its settings files and the four compiled packages below submodules/ in one wheel.

    pip install --no-build-isolation .      for the torch that is there (submodules/build_rules.py: GPUs or not)

An editable install holds the program alone: scripts/setup.sh then installs the four from copies, so that no two
environments share compiled objects and no file has two owners.
"""

import os
import sys
from distutils.core import run_setup
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "submodules"))
from build_rules import CMDCLASS, TORCH  # noqa: E402

KERNELS = {
    "diff_gaussian_rasterization": "submodules/diff-gaussian-rasterization",
    "simple_knn": "submodules/simple-knn",
    "fused_ssim": "submodules/fused-ssim",
    "anchor_decode": "submodules/anchor-decode",
}
"""Package -> its folder. The names of the first three are those under which 3DGS codebases import such packages."""

FACES = {"fused_ssim_cuda": "submodules/fused-ssim"}
"""Packages without compiled parts beside them: names that 3DGS codebases import as well."""

# Bounds: what was tried (docs/install.md).
REQUIRES = [
    TORCH,
    "einops>=0.8,<0.9",
    "jaxtyping>=0.3,<0.4",
    "numpy>=2.2,<2.5",
    "opencv-python-headless>=4.11,<5.1",
    "plyfile>=1.1,<1.2",
    "pyyaml>=6.0.1,<7",
    "safetensors>=0.5,<0.9",
    "tqdm>=4.67,<5",
]


def extensions(folder: str) -> list[Extension]:
    """What a package's own setup.py would compile, with paths from here."""
    before = os.getcwd()
    os.chdir(ROOT / folder)
    try:
        found = run_setup("setup.py", stop_after="init").ext_modules
    finally:
        os.chdir(before)
    for extension in found:
        extension.sources = [f"{folder}/{source}" for source in extension.sources]
        extension.depends = [f"{folder}/{file}" for file in extension.depends]
        extension.include_dirs = [str(Path(folder, path)) for path in extension.include_dirs]
    return found


class ProgramAlone(editable_wheel):
    """The editable install."""

    def finalize_options(self) -> None:
        self.distribution.packages = find_packages(include=["momentum_gs*"])
        self.distribution.package_dir = {}
        self.distribution.ext_modules = []
        super().finalize_options()


setup(
    packages=[*find_packages(include=["momentum_gs*"]), "momentum_gs.configs", *KERNELS, *FACES],
    package_dir={
        "momentum_gs.configs": "configs",
        **{name: f"{folder}/{name}" for name, folder in (KERNELS | FACES).items()},
    },
    package_data={
        "momentum_gs": ["py.typed", "eval/published.yaml"],
        "momentum_gs.export.html": ["page.*", "vendor/*"],
        "momentum_gs.configs": ["**/*.yaml"],
    },
    ext_modules=[extension for folder in KERNELS.values() for extension in extensions(folder)],
    install_requires=REQUIRES,
    cmdclass={**CMDCLASS, "editable_wheel": ProgramAlone},
)
