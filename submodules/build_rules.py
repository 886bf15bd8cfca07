"""What the four setup.py's share: the torch they build for, whether the GPU's part is built, what a build records.

The CPU's part is always built; the GPU's where torch is a CUDA build and nvcc is there. FORCE_CUDA=1 makes their
absence an error, FORCE_CUDA=0 builds for CPUs only. TORCH_CUDA_ARCH_LIST names the GPUs, as for any extension of torch.

The CPU part runs on any x86-64 with AVX2 and chooses its kernels there; NATIVE=1 builds for this machine alone.
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
    raise SystemExit("build: torch is not there, but the kernels compile against it; install it first, then add "
                     "--no-build-isolation") from error  # fmt: skip

ARCHITECTURES = "8.0;9.0+PTX"
"""GPUs to build for where none is visible: those that scripts/compile_cuda.sh checks, and in PTX those to come."""

TORCH = "torch=={}.{}.*".format(*torch.__version__.split(".")[:2])
"""What a built package requires: a library that was compiled for one minor version of torch fits no other."""


def with_cuda() -> bool:
    """Whether the GPU's part is built; ends the build where it is demanded and cannot be.

    Where no GPU is visible to say for which one, ``ARCHITECTURES`` is set.
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
    if missing is None and not torch.cuda.is_available():  # torch would ask the GPUs that it sees.
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    return missing is None


def machine_flags() -> list[str]:
    """Instruction set: none, as csrc/cpu chooses when it runs; the builder's own where NATIVE asks for it."""
    if os.environ.get("NATIVE", "0") in ("", "0"):
        return []
    return ["-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native", "-DCPU_KERNELS_NATIVE"]


CUDA = with_cuda()
MACHINE = machine_flags()
Extension = CUDAExtension if CUDA else CppExtension


class _Build(BuildExtension):
    """Writes beside each library what it was built for: built.json, which the program compares with what is there."""

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
    """A package's own source distribution carries this file along."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        if not Path(base_dir, "submodules").is_dir():
            shutil.copy(__file__, base_dir)


CMDCLASS = {"build_ext": _Build.with_options(no_python_abi_suffix=True), "sdist": _Sdist}
