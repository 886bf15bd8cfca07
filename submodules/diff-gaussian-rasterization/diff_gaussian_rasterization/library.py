"""The compiled library, loaded when this module is imported: the operators, and whether they run on GPUs."""

from pathlib import Path

import torch


def _load() -> None:
    folder = Path(__file__).parent
    libraries = sorted(folder.glob("_kernels*.so")) + sorted(folder.glob("_kernels*.pyd"))
    if not libraries:
        raise ImportError(
            "diff_gaussian_rasterization: the compiled library is missing; build it with "
            "'pip install --no-build-isolation ./submodules/diff-gaussian-rasterization'"
        )
    torch.ops.load_library(str(libraries[0]))


_load()
OPERATORS = torch.ops.diff_gaussian_rasterization
"""Declared in csrc/binding.cpp."""
HAS_CUDA: bool = torch._C._dispatch_has_kernel_for_dispatch_key("diff_gaussian_rasterization::project", "CUDA")
"""Whether the library was built for GPUs too."""
