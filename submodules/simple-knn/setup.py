"""Build of the compiled part: ``pip install --no-build-isolation ./submodules/simple-knn``.

For CPUs always; for GPUs too where torch was built for CUDA and nvcc is there. FORCE_CUDA=1 makes their absence an
error, FORCE_CUDA=0 builds for CPUs only. The library runs on any x86-64 with AVX2 and chooses its kernels there;
NATIVE=1 builds for this very machine instead. TORCH_CUDA_ARCH_LIST names the GPUs, as for any extension of torch.
"""

import os
import platform
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError as error:
    raise SystemExit("simple-knn: the build needs torch >= 2.4; install it, then add --no-build-isolation") from error


def machine_flags() -> list[str]:
    """Instruction set: none, csrc/cpu chooses when it runs; the builder's own where NATIVE asks for it."""
    if os.environ.get("NATIVE", "0") in ("", "0"):
        return []
    return ["-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native", "-DCPU_KERNELS_NATIVE"]


def with_cuda() -> bool:
    """Whether the GPU's part is built."""
    wanted = os.environ.get("FORCE_CUDA", "")
    if wanted == "0":
        return False
    missing = [] if torch.version.cuda else ["a torch with CUDA"]
    missing += [] if CUDA_HOME else ["nvcc (or CUDA_HOME)"]
    if wanted and missing:
        raise SystemExit(f"simple-knn: FORCE_CUDA={wanted} needs {' and '.join(missing)}")
    if not missing and not torch.cuda.is_available():  # torch would ask the GPUs that it sees
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    return not missing


cuda = with_cuda()
# -fopenmp only here, not for the linker: torch brings the OpenMP runtime, and a second one beside it would fight for
# the cores. -Wno-psabi: vectors are passed between inlined functions only.
flags = ["-O3", "-fopenmp", "-Wno-psabi", "-g0", *machine_flags()]
SOURCES = ["csrc/binding.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))]
SOURCES += ["csrc/cuda/knn_cuda.cu"] if cuda else []
setup(
    ext_modules=[
        (CUDAExtension if cuda else CppExtension)(
            "simple_knn._kernels",
            SOURCES,
            extra_compile_args={"cxx": flags, "nvcc": ["-O3"]},
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
)
