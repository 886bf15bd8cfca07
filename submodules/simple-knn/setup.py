"""Build of the compiled part: ``pip install --no-build-isolation ./submodules/simple-knn``.

PORTABLE=1 builds for any machine of the architecture's current baseline (x86-64-v3: AVX2) instead of this very one.
"""

import os
import platform

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit("simple-knn: the build needs torch >= 2.4; install it, then add --no-build-isolation") from error


def machine_flags() -> list[str]:
    """Instruction set: the builder's own, or the portable baseline."""
    x86 = platform.machine() == "x86_64"
    if os.environ.get("PORTABLE", "0") not in ("", "0"):
        return ["-march=x86-64-v3"] if x86 else []
    return ["-march=native" if x86 else "-mcpu=native"]


setup(
    ext_modules=[
        CppExtension(
            "simple_knn._kernels",
            ["csrc/binding.cpp", "csrc/cpu/knn_cpu.cpp"],
            # -fopenmp only here, not for the linker: torch brings the OpenMP runtime, and a second one beside it would
            # fight for the cores. -Wno-psabi: vectors are passed between inlined functions only.
            extra_compile_args=["-O3", "-fopenmp", "-Wno-psabi", "-g0", *machine_flags()],
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
)
