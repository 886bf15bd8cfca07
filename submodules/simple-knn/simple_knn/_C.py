"""The interface that 3DGS codebases import. ``reference.py`` is the same in readable PyTorch."""

from pathlib import Path

import torch
from torch import Tensor

_LIBRARY = Path(__file__).parent / "_kernels.so"
_BUILD = "pip install --no-build-isolation ./submodules/simple-knn"
try:
    torch.ops.load_library(_LIBRARY)
except OSError as error:
    state = "does not fit this torch" if _LIBRARY.exists() else "is not there"
    raise ImportError(f"simple_knn: the compiled part {state}; build it: {_BUILD}") from error


def has_cuda() -> bool:
    """Whether the compiled part was built for GPUs too."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("simple_knn::mean_squared_distance", "CUDA")


def cpu_kernels() -> str:
    """The variant of the CPU kernels that is used: ``x86-64-v4`` (AVX-512) or ``x86-64-v3`` (AVX2).

    It is the best that this CPU supports, or the one that the environment variable MOMENTUM_GS_CPU names (``v4``,
    ``v3``) when the first kernel runs. A build with NATIVE=1 has one variant, ``native``; other architectures have
    ``plain``.

    Raises:
        RuntimeError: no variant runs on this CPU, or MOMENTUM_GS_CPU names a variant that does not exist.
    """
    return torch.ops.simple_knn.cpu_kernels()


def distCUDA2(points: Tensor) -> Tensor:  # the name in 3DGS codebases
    """Mean squared distance of every point to its three nearest other points, exact, on the device of ``points``.

    Args:
        points: [N,3] float32 or float64, finite. Copies of a point are its neighbours at distance 0.

    Returns:
        [N]; with fewer than four points the mean over those that exist, 0 for a single one. Not differentiable.

    Raises:
        RuntimeError: for another shape or dtype, or a point that is not finite.
    """
    return torch.ops.simple_knn.mean_squared_distance(points.detach())


@torch.library.register_fake("simple_knn::mean_squared_distance")
def _(points: Tensor) -> Tensor:
    return points.new_empty(points.shape[0])
