"""Build of the compiled part: ``pip install --no-build-isolation ./submodules/fused-ssim``.

For CPUs always; for GPUs too where torch was built for CUDA and nvcc is there. FORCE_CUDA=1 makes their absence an
error, FORCE_CUDA=0 builds for CPUs only. PORTABLE=1 builds for any machine of the architecture's current baseline
(x86-64-v3: AVX2) instead of this very one. TORCH_CUDA_ARCH_LIST names the GPUs, as for any extension of torch.
"""

import os
import platform

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError as error:
    raise SystemExit("fused-ssim: the build needs torch >= 2.4; install it, then add --no-build-isolation") from error


def machine_flags() -> list[str]:
    """Instruction set: the builder's own, or the portable baseline."""
    x86 = platform.machine() == "x86_64"
    if os.environ.get("PORTABLE", "0") not in ("", "0"):
        return ["-march=x86-64-v3"] if x86 else []
    return ["-march=native" if x86 else "-mcpu=native"]


def with_cuda() -> bool:
    """Whether the GPU's part is built."""
    wanted = os.environ.get("FORCE_CUDA", "")
    if wanted == "0":
        return False
    missing = [] if torch.version.cuda else ["a torch with CUDA"]
    missing += [] if CUDA_HOME else ["nvcc (or CUDA_HOME)"]
    if wanted and missing:
        raise SystemExit(f"fused-ssim: FORCE_CUDA={wanted} needs {' and '.join(missing)}")
    if not missing and not torch.cuda.is_available():  # torch would ask the GPUs that it sees
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    return not missing


cuda = with_cuda()
# -fopenmp only here, not for the linker: torch brings the OpenMP runtime, and a second one beside it would fight for
# the cores. -Wno-psabi: vectors are passed between inlined functions only.
flags = ["-O3", "-fopenmp", "-Wno-psabi", "-g0", *machine_flags()]
setup(
    ext_modules=[
        (CUDAExtension if cuda else CppExtension)(
            "fused_ssim._kernels",
            ["csrc/binding.cpp", "csrc/cpu/ssim_cpu.cpp", *(["csrc/cuda/ssim_cuda.cu"] if cuda else [])],
            extra_compile_args={"cxx": flags, "nvcc": ["-O3"]},
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
)
