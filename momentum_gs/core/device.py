"""Which device this process works on. No other file of the package names one."""

import os

import torch
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.memory import free_memory, peak_memory, total_memory


def pick_device(setting: str) -> torch.device:
    """The device for one process.

    Args:
        setting: ``cpu``, ``cuda``, or ``auto``, which means CUDA where both torch and our kernels have it.

    Returns:
        The CPU, or under ``torchrun`` the GPU of this process' local rank.

    Raises:
        UserError: for an unknown setting, or for CUDA that is not there.
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


def visible_gpus(setting: str) -> list[str]:
    """The GPUs that a process with this setting may work on, as CUDA_VISIBLE_DEVICES names them; none for the CPU."""
    if pick_device(setting).type == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def pins_memory(device: torch.device) -> bool:
    """Whether what travels to and from the device should lie in page-locked host memory."""
    return device.type == "cuda"


def free_device_memory(device: torch.device) -> int:
    """Bytes that can be had on a device without taking them from anybody."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()


def total_device_memory(device: torch.device) -> int:
    """Bytes that a device has, whoever uses them."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else total_memory()


def device_use(device: torch.device) -> dict[str, str | int]:
    """What a record says of the machine: the device's name, the peak memory so far in bytes, and what that counts."""
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


def to_host(tensor: Tensor) -> Tensor:
    """The tensor in host memory, page-locked where it comes from a GPU; itself where it is there already."""
    if not pins_memory(tensor.device):
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def _why_no_cuda() -> str | None:
    """The reason why CUDA cannot be used, None where it can."""
    if not torch.cuda.is_available():
        return "torch finds no usable GPU"
    from fused_ssim import has_cuda  # the three extensions are built together, so one answers for all

    return None if has_cuda() else "the extensions were built without it (rebuild them: bash scripts/setup.sh)"
