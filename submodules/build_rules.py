"""Build rules shared by the five setup.py: the torch to build for, whether to build CUDA kernels, the build record.

The CPU kernels are always built, the CUDA kernels if torch is a CUDA build and nvcc is installed. FORCE_CUDA=1 makes it
an error if they cannot be built, FORCE_CUDA=0 builds for CPUs only. TORCH_CUDA_ARCH_LIST names the GPU architectures,
as for any torch extension.

The CPU kernels run on any x86-64 CPU with AVX2 and are chosen at run time; NATIVE=1 builds for this machine only.
"""

import json
import os
import platform
import shutil
from pathlib import Path

from setuptools.command.sdist import sdist

try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError as error:
    raise SystemExit("build: torch is not installed, but the kernels compile against it; install it first, then add "
                     "--no-build-isolation") from error  # fmt: skip

ARCHITECTURES = "8.0;9.0+PTX"
"""GPU architectures to build for if no GPU is visible: those that scripts/compile_cuda.sh checks, and PTX for newer."""

TORCH = "torch=={}.{}.*".format(*torch.__version__.split(".")[:2])
"""Requirement of a built package: a library compiled for one minor version of torch does not work with another."""


def with_cuda() -> bool:
    """Whether to build the CUDA kernels; ends the build if FORCE_CUDA demands them and they cannot be built.

    If no GPU is visible, sets TORCH_CUDA_ARCH_LIST to ``ARCHITECTURES``, unless it is set already.
    """
    wanted = os.environ.get("FORCE_CUDA", "")
    if wanted == "0":
        return False
    missing = None
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch"
    elif CUDA_HOME is None or not Path(CUDA_HOME, "bin", "nvcc").exists():
        missing = f"there is no nvcc; install the CUDA {torch.version.cuda} toolkit and set CUDA_HOME to its folder"
    if missing and wanted:
        raise SystemExit(f"build: FORCE_CUDA={wanted}, but {missing}")
    if missing is None and not torch.cuda.is_available():  # Otherwise torch builds for the visible GPUs.
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    return missing is None


def machine_flags() -> list[str]:
    """Compiler flags for the instruction set: none, as csrc/cpu chooses at run time, or this CPU's with NATIVE=1."""
    if os.environ.get("NATIVE", "0") in ("", "0"):
        return []
    return ["-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native", "-DCPU_KERNELS_NATIVE"]


CUDA = with_cuda()
MACHINE = machine_flags()
Extension = CUDAExtension if CUDA else CppExtension


class _Build(BuildExtension):
    """Writes built.json next to each library: the torch, GPUs and CPU that it was built for, checked at run time."""

    def build_extensions(self) -> None:
        super().build_extensions()
        for extension in self.extensions:
            options = extension.extra_compile_args["cxx"]
            cpu = [option.partition("=")[2] for option in options if option.startswith(("-march=", "-mcpu="))]
            record = {
                "torch": torch.__version__,
                "gpus": os.environ.get("TORCH_CUDA_ARCH_LIST", "those of the builder") if CUDA else None,
                "cpu": cpu[-1] if cpu else None,
            }
            file = Path(self.get_ext_fullpath(extension.name)).with_name("built.json")
            file.write_text(json.dumps(record) + "\n", encoding="utf-8")


class _Sdist(sdist):
    """Adds this file to the source distribution of a single package."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        if not Path(base_dir, "submodules").is_dir():
            shutil.copy(__file__, base_dir)


CMDCLASS = {"build_ext": _Build.with_options(no_python_abi_suffix=True), "sdist": _Sdist}
