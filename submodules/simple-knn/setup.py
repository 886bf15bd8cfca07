"""Build of the compiled part: ``pip install --no-build-isolation ./submodules/simple-knn``.

PORTABLE=1 builds for any processor of the architecture instead of this very one.
"""

import os

from setuptools import setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    raise SystemExit("simple-knn: the build needs torch >= 2.4; install it, then add --no-build-isolation") from error

machine = [] if os.environ.get("PORTABLE") == "1" else ["-march=native"]
setup(
    ext_modules=[
        CppExtension(
            "simple_knn._kernels",
            ["csrc/binding.cpp", "csrc/cpu/knn_cpu.cpp"],
            # -fopenmp only here, not for the linker: torch brings the OpenMP runtime, and a second one beside it would
            # fight for the cores. -Wno-psabi: vectors are passed between inlined functions only.
            extra_compile_args=["-O3", "-fopenmp", "-Wno-psabi", "-g0", *machine],
        )
    ],
    cmdclass={"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)},
)
