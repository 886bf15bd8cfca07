"""Communication between ranks: the only file that imports torch.distributed.

A single rank runs the same code with ``LocalComm``, whose collectives do nothing. Ranks exchange one flat buffer per
step (``all_reduce_sum_``), and blocks as named tensors between rounds (``send`` / ``recv``).
"""

import contextlib
import json
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from momentum_gs.core.errors import LostRank, UserError
from momentum_gs.core.watch import SILENCE_SECONDS, Stop, Watch, lay_out

# A rank may wait while another one scores many views or writes a checkpoint, but neither takes half an hour.
_TIMEOUT = timedelta(minutes=30)
# A block is requested at the start of the round before it is needed and arrives at its end, so the wait is as long as a
# round. The watch, not this timeout, finds dead ranks.
_TRANSFER_TIMEOUT = timedelta(days=1)
# Loading programs from a busy network disk takes minutes on some machines.
_JOIN_TIMEOUT = timedelta(minutes=10)
_JOIN_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Launch:
    """What a process knows of the ranks that were started with it."""

    restarts: int
    """How often the launcher has restarted the ranks, as far as this rank knows; 0 for the first attempt."""
    store: dist.Store | None = None
    """Key-value store through which the ranks of this attempt find each other; None for a single rank."""
    watch: Watch | None = None
    """Ends this rank when another one fails; None for a single rank."""


@contextlib.contextmanager
def launched(stop: Stop, silence_seconds: float = SILENCE_SECONDS) -> Iterator[Launch]:
    """Joins the ranks that ``torchrun`` started, if any. Everything that may fail on one rank belongs in its body.

    Args:
        stop: Requests to stop, which launchers also send when a rank has died.
        silence_seconds: Seconds without a sign of life after which a rank counts as lost and the run ends.

    Raises:
        UserError: if the other ranks do not start in time. With several ranks, an exception in the body ends the
            process (``core/watch.py``); with one rank it propagates.
    """
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if world_size == 1:
        yield Launch(restarts)
        return
    # Two connections, because a connection that waits for a key blocks its other users.
    stores = [next(rendezvous("env://", timeout=_JOIN_TIMEOUT))[0] for _ in range(2)]
    attempt = _agree_on_attempt(stores[0], rank, world_size, stop)
    ours, watched = (dist.PrefixStore(f"attempt {attempt}", store) for store in stores)
    with Watch(watched, rank, world_size, stop, silence_seconds) as watch:
        yield Launch(max(restarts, attempt - 1), ours, watch)


def _agree_on_attempt(store: dist.Store, rank: int, world_size: int, stop: Stop) -> int:
    """The number of this attempt, from 1; also creates the keys of its watch. The launcher's store outlives attempts.

    TORCHELASTIC_RESTART_COUNT is no substitute: each machine counts for itself, and only failures of its own ranks. So
    rank 0 counts, and answers the calls of the other ranks. It deletes old calls first; ranks that are alive repeat
    theirs until they are answered, dead ranks of earlier attempts do not.
    """
    deadline = time.monotonic() + _JOIN_TIMEOUT.total_seconds()

    def wait(keys: list[str]) -> bool:
        if stop():
            raise SystemExit(1)
        if time.monotonic() > deadline:
            missing = [key for key in keys if not store.check([key])]
            raise UserError(
                f"ranks: no {', '.join(missing)} within {_JOIN_TIMEOUT}, expected all {world_size} ranks to start; "
                "check the output of their machines"
            )
        time.sleep(_JOIN_POLL_SECONDS)
        return not store.check(keys)

    if rank == 0:
        calls = [f"call of rank {other}" for other in range(1, world_size)]
        for call in calls:
            store.delete_key(call)
        attempt = store.add("attempts", 1)
        lay_out(dist.PrefixStore(f"attempt {attempt}", store), world_size)
        while wait(calls):
            pass
        for caller in store.multi_get(calls):
            store.set(f"answer to {caller.decode()}", str(attempt))
        return attempt
    name = f"rank {rank} {uuid.uuid4().hex}"
    store.set(f"call of rank {rank}", name)
    while wait([f"answer to {name}"]):
        store.set(f"call of rank {rank}", name)
    return int(store.get(f"answer to {name}"))


class Comm(ABC):
    """Communication that training needs."""

    rank: int
    world_size: int

    @abstractmethod
    def all_reduce_sum_(self, flat: Tensor) -> None:
        """Replace ``flat``, on this rank's device or the host, by the sum over all ranks, bit-identical on each."""

    def all_reduce_sums_(self, tensors: Sequence[Tensor]) -> None:
        """``all_reduce_sum_`` of tensors of one dtype on one device, in one message; no message for no tensors."""
        if len(tensors) == 1:
            self.all_reduce_sum_(tensors[0])
        elif tensors and self.world_size > 1:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            self.all_reduce_sum_(flat)
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    @abstractmethod
    def barrier(self) -> None:
        """Wait for every rank. Unfinished work on GPUs is not waited for."""

    @abstractmethod
    def doing(self, what: str) -> None:
        """Note what this rank is doing, e.g. ``step 120, block 5, image 0012.jpg``, for the message if it is lost."""

    @abstractmethod
    def send(self, tensors: Mapping[str, Tensor], meta: str, to: int) -> None:
        """Send named tensors and a string to rank ``to``; returns when that rank has received them.

        ``send`` and ``recv`` use connections of their own, so one thread (not more) may transfer while another one
        reduces. Ranks that exchange several messages must process one common list of moves in the same order, else two
        senders wait for each other.

        Raises:
            ValueError: if ``to`` is this rank itself or no rank.
        """

    @abstractmethod
    def recv(self, source: int) -> tuple[dict[str, Tensor], str]:
        """Receive what rank ``source`` sent here: tensors on the host, and the string.

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
    """A single rank: reductions leave tensors unchanged, and there is no peer."""

    def __init__(self) -> None:
        self.rank, self.world_size = 0, 1

    def all_reduce_sum_(self, flat: Tensor) -> None:
        pass

    def barrier(self) -> None:
        pass

    def doing(self, what: str) -> None:
        pass

    def send(self, tensors: Mapping[str, Tensor], meta: str, to: int) -> None:
        self._check_peer(to)

    def recv(self, source: int) -> tuple[dict[str, Tensor], str]:
        self._check_peer(source)
        raise AssertionError("unreachable: one rank has no peer")

    def close(self) -> None:
        pass


class TorchComm(Comm):
    """Ranks of an initialised default process group (gloo on the CPU, NCCL on GPUs).

    There are two more gloo groups: one for tensors on the host, which NCCL cannot reduce, and one for transfers, since
    the calls of two threads on one group could be matched differently on different ranks.
    """

    def __init__(self, device: torch.device, watch: Watch | None) -> None:
        self.rank, self.world_size, self._device, self._watch = dist.get_rank(), dist.get_world_size(), device, watch
        with _lost_rank():
            self._host = None if device.type == "cpu" else dist.new_group(backend="gloo", timeout=_TIMEOUT)
            self._transfers = dist.new_group(backend="gloo", timeout=_TRANSFER_TIMEOUT)

    def all_reduce_sum_(self, flat: Tensor) -> None:
        with _lost_rank():
            dist.all_reduce(flat, group=None if flat.device.type == self._device.type else self._host)

    def barrier(self) -> None:
        self.all_reduce_sum_(torch.zeros(1))

    def doing(self, what: str) -> None:
        if self._watch is not None:
            self._watch.doing = what

    def send(self, tensors: Mapping[str, Tensor], meta: str, to: int) -> None:
        # The header's length, the header (JSON), then the tensors as bytes: no pickle, and every dtype works.
        self._check_peer(to)
        layout = [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]
        header = bytearray(json.dumps({"meta": meta, "tensors": layout}).encode())
        with _lost_rank():
            dist.send(torch.tensor([len(header)]), to, self._transfers)
            dist.send(torch.frombuffer(header, dtype=torch.uint8), to, self._transfers)
            for tensor in tensors.values():
                if tensor.numel():
                    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                    dist.send(raw, to, self._transfers)

    def recv(self, source: int) -> tuple[dict[str, Tensor], str]:
        self._check_peer(source)
        with _lost_rank():
            length = torch.empty(1, dtype=torch.int64)
            dist.recv(length, source, self._transfers)
            header = torch.empty(int(length), dtype=torch.uint8)
            dist.recv(header, source, self._transfers)
            message = json.loads(header.numpy().tobytes())
            tensors = {}
            for name, dtype, shape in message["tensors"]:
                tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
                if tensors[name].numel():
                    dist.recv(tensors[name].reshape(-1).view(torch.uint8), source, self._transfers)
        return tensors, message["meta"]

    def close(self) -> None:
        dist.destroy_process_group()


@contextlib.contextmanager
def _lost_rank() -> Iterator[None]:
    """Turns torch's error for a broken connection into LostRank, so that the error that caused it takes precedence."""
    try:
        yield
    except RuntimeError as error:
        raise LostRank(f"communication with other ranks broke off: {error}") from error


def connect(device: torch.device, launch: Launch) -> Comm:
    """Connects this rank with the others of its launch.

    Args:
        device: This rank's device; gloo is used on the CPU, NCCL on a GPU.
    """
    if launch.store is None:
        return LocalComm()
    if device.type != "cpu":
        torch.cuda.set_device(device)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with _lost_rank():
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl",
            store=launch.store, rank=rank, world_size=world_size, timeout=_TIMEOUT,
        )  # fmt: skip
    return TorchComm(device, launch.watch)
