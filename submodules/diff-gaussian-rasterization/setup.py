"""Build of the compiled part: ``pip install --no-build-isolation ./submodules/diff-gaussian-rasterization``.

../build_rules.py says for which machines it is built.
"""

import sys
from pathlib import Path

from setuptools import setup

# Beside the packages' folders; in a source distribution, beside this file.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from build_rules import CMDCLASS, CUDA, MACHINE, TORCH, Extension  # noqa: E402

SOURCES = ["csrc/binding.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
SOURCES += sorted(map(str, Path("csrc/cuda").glob("*.cu"))) if CUDA else []
# No errno and no floating-point traps: both only keep the compiler from using vector square roots and selects.
# -fopenmp only here, not for the linker: torch brings the OpenMP runtime, and a second one beside it would fight for
# the cores. -Wno-psabi: vectors are passed between inlined functions only.
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-psabi", *MACHINE]

setup(
    ext_modules=[
        Extension(
            "diff_gaussian_rasterization._kernels",
            SOURCES,
            extra_compile_args={"cxx": FLAGS, "nvcc": ["-O3", "-Xcompiler=-Wall"]},
        )
    ],
    install_requires=[TORCH],
    cmdclass=CMDCLASS,
)
