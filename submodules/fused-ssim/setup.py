"""Build of the compiled part: ``pip install --no-build-isolation ./submodules/fused-ssim``.

../build_rules.py says for which machines it is built.
"""

import sys
from pathlib import Path

from setuptools import setup

# Beside the packages' folders; in a source distribution, beside this file.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from build_rules import CMDCLASS, CUDA, MACHINE, TORCH, Extension  # noqa: E402

# -fopenmp only here, not for the linker: torch brings the OpenMP runtime, and a second one beside it would fight for
# the cores. -Wno-psabi: vectors are passed between inlined functions only.
flags = ["-O3", "-fopenmp", "-Wno-psabi", "-g0", *MACHINE]
SOURCES = ["csrc/binding.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
SOURCES += sorted(map(str, Path("csrc/cuda").glob("*.cu"))) if CUDA else []
setup(
    ext_modules=[
        Extension(
            "fused_ssim._kernels",
            SOURCES,
            extra_compile_args={"cxx": flags, "nvcc": ["-O3"]},
        )
    ],
    install_requires=[TORCH],
    cmdclass=CMDCLASS,
)
