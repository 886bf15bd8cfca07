"""Models in memory: loaded once for all browsers, the least recently used dropped first; and what their errors are."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from momentum_gs.bake.contributions import RowErrors, row_errors
from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera
from momentum_gs.viewer.image_renderer import ERROR_HELD_OUT
from momentum_gs.viewer.live import LiveReader
from momentum_gs.viewer.run import ViewerRun
from momentum_gs.viewer.shown import Shown

LIVE = "training now"
"""The state of a run that trains now."""
EXPORT = "export"
"""The only state of an exported file."""
_KEPT = 3
"""Models held at a time: two that are compared, and one more."""
ERROR_VIEWS = 48
"""Most views that errors are measured in, evenly spaced: 6 s of one core at 395x297 pixels, with 77,000 anchors."""
ERROR_SIDE = 640
"""Longer side of the images that are compared, in pixels; larger ones are averaged."""


@dataclass
class Measured:
    """Errors of one state, as far as they are known."""

    found: RowErrors | None = None
    views: int = 0
    """Views that will be compared."""
    why: str = ""
    """Why there are none."""


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
        self._measured: OrderedDict[tuple[int, str, str], Measured] = OrderedDict()

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

    def errors(self, run: int, label: str, mode: str) -> Measured:
        """The errors of a state, which a thread measures once they are asked for.

        Args:
            run: Number of the run.
            label: Its state.
            mode: One of ``image_renderer.ERRORS``.
        """
        key = (run, label, mode)
        with self._lock:
            if key in self._measured:
                self._measured.move_to_end(key)
                return self._measured[key]
            measured = self._measured[key] = Measured()
            while len(self._measured) > _KEPT:
                self._measured.popitem(last=False)
        threading.Thread(target=self._measure, args=(key, measured), name="errors", daemon=True).start()
        return measured

    def _measure(self, key: tuple[int, str, str], measured: Measured) -> None:
        run, _, mode = key
        try:
            measured.views = len(self.error_views(run, mode))
            steps = self.measure_errors(*key)
            while self._measured.get(key) is measured:  # Otherwise, others were asked for meanwhile.
                with self.rendering:
                    found = next(steps, None)
                if found is None:
                    return
                measured.found = found
        except UserError as error:
            measured.why = str(error)

    def error_views(self, run: int, mode: str) -> list[Camera]:
        """The views in which a mode measures errors: at most ``ERROR_VIEWS``, no larger than ``ERROR_SIDE``."""
        viewed = self.runs[run]
        there = [c for c in viewed.cameras if (c.name in viewed.held_out) == (mode == ERROR_HELD_OUT)]
        if viewed.views is None or not there:
            kind = mode.partition(", ")[2]
            raise UserError(f"view: {viewed.path} has no images of {kind}, expected some; name the scene with -s")
        count = min(len(there), ERROR_VIEWS)
        return [_reduced(there[i * len(there) // count]) for i in range(count)]

    def measure_errors(self, run: int, label: str, mode: str) -> Iterator[RowErrors]:
        """Measures the errors of a state in one view after the other.

        Raises:
            UserError: there are no such views, or as ``get``.
        """
        if label == LIVE:
            raise UserError("view: errors are measured of saved states, found a training; choose a saved state")
        viewed, device = self.runs[run], self.device(run)
        shown, cameras = self.get(run, label), self.error_views(run, mode)

        def compare(camera: Camera, render: Tensor) -> Tensor | None:
            assert viewed.views is not None
            if viewed.appearance is not None and camera.name not in viewed.held_out:
                render = viewed.appearance.correct(render.cpu(), camera.name)
            try:
                target = viewed.views.target(camera.name)
            except UserError:
                return None
            size = (camera.height, camera.width)
            mask = torch.ones_like(target.image[:1]) if target.mask is None else target.mask
            truth, counts = F.interpolate(torch.cat([target.image, mask])[None], size, mode="area")[0].split((3, 1))
            error = (render.cpu().clamp(0, 1) - truth).abs().mean(dim=0, keepdim=True)
            return torch.cat([counts, error]).to(device)

        return row_errors(shown.model, shown.decoder, cameras, self.background(run), compare)


def _reduced(camera: Camera) -> Camera:
    share = min(1.0, ERROR_SIDE / max(camera.width, camera.height))
    return camera.resized(max(1, round(camera.width * share)), max(1, round(camera.height * share)))
