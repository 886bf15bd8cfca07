"""One of several ranks that sum in a loop until rank 1 fails."""

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
    """Raises or kills as ``fault`` says; called on rank 1."""
    if fault == "user":
        raise UserError("it is empty")
    if fault == "crash":
        raise ZeroDivisionError
    os.kill(os.getpid(), signal.Signals[fault])


def run_rank(
    fault: str, silence_seconds: float, stopping_silence_seconds: float, variables: dict[str, str], stderr: Path,
    happened: Path,
) -> None:  # fmt: skip
    """Runs a rank; called in a process of its own.

    Args:
        fault: ``user``, ``crash`` or the name of a signal: what happens on rank 1; ``all``: a ``UserError`` everywhere.
        silence_seconds: how long a rank waits for one that gives no sign of life.
        stopping_silence_seconds: the same for a rank that was asked to stop.
        variables: environment variables that a launcher would set.
        stderr: file for the standard error of the rank.
        happened: file that rank 1 creates just before its fault.
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
