"""Ranks in processes of their own, forked from one that has imported what they need: most of the time of a short run.

The server that forks them has one thread for every operator, as torchrun tells its processes.
"""

import multiprocessing
import multiprocessing.forkserver
import os
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch.distributed as dist

TESTS = Path(__file__).parent
PRELOADED = ["momentum_gs.cli.train", "momentum_gs.experiments.training", "momentum_gs.train.loop", "torch._dynamo"]


def prepare(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """A process that will run ``target``, a function of a module in this folder; starts the server when needed."""
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]))
        context.set_forkserver_preload(PRELOADED)
        multiprocessing.forkserver.ensure_running()
    return context.Process(target=target, args=arguments)


def variables_of(rank: int, ranks: int, store: dist.TCPStore) -> dict[str, str]:
    """The environment variables with which torchrun tells a process on this machine which rank it is."""
    told = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True,
            "TORCHELASTIC_RESTART_COUNT": 0, "OMP_NUM_THREADS": 1, "TORCH_CPP_LOG_LEVEL": "ERROR"}  # fmt: skip
    return {name: str(value) for name, value in told.items()}


def launcher_store() -> dist.TCPStore:
    """The store of a launcher, through which ranks find each other and which outlives them."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def command_line(words: list[str], environment: dict[str, str], stderr: Path) -> None:
    """``momentum-gs WORDS`` as a rank; called in a process of its own.

    Args:
        environment: all environment variables of the process.
        stderr: file for its standard error; what it prints otherwise is not kept.
    """
    os.environ.clear()
    os.environ.update(environment)
    with stderr.open("w") as errors, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(errors.fileno(), 2)
    from momentum_gs.cli.main import main

    raise SystemExit(main(words))


def run_command_line(words: list[str], ranks: int, folder: Path) -> None:
    """Runs ``momentum-gs WORDS`` on several ranks of this machine; a rank that fails fails the test.

    Args:
        folder: where to leave what each rank prints on stderr.
    """
    store = launcher_store()
    errors = [folder / f"stderr_{rank}" for rank in range(ranks)]
    environments = [os.environ | variables_of(rank, ranks, store) for rank in range(ranks)]
    processes = [prepare(command_line, words, *rest) for rest in zip(environments, errors, strict=True)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    statuses = [process.exitcode for process in processes]
    assert statuses == [0] * ranks, "\n".join([str(statuses), *(file.read_text() for file in errors)])
