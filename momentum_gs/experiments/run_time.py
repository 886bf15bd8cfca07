"""What ``momentum-gs run --minutes`` can do in the time: steps at each resolution, and the stages after training.

Both are measured on this machine, on the scene's own images, by doing a little of it.
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
"""A step at the end over one at first: anchors are added and more of their Gaussians show. An allowance for the choice
of the resolution alone; the number of steps is revised while training runs."""
OTHER_SECONDS = 3.0
"""Of the stages after training that no measurement covers: files of the model, loading the scene again, the page."""
PROBE_SECONDS = 3.0


class Times:
    """Seconds of a step and of the stages after training, by resolution; each is measured once."""

    def __init__(self, config: Config, scene: Scene, facts: Facts, device: torch.device) -> None:
        """
        Args:
            config: Whose voxel does not count.
            scene: Loaded with ``scene.resolution=1``.
        """
        self._config, self._scene, self._facts, self._device = config, scene, facts, device
        self._steps: dict[float, float] = {}
        self._after: dict[float, float] = {}
        self._lpips: tuple[float, Lpips | None] | None = None

    def step(self, resolution: float | int) -> float:
        """One training step, on average over a run."""
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
        """Rendering, scoring and the page, by what one held-out view takes; drawing it is less than half of a step."""
        if resolution not in self._after:
            scene = at_resolution(self._scene, resolution)
            each = [self._scored(scene, camera) + self.step(resolution) / 2 for camera in scene.test[:1]]
            loading = self._lpips[0] if self._lpips is not None else 0.0
            self._after[resolution] = OTHER_SECONDS + loading + len(scene.test) * sum(each)
        return self._after[resolution]

    def _scored(self, scene: Scene, camera: Camera) -> float:
        """Decoding an image, writing it and its render, reading and scoring both."""
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
    return None  # The stage itself will say why.


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result
