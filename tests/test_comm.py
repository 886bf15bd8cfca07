"""Communication between two processes: sums, flat buffers, and blocks of tensors."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from momentum_gs.core.comm import Comm, LocalComm, connect, launched
from momentum_gs.core.device import pick_device
from momentum_gs.core.watch import Stop


def blocks() -> dict[str, torch.Tensor]:
    """Tensors of every kind that a block holds, with a scalar, one without rows and one that is not contiguous."""
    return {
        "position": torch.randn(1000, 3, generator=torch.Generator().manual_seed(3)),
        "moments": torch.arange(12, dtype=torch.float64).reshape(3, 4).T,
        "mask": torch.tensor([True, False, True]),
        "step": torch.tensor(7, dtype=torch.int64),
        "empty": torch.empty(0, 6),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    }


def check_rank(comm: Comm, device: torch.device) -> None:
    """What each of the two ranks runs: sums on its device and on the host, blocks through the host."""
    assert comm.world_size == 2
    for place in (device, torch.device("cpu")):
        flat = torch.tensor([1.0, 10.0], device=place) * (comm.rank + 1)
        comm.all_reduce_sum_(flat)
        assert flat.tolist() == [3.0, 30.0]

    # A row of each rank: adding zeros keeps every bit.
    rows = torch.zeros(2, 3, device=device)
    rows[comm.rank] = torch.tensor([0.1, 1e-30, -7.0], device=device) * (comm.rank + 1)
    comm.all_reduce_sum_(rows)
    assert torch.equal(rows.cpu(), torch.tensor([0.1, 1e-30, -7.0]) * torch.tensor([[1], [2]]))

    if comm.rank == 0:
        there = {name: tensor.to(device) for name, tensor in blocks().items()}
        comm.send(there, '{"block": 4, "name": "häuser"}', to=1)
        tensors, meta = comm.recv(1)
        assert (tensors, meta) == ({}, "")
    else:
        tensors, meta = comm.recv(0)
        comm.send({}, "", to=0)
        assert meta == '{"block": 4, "name": "häuser"}'
        for name, expected in blocks().items():
            assert tensors[name].dtype == expected.dtype
            assert torch.equal(tensors[name], expected), name
        assert list(tensors) == list(blocks())
    for peer in (comm.rank, 2):
        with pytest.raises(ValueError, match="has no peer"):
            comm.send({}, "", to=peer)
    check_transfers_beside_sums(comm)
    comm.barrier()
    comm.close()


def check_transfers_beside_sums(comm: Comm) -> None:
    """One thread sends blocks while another sums, not in step with the other rank: messages are not mixed up."""
    rounds, other = 100, 1 - comm.rank

    def travel() -> None:
        for i in range(rounds):
            for sender in (0, 1):
                if comm.rank == sender:
                    comm.send({"block": torch.full((1000,), float(i + sender))}, str(i), other)
                else:
                    tensors, meta = comm.recv(other)
                    assert (meta, tensors["block"].unique().tolist()) == (str(i), [float(i + sender)])
            done.append(i)

    done: list[int] = []
    thread = threading.Thread(target=travel)
    thread.start()
    for i in range(3 * rounds):
        summed = torch.tensor([float(i)])
        comm.all_reduce_sum_(summed)
        assert summed.item() == 2 * i
    thread.join()
    assert len(done) == rounds


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu(2))])
def test_two_ranks(device: str) -> None:
    """gloo between CPUs, NCCL between GPUs."""
    # The store of a launcher, on a free port.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # Subprocesses with the variables that torchrun sets: starting torchrun takes seconds.
    ranks = []
    for rank in range(2):
        world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        env = os.environ | world | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        env |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, __file__, device]
        ranks.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    try:
        errors = [rank.communicate()[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)


def test_one_rank_has_the_same_interface_without_communication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with Stop() as stop, launched(stop) as launch:
        comm = connect(torch.device("cpu"), launch)
    assert isinstance(comm, LocalComm)
    assert (comm.rank, comm.world_size) == (0, 1)
    gradient = torch.tensor([1.0, 2.0])
    comm.all_reduce_sum_(gradient)
    comm.barrier()
    assert gradient.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="rank 0 of 1 has no peer 0"):
        comm.recv(0)
    comm.close()


if __name__ == "__main__":
    with Stop() as stop, launched(stop) as launch:
        device = pick_device(sys.argv[1])
        check_rank(connect(device, launch), device)
