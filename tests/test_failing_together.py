"""Ranks that end together and with one message, and how their run is resumed.

A rank that waited for one that has failed would wait for ``PATIENT`` seconds, longer than the time limit of a test.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_run
import torch
from failing_rank import run_rank
from forked_ranks import launcher_store, prepare, variables_of
from tiny_run import BASE, SETTINGS, assert_same_bits, finish, make_config, model_of, write_table
from tiny_scene import write_tiny_scene

from momentum_gs.cli import train
from momentum_gs.core.comm import Launch, LocalComm
from momentum_gs.core.errors import UserError, blame
from momentum_gs.core.watch import Stop
from momentum_gs.experiments import training

ROOT = Path(__file__).parents[1]
SILENCE = 2.0
PATIENT = 86400.0
"""Seconds of silence, longer than any test runs."""


def environment(**variables: object) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | {k: str(v) for k, v in variables.items()}


@dataclass
class Ended:
    """How three ranks ended."""

    statuses: list[int | None]
    printed: list[str]
    """What each printed on stderr."""


class Ranks:
    """Runs three ranks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, fault: str, silence: float = PATIENT, terminate: bool = False) -> Ended:
        """``terminate``: send SIGTERM to the other ranks after the fault, as a launcher does."""
        store = launcher_store()
        happened, errors = self._folder / "happened", [self._folder / f"rank_{rank}" for rank in range(3)]
        processes = []
        for rank in range(3):
            told = variables_of(rank, 3, store)
            processes.append(prepare(run_rank, fault, silence, SILENCE, told, errors[rank], happened))
            processes[-1].start()
        try:
            while fault != "all" and not happened.exists() and processes[1].is_alive():
                time.sleep(0.01)
            for rank in (0, 2) if terminate else ():
                processes[rank].terminate()
            for rank, process in enumerate(processes):
                if (fault, rank) != ("SIGSTOP", 1):
                    process.join()
        finally:
            for process in processes:
                process.kill()
                process.join()
        return Ended([process.exitcode for process in processes], [file.read_text() for file in errors])


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    return Ranks(tmp_path)


@pytest.mark.slow
def test_an_error_ends_all_ranks_with_one_line(ranks: Ranks) -> None:
    ended = ranks("user")
    assert ended.printed == ["", "momentum-gs: [rank 1] step 5: it is empty\n", ""]
    assert ended.statuses == [1, 2, 1]


@pytest.mark.slow
def test_a_crash_ends_all_ranks_with_one_traceback(ranks: Ranks) -> None:
    ended = ranks("crash")
    assert (ended.printed[0], ended.printed[2]) == ("", "")
    assert ended.printed[1].startswith("momentum-gs: [rank 1] Traceback")
    assert "ZeroDivisionError\nat step 5\n" in ended.printed[1]
    assert ended.statuses == [1, 1, 1]


@pytest.mark.slow
def test_an_error_on_all_ranks_is_printed_once(ranks: Ranks) -> None:
    ended = ranks("all")
    assert "".join(ended.printed).count("all ranks meet this") == 1
    assert sorted(ended.statuses) == [1, 1, 2]


@pytest.mark.slow
def test_a_killed_rank_is_named_once(ranks: Ranks) -> None:
    # No launcher ends the others here, so they must find out which rank is gone.
    ended = ranks("SIGKILL")
    assert ended.statuses == [1, -signal.SIGKILL, 1]
    printed = "".join(ended.printed)
    assert printed.count("momentum-gs: ") == printed.count("\n") == 1
    assert "rank 1 of 3 (on " in printed
    assert "is gone" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("silence", "terminate"), [(SILENCE, False), (PATIENT, True)])
def test_a_frozen_rank_is_named_once(ranks: Ranks, silence: float, terminate: bool) -> None:
    # A rank that is asked to stop waits for a shorter time. It receives the signal although its main thread waits in a
    # sum, where Python runs no handlers.
    ended = ranks("SIGSTOP", silence, terminate)
    assert (ended.statuses[0], ended.statuses[2]) == (1, 1)
    printed = "".join(ended.printed)
    assert printed.count("momentum-gs: ") == printed.count("\n") == 1
    assert "rank 1 of 3 (on " in printed
    assert f"has given no sign of life for {SILENCE:g} s" in printed


def test_blame_names_the_place() -> None:
    with pytest.raises(UserError, match=r"^block 3: image x.png: is black$"), blame("block 3"), blame("image x.png"):
        raise UserError("is black")
    with pytest.raises(KeyError) as caught, blame("block 3"):
        raise KeyError("x")
    assert getattr(caught.value, "__notes__", ["at block 3"]) == ["at block 3"]  # Notes came with Python 3.11.


def test_a_stop_is_noted_and_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # At the same time: one request, from scheduler and launcher.
        assert stop()
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_a_second_interruption_ends_at_once() -> None:
    code = (
        "import os, signal\n"
        "from types import SimpleNamespace\n"
        "from momentum_gs.core import watch\n"
        "clock = [100.0]\n"
        "watch.time = SimpleNamespace(monotonic=lambda: clock[0])\n"
        "with watch.Stop() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    clock[0] += watch._SAME_REQUEST_SECONDS / 2\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"  # The same request.
        "    clock[0] += watch._SAME_REQUEST_SECONDS\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "raise SystemExit('the second interruption had no effect')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), check=False)
    assert done.returncode == 128 + signal.SIGINT


def train_arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(argv)


def test_only_restarted_ranks_of_the_same_launch_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resumes(restarts: int, *argv: str) -> bool:
        args = train_arguments(*argv)
        return training._resumes(args.resume, bool(args.only_blocks), tmp_path, Launch(restarts), LocalComm())

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ours")
    assert not resumes(0)
    assert resumes(0, "--resume")
    (tmp_path / ".launch").write_text("ours")
    assert not resumes(1), "killed before the first checkpoint"
    (tmp_path / "checkpoint" / "step_20").mkdir(parents=True)
    assert resumes(1)
    assert resumes(0, "--resume")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "of somebody else")
    with pytest.raises(UserError, match="holds a run; continue it with --resume"):
        resumes(1)
    # Refused at the start is refused when the launcher tries again, even if the earlier run's launch had the same name.
    (tmp_path / ".launch").write_text("of somebody else")
    for restarts in (0, 1):
        with pytest.raises(UserError, match="holds a run"):
            resumes(restarts)


def test_output_folders_that_ranks_do_not_share_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On rank 0 the check writes nothing that stays; on rank 1 the folder of rank 0 is missing."""
    monkeypatch.setattr(training, "_SHARED_SECONDS", 0.1)
    comm = LocalComm()
    comm.world_size = 2
    training._check_shared(tmp_path / "rank0", comm)
    assert list(tmp_path.iterdir()) == [tmp_path / "rank0"]
    assert list((tmp_path / "rank0").iterdir()) == [], "nothing is left behind"
    comm.rank = 1
    with pytest.raises(UserError, match=rf"rank1: {socket.gethostname()} does not find there"):
        training._check_shared(tmp_path / "rank1", comm)


# Training runs: two ranks, 30 steps of each of four blocks, two at a time: 60 global steps, a checkpoint every 10.
RUN = [*SETTINGS, "steps=30", "log.every=1", "log.checkpoint_every=10", "log.keep_checkpoints=1000"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"))


def start(scene: Path, out: Path, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Starts training with torchrun, as a user would."""
    if not out.exists():
        write_table(make_config(scene, out))
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *launcher]
    argv += ["-m", "momentum_gs", "train", *BASE, "-s", str(scene), "-m", str(out), *RUN, "device=cpu", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(argv, env=environment(), cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    """Returns when the run has done ``step`` steps."""
    while process.poll() is None:
        if (out / "events.jsonl").exists():
            lines = (out / "events.jsonl").read_text().splitlines()
            if any(json.loads(line).get("step", 0) >= step for line in lines[:-1]):
                return
        time.sleep(0.05)
    pytest.fail(f"step {step} was not reached: {finish(process)[1]}")


def worker(launcher: int, rank: int) -> int:
    """Process id of a rank."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"rank {rank} is not there")


@pytest.fixture(scope="module")
def undisturbed(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The model of a run without faults, on one rank: any number of ranks gives the same bits (test_training.py)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # As the ranks have.
    out = tmp_path_factory.mktemp("undisturbed")
    tiny_run.train(make_config(scene, out, *RUN))
    torch.set_num_threads(threads)
    return model_of(out)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks' processes in /proc")
def test_a_run_that_is_killed_then_stopped_ends_the_same(
    scene: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(scene, out, launcher=("--max-restarts=1",))
    wait_for_step(process, out, 13)
    os.kill(worker(process.pid, 1), signal.SIGKILL)
    wait_for_step(process, out, 33)
    process.terminate()  # The launcher forwards the signal.
    printed, errors = finish(process)
    assert re.search(
        r"train: the ranks were started again; continuing from step_\d+\n"
        r"train: stopped by SIGTERM at step \d+, saved; continue with --resume\n", printed
    )  # fmt: skip
    # The launcher reports the killed rank. If that died in the middle of a transfer, gloo does not tell the
    # other rank, which then waits until the watch ends it.
    silent = r"momentum-gs: rank 1 of 2 \(.*\) has given no sign of life for 20 s"
    assert all(re.fullmatch(silent, line) for line in errors.splitlines() if line.startswith("momentum-gs: "))
    assert not (out / "point_cloud").exists()

    process = start(scene, out, "--resume")
    errors = finish(process)[1]
    assert process.returncode == 0, errors
    assert_same_bits(model_of(out), undisturbed)


@pytest.mark.slow
def test_an_unreadable_image_ends_all_with_block_and_name(scene: Path, tmp_path: Path) -> None:
    images = shutil.copytree(scene, tmp_path / "scene")
    target = images / "images" / "005.png"
    target.write_bytes(target.read_bytes()[:200])  # Its size can be read, its pixels cannot.
    process = start(images, tmp_path / "run")
    errors = finish(process)[1]
    assert process.returncode != 0
    assert errors.count("momentum-gs: ") == 1
    line = next(line for line in errors.splitlines() if line.startswith("momentum-gs: "))
    assert "block " in line
    assert "005.png" in line
    assert "exitcode  : 2" in errors, "torchrun reports the rank that printed the error"


@pytest.fixture
def machines() -> Iterator[tuple[list[str], list[str]]]:
    """Two connected network namespaces: for each, the words that run a command in it."""
    names = [f"mgs{os.getpid()}a", f"mgs{os.getpid()}b"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", names[0], "netns", names[0], "type", "veth", "peer", "name", names[1], "netns", names[1])
        for i, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{i + 1}/24", "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield tuple(["ip", "netns", "exec", name, "env", f"IFACE={name}"] for name in names)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces are not permitted here: {error}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_machines(
    machines: tuple[list[str], list[str]], scene: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    write_table(make_config(scene, out))
    agents = []
    for i, on_machine in enumerate(machines):
        variables = ["NODES=2", f"NODE_RANK={i}", "PROCS=1", "RESTARTS=0", "MASTER=10.77.0.1"]
        variables += [f"ADDRESS=10.77.0.{i + 1}", f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"]
        argv = ["bash", str(ROOT / "scripts" / "launch" / "torchrun_nodes.sh"), *BASE, "-s", str(scene)]
        argv += ["-m", str(out), *RUN, "device=cpu"]
        command = [*on_machine, *variables, *argv]
        agents.append(subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True))
    errors = [finish(agent)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(errors)
    assert_same_bits(model_of(out), undisturbed)
