"""Build of the compiled part: ``pip install --no-build-isolation ./submodules/diff-gaussian-rasterization``.

../build_rules.py says whether the GPU's part is built, too. PORTABLE=1 builds for any machine of the architecture's
current baseline (x86-64-v3: AVX2) instead of this very one.
"""

import os
import platform
import sys
from pathlib import Path

from setuptools import setup

# Beside the packages' folders; in a source distribution, beside this file.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from build_rules import CMDCLASS, CUDA, TORCH, Extension  # noqa: E402


def machine_flags() -> list[str]:
    """Instruction set: the builder's own, or the portable baseline."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    if os.environ.get("PORTABLE", "0") not in ("", "0"):
        return ["-march=x86-64-v3"] if x86 else []
    return ["-march=native" if x86 else "-mcpu=native"]


SOURCES = ["csrc/binding.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
SOURCES += sorted(map(str, Path("csrc/cuda").glob("*.cu"))) if CUDA else []
# No errno and no floating-point traps: both only keep the compiler from using vector square roots and selects.
# -fopenmp only here, not for the linker: torch brings the OpenMP runtime, and a second one beside it would fight for
# the cores.
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall", *machine_flags()]

setup(
    ext_modules=[
        Extension(
            "diff_gaussian_rasterization._C",
            SOURCES,
            extra_compile_args={"cxx": FLAGS, "nvcc": ["-O3", "-Xcompiler=-Wall"]},
        )
    ],
    install_requires=[TORCH],
    cmdclass=CMDCLASS,
)
