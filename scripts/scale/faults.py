"""Tests that a run survives killed ranks, a full disk, truncated checkpoints and a missing image. CPU, minutes.

    python scripts/scale/faults.py kill disk cut image [--work FOLDER] [--kills 20] [--seed 0]

A small synthetic city is trained by two processes under torchrun, once without a fault and once with each fault. The
final model (the blocks' PLY files and the decoder) must have the same bytes every time.

kill    SIGKILL to random ranks at random times, with --max-restarts
disk    the output is on a small file system (a tmpfs: needs root) that fills up during the run; then space is freed
cut     the newest checkpoint is truncated, then all of them
image   an image is deleted during the run, and later restored

It prints a table with a row for each fault, and exits with 1 if one was not survived. A fault is survived if the run
ends with one line that names it (kill: continues by itself) and --resume leads to the same model.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
RANKS = 2
SETTINGS = [
    # n = 4 blocks, k = 2, so twice as many global steps.
    "steps=800", "blocks.interval=50", "blocks.active=2", "partition.dim=[2,2,1]", "growth.until=400",
    "log.every=1", "log.tensorboard=false", "log.checkpoint_every=50", "device=cpu",
    # Too little for a single image: each is read from its file whenever it is shown.
    "scene.cache_gb=1e-5",
]  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@dataclass
class Run:
    """One ``momentum-gs train`` of all ranks, running or finished."""

    out: Path
    process: subprocess.Popen[bytes]
    logs: Path
    starts: set[int] = field(default_factory=set)
    """Process ids that rank 0 had whenever ``workers`` was called."""

    def workers(self) -> dict[int, int]:
        """Process id -> rank of the ranks that are alive."""
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
                if parent == self.process.pid:
                    variables = (stat.parent / "environ").read_bytes().split(b"\0")
                    rank = next((int(v[5:]) for v in variables if v.startswith(b"RANK=")), None)
                    if rank is not None:
                        found[int(stat.parent.name)] = rank
            except (FileNotFoundError, ProcessLookupError):
                continue  # It ended while it was looked at.
        self.starts |= {pid for pid, rank in found.items() if rank == 0}
        return found

    def wait_for(self, condition: Callable[[], bool], seconds: float = 600) -> None:
        """Waits until a condition holds; the run must not end before."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                raise SystemExit(f"faults: the run ended too early\n{self.said()}")
            if time.monotonic() > end:
                raise SystemExit(f"faults: waited {seconds:g} s for {self.out} in vain\n{self.said()}")
            time.sleep(0.02)

    def end(self, seconds: float = 1800) -> int:
        """Waits for the end of the run and returns its exit status."""
        return self.process.wait(seconds)

    def said(self) -> str:
        """What the ranks have printed, without the output of the launcher."""
        return "".join(p.read_text(errors="replace") for p in sorted(self.logs.rglob("std*.log")))

    def errors(self) -> list[str]:
        """The lines that give the reason why a run ended; a traceback counts as one."""
        lines = self.said().splitlines()
        return [line for line in lines if line.startswith(("momentum-gs: ", "Traceback"))]


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    fault: str
    survived: bool
    what: str


class Faults:
    """A scene, the model of the run without a fault, and the faults."""

    def __init__(self, work: Path, kills: int, seed: int) -> None:
        self.work, self.kills, self.draw = work, kills, random.Random(seed)
        self.scene, self.plain = work / "scene", work / "plain"

    def prepare(self) -> None:
        """Makes city, coarse model, partition and the run without a fault, unless they exist."""
        if not (self.scene / "synth.json").exists():
            command("synth", str(self.scene), "--blocks-x", "2", "--blocks-y", "2", "--views", "24", "--size", "96x72")
        if not (self.work / "partition.json").exists():
            command("train", *self.flags(self.work / "coarse"), "stage=coarse", "steps=300", "log.checkpoint_every=0")
            command("partition", str(self.scene), *self.flags(self.work)[2:])
        if not (self.plain / "point_cloud").exists():
            shutil.rmtree(self.plain, ignore_errors=True)
            begin = time.monotonic()
            run = self.start(self.plain)
            run.wait_for(lambda: self.steps_of(self.plain) > 0)
            starting = time.monotonic() - begin
            if run.end():
                raise SystemExit(f"faults: the undisturbed run failed\n{run.said()}")
            training = time.monotonic() - begin - starting
            (self.work / "seconds.json").write_text(json.dumps([starting, training]))
            print(f"undisturbed: {self.steps_of(self.plain)} steps in {training:.0f} s, begun after {starting:.0f} s")

    def flags(self, out: Path) -> list[str]:
        """Flags and settings of one run."""
        return ["-s", str(self.scene), "-c", str(ROOT / "configs/demo.yaml"), "-m", str(out), *SETTINGS]

    def start(self, out: Path, *more: str, restarts: int = 0) -> Run:
        """Starts torchrun on ``out``."""
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "partition.json").exists():
            shutil.copy(self.work / "partition.json", out)
        logs = Path(tempfile.mkdtemp(prefix=f"{out.name}-", dir=self.logs()))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]
        command += [f"--max-restarts={restarts}", "--log-dir", str(logs), "--redirects", "3"]
        command += ["-m", "momentum_gs", "train", *self.flags(out), *more]
        with (logs / "launcher.txt").open("w") as words:
            process = subprocess.Popen(command, env=ENVIRONMENT, stdout=words, stderr=words)
        return Run(out, process, logs)

    def logs(self) -> Path:
        """Folder for the output of all processes, not inside the folder of a run, whose disk may be full."""
        folder = self.work / "logs"
        folder.mkdir(exist_ok=True)
        return folder

    def fresh(self, name: str) -> Path:
        """An output folder, emptied of an earlier attempt."""
        shutil.rmtree(self.work / name, ignore_errors=True)
        return self.work / name

    def kill(self) -> Result:
        """SIGKILL to random ranks at random times after their start."""
        starting, training = json.loads((self.work / "seconds.json").read_text())
        # With this mean, most processes reach some step of training. A kill comes at the latest when its share of the
        # steps is done: on a machine that has become faster, the run would otherwise end before the last kill.
        mean = starting + training / self.kills / 2
        run = self.start(self.fresh("kill"), restarts=self.kills + 10)
        total = self.steps_of(self.plain)
        killed, hit = 0, [0] * RANKS
        while killed < self.kills:
            due = time.monotonic() + self.draw.uniform(0, 2 * mean)
            share = total * (killed + 1) // (self.kills + 1)
            while time.monotonic() < due and last_step(run.out) < share and run.process.poll() is None:
                run.workers()
                time.sleep(0.05)
            if run.process.poll() is not None:
                break
            victims = run.workers()
            if victims:
                victim = self.draw.choice(sorted(victims, key=victims.__getitem__))
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # Too late: it had ended.
                killed += 1
                hit[victims[victim]] += 1
        while run.process.poll() is None:
            run.workers()
            time.sleep(0.05)
        same = self.same_model(run.out)
        executed = self.steps_of(run.out)
        what = (
            f"{killed} kills (by rank: {hit}), {len(run.starts) - 1} restarts, {executed - total} of {total} steps "
            f"repeated, model {'equal' if same else 'DIFFERENT or missing'}"
        )
        if killed < self.kills:
            what += "; the run was over before the last kill: more steps are needed"
        return Result("kill", same and killed == self.kills, what)

    def disk(self) -> Result:
        """A file takes the space that the next checkpoint needs."""
        out = self.work / "disk"
        if out.is_mount():
            subprocess.run(["umount", str(out)], check=True)
        out = self.fresh("disk")
        out.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", str(out)], capture_output=True)
        if mounted.returncode:
            raise SystemExit("faults: a small file system cannot be mounted here; run 'disk' as root")
        try:
            run = self.start(out)
            run.wait_for(lambda: any(out.glob("checkpoint/step_*/state.json")))
            size = sum(p.stat().st_size for p in next(out.glob("checkpoint/step_*")).iterdir())
            ballast = out / "ballast"
            free = shutil.disk_usage(out).free
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(free - size // 2, 1))
            return self.ended_and_resumed("disk", run, "disk", ballast.unlink)
        finally:
            subprocess.run(["umount", str(out)], check=True)

    def cut(self) -> Result:
        """Truncates a block's file in the newest checkpoint, as a full disk or an interrupted copy would."""
        run = self.start(self.fresh("cut"))
        folder = run.out / "checkpoint"
        run.wait_for(lambda: len(list(folder.glob("step_*/state.json"))) >= 2)
        for pid in run.workers():
            os.kill(pid, signal.SIGKILL)
        run.end()
        saved = sorted(folder.glob("step_*"), key=lambda p: int(p.name[5:]))
        whole = run.out.with_name("cut_all")
        shutil.rmtree(whole, ignore_errors=True)
        shutil.copytree(run.out, whole)
        halve(saved[-1] / "block_0.safetensors")
        again = self.start(run.out, "--resume")
        status = again.end()
        words = [line for line in again.said().splitlines() if saved[-1].name in line and "block_0" in line]
        same = status == 0 and self.same_model(run.out)
        for path in whole.glob("checkpoint/step_*/block_0.safetensors"):
            halve(path)
        refused = self.start(whole, "--resume")
        status = refused.end()
        errors = refused.errors()
        for line in [*words, *errors]:
            print(f"cut:  {line}", flush=True)
        return Result(
            "cut", same and len(words) == 1 and status != 0 and len(errors) == 1,
            f"newest of {len(saved)}: named {len(words)} time(s), model {'equal' if same else 'DIFFERENT or missing'}; "
            f"all: status {status}, {len(errors)} message(s)",
        )  # fmt: skip

    def image(self) -> Result:
        """Removes the first image in the list of block 0, which is shown within an epoch of its views."""
        run = self.start(self.fresh("image"))
        run.wait_for(lambda: any(run.out.glob("checkpoint/step_*/state.json")))
        table = json.loads((self.work / "partition.json").read_text())
        path = self.scene / "images" / table["views"][0][0]
        aside = self.work / path.name
        path.rename(aside)
        return self.ended_and_resumed("image", run, path.name, lambda: aside.rename(path))

    def ended_and_resumed(self, fault: str, run: Run, named: str, repair: Callable[[], object]) -> Result:
        """Checks how a run ends, repairs the cause and resumes."""
        begin = time.monotonic()
        try:
            status = run.end()
            seconds = time.monotonic() - begin
            errors = run.errors()
        finally:
            repair()
        for line in errors:
            print(f"{fault}: {line}", flush=True)
        again = self.start(run.out, "--resume")
        same = again.end() == 0 and self.same_model(run.out)
        clear = status != 0 and len(errors) == 1 and named in errors[0]
        what = f"status {status} {seconds:.0f} s after the fault, {len(errors)} message(s), resumed: model "
        return Result(fault, clear and same, what + ("equal" if same else f"DIFFERENT or missing ({again.errors()})"))

    def same_model(self, out: Path) -> bool:
        """Whether a run's model has the bytes of the run without a fault."""
        return digests(out) == digests(self.plain)

    def steps_of(self, out: Path) -> int:
        """Steps that a run has done, including repeated ones (log.every=1)."""
        events = out / "events.jsonl"
        return events.read_text(errors="replace").count('"event": "StepDone"') if events.exists() else 0


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of the PLY files and the decoder of a trained model."""
    files = [*out.glob("point_cloud/iteration_*/*.ply"), *out.glob("point_cloud/iteration_*/decoder.safetensors")]
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def last_step(out: Path) -> int:
    """The last step that a run has recorded."""
    events = out / "events.jsonl"
    if not events.exists():
        return 0
    with events.open("rb") as file:
        file.seek(max(0, events.stat().st_size - 4096))
        steps = re.findall(rb'"event": "StepDone", "step": (\d+)', file.read())
    return int(steps[-1]) if steps else 0


def halve(path: Path) -> None:
    """Truncates a file to half; hard links to it keep the whole."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def command(*words: str) -> None:
    """Runs a 'momentum-gs' command."""
    command = [sys.executable, "-m", "momentum_gs", *words]
    subprocess.run(command, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Reads the command line, injects the faults, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="+", choices=["kill", "disk", "cut", "image"])
    parser.add_argument("--work", type=Path, help="folder for the runs, kept; default: a temporary one")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the times and ranks of the kills")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        faults = Faults(work.absolute(), args.kills, args.seed)
        faults.prepare()
        results = [getattr(faults, name)() for name in args.faults]
    print(f"{'fault':<7}{'survived':<10}what happened")
    for result in results:
        print(f"{result.fault:<7}{'yes' if result.survived else 'NO':<10}{result.what}")
    if not all(result.survived for result in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
