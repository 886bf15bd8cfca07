"""Time estimates for ``momentum-gs run --minutes``: a training step at each resolution, and the stages after training.

Both are extrapolated from short measurements on this machine with the scene's own images.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera
from momentum_gs.data.images import read_image, write_png
from momentum_gs.data.scene import Scene
from momentum_gs.doctor.estimate import probe
from momentum_gs.eval.lpips_metric import Lpips, load_lpips
from momentum_gs.eval.metrics import score_pair
from momentum_gs.experiments.choose import Facts, at_resolution, choose_voxel
from momentum_gs.model.init import init_anchors

_T = TypeVar("_T")

GROWN = 1.2
"""Assumed ratio of a step's average time to that of the first steps, as anchors are added. It matters only for the
choice of the resolution; the number of steps is revised during training."""
OTHER_SECONDS = 3.0
"""Allowance for what is not measured after training: writing the model, loading the scene again, the report."""
PROBE_SECONDS = 3.0
"""Time for measuring steps at a resolution."""


class Times:
    """Seconds of a step and of the stages after training, for each resolution; each is measured only once."""

    def __init__(self, config: Config, scene: Scene, facts: Facts, device: torch.device) -> None:
        """
        Args:
            config: Settings; voxel size and resolution are replaced.
            scene: The scene, loaded with ``scene.resolution=1``.
            facts: ``measure(scene)``.
            device: The device to measure on.
        """
        self._config, self._scene, self._facts, self._device = config, scene, facts, device
        self._steps: dict[float, float] = {}
        self._after: dict[float, float] = {}
        self._lpips: tuple[float, Lpips | None] | None = None

    def step(self, resolution: float | int) -> float:
        """Seconds of one training step, on average over a run."""
        if resolution not in self._steps:
            voxel = float(choose_voxel(self._facts, resolution).value)
            config = replace(
                self._config,
                model=replace(self._config.model, voxel_size=voxel),
                scene=replace(self._config.scene, resolution=float(resolution)),
            )
            scene = at_resolution(self._scene, resolution)
            start = len(init_anchors(scene.points, config.model)[0])
            found = probe(config, scene, (start,), self._device, seconds=PROBE_SECONDS)[0]
            self._steps[resolution] = GROWN * found.seconds
        return self._steps[resolution]

    def after_training(self, resolution: float | int) -> float:
        """Seconds of rendering, scoring and the report, from the time for one held-out view. Its rendering is counted
        as half a training step, which is an upper bound."""
        if resolution not in self._after:
            scene = at_resolution(self._scene, resolution)
            each = [self._scored(scene, camera) + self.step(resolution) / 2 for camera in scene.test[:1]]
            loading = self._lpips[0] if self._lpips is not None else 0.0
            self._after[resolution] = OTHER_SECONDS + loading + len(scene.test) * sum(each)
        return self._after[resolution]

    def _scored(self, scene: Scene, camera: Camera) -> float:
        """Seconds for decoding an image, writing it and its render, and reading and scoring both."""
        if self._lpips is None:
            self._lpips = _timed(lambda: _lpips(self._device))
        lpips = self._lpips[1]
        path, width, height = scene.image_paths[camera.name], camera.width, camera.height
        decode, pixels = _timed(lambda: read_image(path, width, height))
        image = pixels.float() / 255
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "image.png"
            write, _ = _timed(lambda: write_png(file, image))
            read, _ = _timed(lambda: read_image(file, width, height))
        image = image.to(self._device)
        score, _ = _timed(lambda: score_pair(image * 0.9, image, lpips))
        return decode + 2 * (write + read) + score


def _lpips(device: torch.device) -> Lpips | None:
    with contextlib.suppress(UserError), contextlib.redirect_stdout(io.StringIO()):
        return load_lpips("vgg", None, device)
    return None  # The eval stage reports the reason.


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result
