"""Builds the CPU backend for the machine it runs on.

DGR_PORTABLE=1 builds for any machine of the architecture's current baseline (x86-64-v3: AVX2) instead.
"""

import os
import platform

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit(
        "diff-gaussian-rasterization: building needs torch; install torch, then "
        "pip install --no-build-isolation ./submodules/diff-gaussian-rasterization"
    ) from error


def machine_flags() -> list[str]:
    """Instruction set: the builder's own, or the portable baseline."""
    if os.environ.get("DGR_PORTABLE", "0") not in ("", "0"):
        return ["-march=x86-64-v3"] if platform.machine() in ("x86_64", "AMD64") else []
    return ["-mcpu=native"] if platform.machine() in ("arm64", "aarch64") else ["-march=native"]


SOURCES = ["csrc/binding.cpp", "csrc/cpu/composite.cpp", "csrc/cpu/project.cpp", "csrc/cpu/sh.cpp"]
# No errno and no floating-point traps: both only keep the compiler from using vector square roots and selects.
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall"]

setup(
    ext_modules=[
        CppExtension(
            "diff_gaussian_rasterization._C",
            SOURCES,
            extra_compile_args=FLAGS + machine_flags(),
            extra_link_args=["-fopenmp"],
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
