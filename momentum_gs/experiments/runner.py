"""Runs long jobs in parallel: each is a chain of commands in its own folder, which may be interrupted.

Nothing is done twice. A job's folder records its finished stages, an interrupted training resumes from its checkpoint,
and a lock shows that a process works on the job. The commands inherit the lock: if a sweep is killed but its training
continues, the next sweep waits for that training and continues from there.
"""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tqdm import tqdm

from momentum_gs.core.files import replacing
from momentum_gs.core.log import info, progress, warn
from momentum_gs.train.checkpoint import checkpoints

POLL_SECONDS = 0.2
STOP_SECONDS = 120.0
"""Time that a training gets to finish its step and write its checkpoint before it is killed."""
_STATE = "sweep.json"


@dataclass(frozen=True)
class Stage:
    """One command of a job."""

    name: str
    command: tuple[str, ...]
    leaves: str
    """Glob pattern of a file that it writes into the job's folder. It shows that the stage is complete, as a training
    that was asked to stop also ends with status 0."""


@dataclass(frozen=True)
class Job:
    """A folder and the commands that fill it."""

    name: str
    folder: Path
    settings: str
    """Text of ``settings.yaml`` in the folder, which the commands read."""
    stages: tuple[Stage, ...]
    finished: Callable[[], bool]
    """Whether there is nothing left to do; called while holding the lock."""
    tidy: Callable[[], None]
    """Called after the last stage, to remove what is no longer needed."""
    needs: tuple[str, ...] = ()
    """Names of jobs that must finish first; if one of them fails, this one fails, too."""

    @property
    def log(self) -> Path:
        """Output of the commands."""
        return self.folder / "sweep.log"


def stages_done(folder: Path) -> list[str]:
    """Names of a job's finished stages."""
    path = folder / _STATE
    return json.loads(path.read_text())["done"] if path.exists() else []


def mark_done(folder: Path, stages: Sequence[str]) -> None:
    """Records the names of a job's finished stages, for ``stages_done``."""
    with replacing(folder / _STATE) as part:
        part.write_text(json.dumps({"done": list(stages)}) + "\n")


@dataclass
class _Running:
    job: Job
    lock: IO[str]
    slot: Mapping[str, str]
    stage: Stage
    process: subprocess.Popen[bytes]


def run_jobs(jobs: Sequence[Job], slots: Sequence[Mapping[str, str]], stop: Callable[[], bool]) -> dict[str, str]:
    """Runs jobs, as many at a time as there are slots.

    Args:
        jobs: In the order in which they start, as far as their needs allow. A job that another process works on starts
            once that process is done.
        slots: One job runs in each slot; a slot is the environment variables for its commands.
        stop: Polled; once it returns true, the commands are told to stop and waited for.

    Returns:
        Name -> reason, for the jobs that failed.

    Raises:
        KeyboardInterrupt: once ``stop`` is set and all commands have ended.
    """
    work = _Work(list(jobs), list(slots), progress(len(jobs), "sweep"))
    try:
        while work.waiting or work.running:
            if stop():
                raise KeyboardInterrupt
            work.go_on()
            work.begin()
            work.bar.set_postfix_str(", ".join(f"{item.job.name}: {item.stage.name}" for item in work.running))
            time.sleep(POLL_SECONDS)
    finally:
        _end(work.running)
        work.bar.close()
    return work.failed


@dataclass
class _Work:
    """The waiting, running and failed jobs."""

    waiting: list[Job]
    free: list[Mapping[str, str]]
    """Slots without a job."""
    bar: tqdm
    running: list[_Running] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    """Jobs that were found locked by another process."""

    def go_on(self) -> None:
        """For each command that has ended, starts the job's next one, or records the job as finished or failed."""
        for item in list(self.running):
            if item.process.poll() is None:
                continue
            reason = _after(item)
            if reason is None and (stage := _next_stage(item.job)) is not None:
                item.stage, item.process = stage, _start(item.job, stage, item.slot, item.lock)
                continue
            if reason is None and not item.job.finished():
                reason = "the last command left no complete results"
            if reason is None:
                item.job.tidy()
                info(
                    f"sweep: {item.job.name} is finished; {len(self.waiting)} waiting, {len(self.running) - 1} running"
                )
            else:
                self.failed[item.job.name] = reason
                warn(f"sweep: {item.job.name} failed: {reason}; its log: {item.job.log}")
            self.running.remove(item)
            item.lock.close()
            self.free.append(item.slot)
            self.bar.update()

    def begin(self) -> None:
        """Starts waiting jobs as far as slots, needs and locks allow."""
        for job in list(self.waiting):
            if lost := [name for name in job.needs if name in self.failed]:
                self.waiting.remove(job)
                self.failed[job.name] = f"it needs the {lost[0]}"
                self.bar.update()
                continue
            if not self.free:
                return
            if any(other.name in job.needs for other in (*self.waiting, *(item.job for item in self.running))):
                continue
            lock = _locked(job.folder / ".lock")
            if lock is None:
                if job.name not in self.elsewhere:
                    self.elsewhere.add(job.name)
                    info(f"sweep: {job.name} is run by another process; waiting for it")
                continue
            self.waiting.remove(job)
            if job.finished():
                lock.close()
                self.bar.update()
                continue
            slot, stage = self.free.pop(0), _next_stage(job) or _last_again(job)
            self.running.append(_Running(job, lock, slot, stage, _start(job, stage, slot, lock)))


def _locked(path: Path) -> IO[str] | None:
    """The open lock file, or None if another process holds the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _next_stage(job: Job) -> Stage | None:
    done = stages_done(job.folder)
    return next((stage for stage in job.stages if stage.name not in done), None)


def _last_again(job: Job) -> Stage:
    """The last stage, to repeat: all stages of the job are done, but its results are missing or damaged."""
    *before, last = job.stages
    mark_done(job.folder, [stage.name for stage in before])
    return last


def _start(job: Job, stage: Stage, slot: Mapping[str, str], lock: IO[str]) -> subprocess.Popen[bytes]:
    with replacing(job.folder / "settings.yaml") as part:
        part.write_text(job.settings)
    command = list(stage.command)
    if stage.name == "train" and checkpoints(job.folder / "checkpoint"):
        command.append("--resume")
    with job.log.open("a") as log:
        log.write(f"== {stage.name}: {shlex.join(command)}\n")
        log.flush()
        # In a session of its own, so that a command gets the signal of a Ctrl-C only once, from ``_end``.
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot},
            pass_fds=(lock.fileno(),),
            start_new_session=True,
        )


def _after(item: _Running) -> str | None:
    """Records the stage as done if its command succeeded; otherwise returns the reason of the failure."""
    code, job, stage = item.process.returncode, item.job, item.stage
    if code < 0:
        return f"{stage.name} was ended by {signal.Signals(-code).name}"
    if code > 0:
        lines = job.log.read_text(errors="replace").splitlines()
        return f"{stage.name} ended with status {code}: {lines[-1].strip()}"
    if next(job.folder.glob(stage.leaves), None) is None:
        return f"{stage.name} was stopped before its end"
    mark_done(job.folder, [*stages_done(job.folder), stage.name])
    return None


def _end(running: Sequence[_Running]) -> None:
    """Tells the commands to stop, so that a training writes a checkpoint, and kills those that do not in time."""
    for send in (signal.SIGTERM, signal.SIGKILL):
        for item in running:
            if item.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):  # It has just ended.
                    os.killpg(item.process.pid, send)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline and any(item.process.poll() is None for item in running):
            time.sleep(POLL_SECONDS)
    for item in running:
        item.lock.close()
