"""The device that this process works on. No other file of the package contains a device name."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.kernels import build_record, cpu_kernels, repair
from momentum_gs.core.log import info, warn
from momentum_gs.core.memory import free_memory, peak_memory, total_memory


def pick_device(setting: str) -> torch.device:
    """The device for one process.

    Args:
        setting: ``cpu``, ``cuda``, or ``auto``, which means CUDA where both torch and our kernels support it.

    Returns:
        The CPU, or the GPU with the number of this process's local rank (0 without ``torchrun``).

    Raises:
        UserError: for an unknown setting, for ``cuda`` where it is not available, and for more ranks than GPUs.
    """
    if setting not in ("auto", "cpu", "cuda"):
        raise UserError(f"device: {setting!r}, expected auto, cpu or cuda; set device=auto")
    if setting == "cpu" or (setting == "auto" and _why_no_cuda() is not None):
        return torch.device("cpu")
    if reason := _why_no_cuda():
        raise UserError(f"device: cuda was asked for, but {reason}; set device=auto or device=cpu")
    local_rank, n_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= n_gpus:
        raise UserError(
            f"device: local rank {local_rank} has no GPU of its own, {n_gpus} found; lower --nproc_per_node to {n_gpus}"
        )
    return torch.device("cuda", local_rank)


def print_device(setting: str) -> None:
    """Prints the device and kernels of this process in one line, and warns if a GPU stays unused.

    Args:
        setting: As for ``pick_device``, which also documents the errors.
    """
    device = pick_device(setting)
    if device.type == "cpu":
        built = "for GPUs, too" if _kernels_have_cuda() else "for CPUs only"
        threads = torch.get_num_threads()
        info(f"device   cpu, {threads} thread{'s' * (threads != 1)}, kernels {cpu_kernels()}, built {built}")
    else:
        built = build_record("fused_ssim").get("gpus") or "GPUs of unknown architecture"
        info(f"device   {torch.cuda.get_device_name(device)} ({device}), kernels for {built}")
    if setting == "auto" and device.type == "cpu" and (trouble := _idle_gpu()):
        warn(f"device: {trouble}")


def visible_gpus(setting: str) -> list[str]:
    """The GPUs that a process with this setting may work on, as CUDA_VISIBLE_DEVICES names them; none for the CPU."""
    if pick_device(setting).type == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def pins_memory(device: torch.device) -> bool:
    """Whether tensors copied to and from the device should be in page-locked host memory."""
    return device.type == "cuda"


def free_device_memory(device: torch.device) -> int:
    """Bytes of memory that are free on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def total_device_memory(device: torch.device) -> int:
    """Bytes of memory that a device has in total."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else total_memory()


def device_use(device: torch.device) -> dict[str, str | int]:
    """Fields for a record of a run: the device's name, the peak memory so far in bytes, and what that counts."""
    if device.type == "cuda":
        return {
            "device": torch.cuda.get_device_name(device),
            "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
            "peak_memory_of": "tensors on the GPU",
        }
    return {
        "device": f"CPU, {torch.get_num_threads()} threads",
        "peak_memory_bytes": peak_memory(),
        "peak_memory_of": "process, resident, since its start",
    }


def beside(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor.to(like)``, without waiting for a GPU's earlier work where the tensor comes from host memory.

    CUDA copies from pageable memory before the call returns, so the tensor may then be changed or freed.
    """
    return tensor.to(like, non_blocking=not tensor.is_cuda)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of host memory on the device; to a GPU through page-locked memory, without waiting for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if pins_memory(device) else tensor.to(device)


class Sent:
    """A tensor on its way to a device."""

    def __init__(self, tensor: Tensor, hold: Callable[..., None] | None) -> None:
        """``hold``: lets a stream wait for the copy; None: it is done."""
        self._tensor, self._hold = tensor, hold

    def take(self) -> Tensor:
        """The tensor, for work that is queued from now on, which waits for the copy; the host does not."""
        if self._hold is not None:
            stream = torch.cuda.current_stream(self._tensor.device)
            self._hold(stream)
            # Its memory is the copying stream's, which must not use it again while this stream reads it.
            self._tensor.record_stream(stream)
        return self._tensor


class Sender:
    """Copies tensors of host memory to a device beside its other work, ahead of the work that needs them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if pins_memory(device) else None

    @property
    def ahead(self) -> bool:
        """Whether sending ahead of need saves anything: not on a CPU."""
        return self._stream is not None

    def send(self, tensor: Tensor) -> Sent:
        """Starts to copy a tensor; it may be changed or freed at once."""
        if self._stream is None:
            return Sent(tensor.to(self._device), None)
        with torch.cuda.stream(self._stream):
            copy = tensor.pin_memory().to(self._device, non_blocking=True)
            return Sent(copy, self._stream.record_event().wait)


def to_host(tensor: Tensor) -> Tensor:
    """The tensor in host memory: a page-locked copy of one on a GPU, else the tensor itself."""
    if not pins_memory(tensor.device):
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def _why_no_cuda() -> str | None:
    """Why CUDA cannot be used; None if it can."""
    if not torch.cuda.is_available():
        return "torch finds no usable GPU"
    return None if _kernels_have_cuda() else f"the extensions were built without it ({repair(with_gpu=True)})"


def _kernels_have_cuda() -> bool:
    from fused_ssim import has_cuda  # The extensions are built together, so one answers for all.

    return bool(has_cuda())


def _idle_gpu() -> str | None:
    """Why this machine's GPU is not used, and what to do; None if there is none, or if it was hidden."""
    if torch.cuda.is_available():
        return f"a GPU is visible but not used, as the extensions are built for CPUs only; {repair(with_gpu=True)}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or not (any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi")):
        return None
    if torch.version.cuda is None:
        return (
            f"this machine has a GPU, but torch {torch.__version__} is built without CUDA, so it is not used; install "
            f"a CUDA build of torch, then {repair(with_gpu=True)}"
        )
    return f"this machine has a GPU, but torch {torch.__version__} cannot use it; look at what nvidia-smi says"
