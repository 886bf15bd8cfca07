"""Models in memory: loaded once for all browsers, the least recently used dropped first."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import torch

from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.viewer.live import LiveReader
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.shown import Shown

LIVE = "training now"
"""The state of a run that trains now."""
EXPORT = "export"
"""The only state of an exported file."""
_KEPT = 3
"""Models held at a time: two that are compared, and one more."""


class Models:
    """Safe to use from several threads; while one loads a model, the others wait."""

    def __init__(self, runs: Sequence[ViewerRun]) -> None:
        self.runs = tuple(runs)
        self.rendering = threading.Lock()
        """Held by whoever renders: one image after the other, instead of all of them slowly."""
        self._lock = threading.Lock()
        self._readers = tuple(LiveReader(run.path) for run in self.runs)
        self._live_steps: list[int | None] = [None] * len(self.runs)
        self._held: OrderedDict[tuple[int, str], Shown] = OrderedDict()

    def device(self, run: int) -> torch.device:
        """Where a run's model is rendered."""
        return pick_device(self.runs[run].device_setting)

    def background(self, run: int) -> torch.Tensor:
        """Colour behind a run's model, [3] on its device."""
        return torch.full((3,), float(self.runs[run].white_background), device=self.device(run))

    def labels(self, run: int) -> list[str]:
        """The states of a run, the newest last."""
        if self.runs[run].path.is_file():
            return [EXPORT]
        live = [] if self._live_steps[run] is None else [LIVE]
        return [*(state.label for state in self.runs[run].states()), *live]

    @property
    def names(self) -> list[str]:
        """Every state of every run."""
        return [f"{run.name}: {label}" for i, run in enumerate(self.runs) for label in self.labels(i)]

    def named(self, name: str) -> tuple[int, str] | None:
        """The run and the state of one of ``names``; None if there is none."""
        for i, run in enumerate(self.runs):
            if name.startswith(f"{run.name}: ") and name.removeprefix(f"{run.name}: ") in self.labels(i):
                return i, name.removeprefix(f"{run.name}: ")
        return None

    def live_step(self, run: int) -> int | None:
        """Global steps that a run which trains now has done; None if it does not train."""
        return self._live_steps[run]

    def ask_for_news(self, run: int) -> bool:
        """Tells a run's trainer, if there is one, that somebody looks; returns whether it has a newer state.

        The state of a trainer that has ended without a word, which leaves its files, stays.
        """
        reader = self._readers[run]
        reader.ask()
        step = reader.step()
        if step == self._live_steps[run]:
            return False
        with self._lock:
            self._held.pop((run, LIVE), None)
            self._live_steps[run] = step
        return True

    def get(self, run: int, label: str) -> Shown:
        """The model of a state, on its device.

        Raises:
            UserError: as ``ViewerRun.load``; or the state is gone.
        """
        with self._lock:
            key = (run, label)
            if key not in self._held:
                self._held[key] = self._load(run, label).to(self.device(run))
                while len(self._held) > _KEPT:
                    self._held.popitem(last=False)
            self._held.move_to_end(key)
            return self._held[key]

    def _load(self, run: int, label: str) -> Shown:
        if label == EXPORT:
            return self.runs[run].load(None)
        if label == LIVE:
            return self._readers[run].load()
        for state in self.runs[run].states():
            if state.label == label:
                return self.runs[run].load(state)
        raise UserError(f"view: {self.runs[run].path} has no '{label}' any more; choose another state")
