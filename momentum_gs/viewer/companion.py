"""The viewer as a process beside a training."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from momentum_gs.core.errors import UserError
from momentum_gs.train.events import Event, Observer, RoundStarted
from momentum_gs.viewer.live import LiveWriter

NICENESS = 15
"""Of the viewer, once it serves. Of a core that a training wants, too, Linux gives it 3 % (36 shares of 1024 + 36)."""


def require_viser() -> None:
    """Raises UserError where viser is not installed."""
    if importlib.util.find_spec("viser") is None:
        raise UserError(
            "view: viser is not installed, expected the extra 'viewer'; pip install 'momentum-gs[viewer]'"
        )


def watchers(out: Path, port: int) -> list[Observer]:
    """What shows a training in a browser: ``LiveWriter`` and ``Companion``. Raises UserError where viser is missing."""
    require_viser()
    return [LiveWriter(out), Companion(out, port)]


class Companion:
    """An observer that starts 'momentum-gs view' with the first round, when the run's records are written.

    The viewer renders on the CPU, so that it takes nothing of the training's GPU. It ends by itself once this process
    has ended and no browser is connected.
    """

    def __init__(self, out: Path, port: int) -> None:
        self._command = [
            sys.executable, "-m", "momentum_gs", "view", str(out), "--port", str(port), "--device", "cpu",
            "--beside", str(os.getpid()),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def on_event(self, event: Event) -> None:
        """Starts the viewer once."""
        if self._process is None and isinstance(event, RoundStarted):
            # A session of its own, so that Ctrl-C reaches the training alone.
            self._process = subprocess.Popen(self._command, start_new_session=True)

    def close(self) -> None:
        """Leaves the viewer to end by itself."""
