"""How much 'train --view' slows a training step, measured alternately on one run.

    python scripts/view_cost.py OUT [--periods 12] [--steps 20]

Takes the settings of OUT (a finished run of several blocks) and trains in a temporary folder, alternately for a few
steps without a viewer, with one that asks for the model ('copied'), and with one that also renders all the time in a
process of low priority, as if a browser's camera never rested ('rendered'). Prints the median step of each.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from momentum_gs.config.run import load_run_config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.device import pick_device
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.train.events import Event, Observers, StepDone, TrainingState
from momentum_gs.train.loop import Training
from momentum_gs.viewer.companion import NICENESS
from momentum_gs.viewer.live import FOLDER, LiveReader, LiveWriter

CASES = ("alone", "copied", "rendered")
RENDERER = """
import sys
from pathlib import Path
import torch
from momentum_gs.core.errors import UserError
from momentum_gs.viewer.image_renderer import render
from momentum_gs.viewer.companion import NICENESS
from momentum_gs.viewer.live import LiveReader
from momentum_gs.viewer.run import open_run
run, reader = open_run(Path(sys.argv[2])), LiveReader(Path(sys.argv[1]))
while True:
    try:
        shown = reader.load()
    except UserError:
        continue
    for camera in run.cameras[:20]:
        render(shown, camera, torch.zeros(3))
"""


class TimedWriter(LiveWriter):
    """Adds up the time that the training waits for copies."""

    seconds = 0.0
    copies = 0

    def on_state(self, state: TrainingState) -> None:
        """Times one copy."""
        begun = time.perf_counter()
        super().on_state(state)
        self.seconds += time.perf_counter() - begun
        self.copies += 1


class Alternation:
    """An observer that times the steps, and asks for the model in two of three cases."""

    def __init__(self, out: Path, like: Path, periods: int, steps: int) -> None:
        self.seconds: dict[str, list[float]] = {case: [] for case in CASES}
        self._out, self._reader, self._steps, self._left = out, LiveReader(out), steps, 3 * periods * steps
        self._done = 0
        self._last: float | None = None
        command = [sys.executable, "-c", RENDERER, str(out), str(like)]
        self._renderer = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        os.setpriority(os.PRIO_PROCESS, self._renderer.pid, NICENESS)

    def on_event(self, event: Event) -> None:
        """Counts the steps; the first one of a period is not timed."""
        if not isinstance(event, StepDone):
            self._last = None
            return
        now = time.perf_counter()
        case = CASES[self._done // self._steps % 3]
        if self._last is not None and self._done % self._steps > 1:
            self.seconds[case].append(now - self._last)
        self._done += 1
        case = CASES[self._done // self._steps % 3]
        self._renderer.send_signal(18 if case == "rendered" else 19)  # SIGCONT, SIGSTOP
        if case == "alone":
            (self._out / FOLDER / "watched").unlink(missing_ok=True)
        else:
            self._reader.ask()
        self._last = time.perf_counter()

    def over(self) -> bool:
        """Whether all periods are done."""
        return self._done >= self._left

    def close(self) -> None:
        """Ends the renderer."""
        self._renderer.kill()
        self._renderer.wait()


def main() -> None:
    """Parses, trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--periods", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="of a period")
    args = parser.parse_args()
    config = load_run_config(args.out)
    table = PartitionTable.load(args.out / "partition.json") if config.stage == "blocks" else None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        shutil.rmtree(out, ignore_errors=True)
        config = replace(config, out=str(out))
        training = Training(config, load_scene(config.scene), table, LocalComm(), pick_device(config.device))
        periods = Alternation(out, args.out, args.periods, args.steps)
        writer = TimedWriter(out)
        observers = Observers([writer, periods])
        try:
            training.run(observers, periods.over)
        finally:
            observers.close()
        print(f"{writer.copies} copies, {1000 * writer.seconds / max(1, writer.copies):.1f} ms each")
        alone = statistics.median(periods.seconds["alone"])
        for case in CASES:
            middle = statistics.median(periods.seconds[case])
            mean = statistics.fmean(periods.seconds[case])
            print(f"{case}: median {1000 * middle:.1f} ms ({middle / alone - 1:+.1%}), mean {1000 * mean:.1f} ms, "
                  f"{len(periods.seconds[case])} steps")


if __name__ == "__main__":
    main()
