"""One of several ranks that sum without end, until rank 1 meets its fault."""

import os
import signal
import time
from pathlib import Path

import torch

from momentum_gs.core import watch
from momentum_gs.core.comm import connect, launched
from momentum_gs.core.errors import UserError, blame

FAULT_STEP = 5


def fail(fault: str) -> None:
    """What goes wrong on rank 1."""
    if fault == "user":
        raise UserError("it is empty")
    if fault == "crash":
        raise ZeroDivisionError
    os.kill(os.getpid(), signal.Signals[fault])


def run_rank(
    fault: str, silence_seconds: float, stopping_silence_seconds: float, variables: dict[str, str], stderr: Path,
    happened: Path,
) -> None:  # fmt: skip
    """A process of its own.

    Args:
        fault: what happens: ``user``, ``crash``, the name of a signal, or ``all``: a ``UserError`` on every rank.
        variables: what a launcher puts into the environment.
        stderr: takes what the rank prints there.
        happened: a file that rank 1 makes just before its fault.
    """
    os.environ.update(variables)
    watch._STOPPING_SILENCE_SECONDS = stopping_silence_seconds
    with stderr.open("w") as file:
        os.dup2(file.fileno(), 2)
    with watch.Stop() as stop, launched(stop, silence_seconds) as launch:
        comm = connect(torch.device("cpu"), launch)
        for step in range(1_000_000):
            comm.doing(f"step {step}")
            with blame(f"step {step}"):
                if fault == "all" and step == FAULT_STEP:
                    raise UserError("all ranks meet this")
                if comm.rank == 1 and step == FAULT_STEP:
                    happened.touch()
                    fail(fault)
            comm.all_reduce_sum_(torch.ones(1))
            time.sleep(0.001)
