"""Build of the compiled part: ``pip install --no-build-isolation ./submodules/fused-ssim``.

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
    x86 = platform.machine() == "x86_64"
    if os.environ.get("PORTABLE", "0") not in ("", "0"):
        return ["-march=x86-64-v3"] if x86 else []
    return ["-march=native" if x86 else "-mcpu=native"]


# -fopenmp only here, not for the linker: torch brings the OpenMP runtime, and a second one beside it would fight for
# the cores. -Wno-psabi: vectors are passed between inlined functions only.
flags = ["-O3", "-fopenmp", "-Wno-psabi", "-g0", *machine_flags()]
setup(
    ext_modules=[
        Extension(
            "fused_ssim._kernels",
            ["csrc/binding.cpp", "csrc/cpu/ssim_cpu.cpp", *(["csrc/cuda/ssim_cuda.cu"] if CUDA else [])],
            extra_compile_args={"cxx": flags, "nvcc": ["-O3"]},
        )
    ],
    install_requires=[TORCH],
    cmdclass=CMDCLASS,
)
