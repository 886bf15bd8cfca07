"""The ranks' all-reduce, right and timed: ``torchrun ... scripts/gpu/all_reduce.py cpu|cuda NUMBERS``."""

import json
import os
import statistics
import sys
import time

import torch

from momentum_gs.core.comm import connect, launched
from momentum_gs.core.device import pick_device
from momentum_gs.core.watch import Stop

REPEATS = 11


def main() -> None:
    device = pick_device(sys.argv[1])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with Stop() as stop, launched(stop) as launch:
        comm = connect(device, launch)
        flat = torch.arange(int(sys.argv[2]), dtype=torch.float32, device=device) % 97 * (rank + 1)
        expected = (torch.arange(len(flat), device=device) % 97 * (ranks * (ranks + 1) // 2)).float()
        summed = flat.clone()
        comm.all_reduce_sum_(summed)
        if not torch.equal(summed, expected):
            raise SystemExit(f"all_reduce: rank {rank} has a wrong sum")
        seconds = []
        for _ in range(REPEATS):
            comm.barrier()
            start = time.perf_counter()
            comm.all_reduce_sum_(flat)
            if device.type != "cpu":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
        if rank == 0:
            median = statistics.median(seconds)
            kind = type(comm).__name__
            print("RESULT", json.dumps({"by": kind, "MB": flat.nbytes / 1e6, "ms": round(1e3 * median, 3)}), flush=True)
        comm.close()


if __name__ == "__main__":
    main()
