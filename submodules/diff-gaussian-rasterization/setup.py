"""Build of the compiled part: ``pip install --no-build-isolation ./submodules/diff-gaussian-rasterization``.

The CPU drivers always; the CUDA drivers where torch is a CUDA build and nvcc is there. FORCE_CUDA=1 insists on them
(on a machine without a GPU name the target in TORCH_CUDA_ARCH_LIST), FORCE_CUDA=0 leaves them out. The library
runs on any x86-64 with AVX2 and chooses its kernels there; NATIVE=1 builds for this very machine instead.
"""

import os
import platform
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError as error:
    raise SystemExit(
        "diff-gaussian-rasterization: the build needs torch >= 2.4; install it, then add --no-build-isolation"
    ) from error


def machine_flags() -> list[str]:
    """Instruction set: none, csrc/cpu chooses when it runs; the builder's own where NATIVE asks for it."""
    if os.environ.get("NATIVE", "0") in ("", "0"):
        return []
    return ["-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native", "-DCPU_KERNELS_NATIVE"]


def with_cuda() -> bool:
    """Whether to build the CUDA drivers; ends the build where they are demanded and cannot be."""
    wanted = os.environ.get("FORCE_CUDA", "")
    if wanted == "0":
        return False
    missing = None
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"
    elif CUDA_HOME is None or not Path(CUDA_HOME, "bin", "nvcc").exists():
        missing = f"there is no nvcc; install the CUDA {torch.version.cuda} toolkit and set CUDA_HOME to its folder"
    if missing and wanted:
        raise SystemExit(f"diff-gaussian-rasterization: FORCE_CUDA={wanted}, but {missing}")
    return missing is None


CUDA = with_cuda()
SOURCES = ["csrc/binding.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
SOURCES += sorted(map(str, Path("csrc/cuda").glob("*.cu"))) if CUDA else []
# No errno and no floating-point traps: both only keep the compiler from using vector square roots and selects.
# -fopenmp only here, not for the linker: torch brings the OpenMP runtime, and a second one beside it would fight for
# the cores. -Wno-psabi: vectors are passed between inlined functions only.
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wno-psabi", *machine_flags()]

setup(
    ext_modules=[
        (CUDAExtension if CUDA else CppExtension)(
            "diff_gaussian_rasterization._C",
            SOURCES,
            extra_compile_args={"cxx": FLAGS, "nvcc": ["-O3", "-Xcompiler=-Wall"]},
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
