"""Talk between ranks: the only file that imports torch.distributed.

One rank runs the same code through ``LocalComm``, where every collective vanishes. What crosses between ranks is one
flat buffer a step (``sum_over_ranks_``) and blocks of named tensors between rounds (``send`` / ``recv``).
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# A rank may wait while another scores many views or writes a checkpoint; half an hour is a hang, not work.
_TIMEOUT = timedelta(minutes=30)


class Comm(ABC):
    """What the training needs from other ranks."""

    rank: int
    world_size: int

    @abstractmethod
    def all_reduce_sum_(self, flat: Tensor) -> None:
        """Replace ``flat`` on every rank by the sum over ranks; the same bits on every rank."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait for every rank."""

    @abstractmethod
    def send(self, tensors: Mapping[str, Tensor], meta: str, to: int) -> None:
        """Send named tensors and a string to rank ``to``; returns when it has taken them.

        Ranks that exchange several messages must walk one common list of moves in the same order, else two senders
        wait for each other.

        Raises:
            ValueError: if ``to`` is this rank itself or no rank.
        """

    @abstractmethod
    def recv(self, source: int) -> tuple[dict[str, Tensor], str]:
        """Receive what rank ``source`` sent here: tensors on this rank's device, and the string.

        Raises:
            ValueError: if ``source`` is this rank itself or no rank.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the group."""

    def _check_peer(self, peer: int) -> None:
        if peer == self.rank or not 0 <= peer < self.world_size:
            raise ValueError(f"comm: rank {self.rank} of {self.world_size} has no peer {peer}")


class LocalComm(Comm):
    """One rank: sums are themselves and there is nobody to talk to."""

    def __init__(self) -> None:
        self.rank, self.world_size = 0, 1

    def all_reduce_sum_(self, flat: Tensor) -> None:
        pass

    def barrier(self) -> None:
        pass

    def send(self, tensors: Mapping[str, Tensor], meta: str, to: int) -> None:
        self._check_peer(to)

    def recv(self, source: int) -> tuple[dict[str, Tensor], str]:
        self._check_peer(source)
        raise AssertionError("unreachable: one rank has no peer")

    def close(self) -> None:
        pass


class TorchComm(Comm):
    """Ranks of an initialised default process group (gloo on the CPU, NCCL on GPUs)."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world_size, self._device = dist.get_rank(), dist.get_world_size(), device

    def all_reduce_sum_(self, flat: Tensor) -> None:
        # NCCL sums what lies on its GPU; small tables live on the host.
        here = flat.to(self._device)
        dist.all_reduce(here)
        if here is not flat:
            flat.copy_(here)

    def barrier(self) -> None:
        # A sum that is read back: unlike dist.barrier it needs no hint which GPU is this rank's.
        token = torch.zeros(1, device=self._device)
        dist.all_reduce(token)
        token.item()

    def send(self, tensors: Mapping[str, Tensor], meta: str, to: int) -> None:
        # Length of the header, the header (JSON), then the tensors as bytes: nothing is pickled, every dtype travels.
        self._check_peer(to)
        layout = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
        header = bytearray(json.dumps({"meta": meta, "tensors": layout}).encode())
        dist.send(torch.tensor([len(header)], device=self._device), to)
        dist.send(torch.frombuffer(header, dtype=torch.uint8).to(self._device), to)
        for tensor in tensors.values():
            if tensor.numel():
                dist.send(tensor.detach().to(self._device).contiguous().reshape(-1).view(torch.uint8), to)

    def recv(self, source: int) -> tuple[dict[str, Tensor], str]:
        self._check_peer(source)
        length = torch.empty(1, dtype=torch.int64, device=self._device)
        dist.recv(length, source)
        header = torch.empty(int(length), dtype=torch.uint8, device=self._device)
        dist.recv(header, source)
        message = json.loads(header.cpu().numpy().tobytes())
        tensors = {}
        for name, dtype, shape in message["tensors"]:
            tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=self._device)
            if tensors[name].numel():
                dist.recv(tensors[name].reshape(-1).view(torch.uint8), source)
        return tensors, message["meta"]

    def close(self) -> None:
        dist.destroy_process_group()


def connect(device: torch.device) -> Comm:
    """Join the ranks that ``torchrun`` started, or stand alone without it.

    Args:
        device: This rank's device; it decides between NCCL and gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return LocalComm()
    if device.type == "cpu":
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    else:
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=_TIMEOUT)
    return TorchComm(device)


def sum_over_ranks_(tensors: Sequence[Tensor], comm: Comm) -> None:
    """Replace every tensor by its sum over ranks, with one flat buffer and one all-reduce.

    The tensors have one dtype and device, and the same shapes in the same order on every rank.
    """
    if comm.world_size == 1 or not tensors:
        return
    flat = torch.cat([t.reshape(-1) for t in tensors])
    comm.all_reduce_sum_(flat)
    for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(summed.view_as(tensor))
