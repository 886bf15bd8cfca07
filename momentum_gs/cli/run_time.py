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

from momentum_gs.cli.choose import Facts, at_resolution, choose_voxel
from momentum_gs.cli.doctor_estimate import probe
from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.data.images import read_image, write_png
from momentum_gs.data.scene import Scene
from momentum_gs.eval.lpips_metric import Lpips, load_lpips
from momentum_gs.eval.metrics import score_pair
from momentum_gs.model.init import init_anchors

_T = TypeVar("_T")

GROWN = 1.3
"""A step at the end over one at first: anchors are added and more of their Gaussians show. An allowance for the choice
of the resolution alone; the number of steps is revised while training runs."""
LEAST_STEPS = 300
"""Steps that training takes whatever the time, as many as the fewest that are ever chosen."""
OTHER_SECONDS = 3.0
"""Of the stages after training that no measurement covers: files of the model, loading the scene again, the page."""
PROBE_SECONDS = 3.0


class StepTimes:
    """Steps that fit the time at a resolution; each is measured once."""

    def __init__(self, config: Config, scene: Scene, facts: Facts, device: torch.device) -> None:
        """
        Args:
            config: Whose voxel does not count.
            scene: Loaded with ``scene.resolution=1``.
        """
        self._config, self._scene, self._facts, self._device = config, scene, facts, device
        self._seconds: dict[float, float] = {}

    def step_seconds(self, resolution: float | int) -> float:
        """One step, on average over a run."""
        if resolution not in self._seconds:
            voxel = float(choose_voxel(self._facts, resolution).value)
            config = replace(
                self._config,
                model=replace(self._config.model, voxel_size=voxel),
                scene=replace(self._config.scene, resolution=resolution),
            )
            scene = at_resolution(self._scene, resolution)
            start = len(init_anchors(scene.points, config.model)[0])
            found = probe(config, scene, (start,), self._device, seconds=PROBE_SECONDS)[0]
            self._seconds[resolution] = GROWN * found.seconds
        return self._seconds[resolution]


def seconds_after_training(scene: Scene, device: torch.device, step_seconds: float) -> float:
    """Rendering, scoring and the page, by one held-out view.

    Args:
        scene: At training resolution.
        step_seconds: Of a training step, of which drawing the view is less than half.
    """
    if not scene.test:
        return OTHER_SECONDS
    camera = scene.test[0]
    image = read_image(scene.image_paths[camera.name], camera.width, camera.height).float() / 255
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.png"
        write, _ = _timed(lambda: write_png(file, image))
        read, _ = _timed(lambda: read_image(file, camera.width, camera.height))
    decode, _ = _timed(lambda: read_image(scene.image_paths[camera.name], camera.width, camera.height))
    image = image.to(device)
    loading, lpips = _timed(lambda: _lpips(device))
    score, _ = _timed(lambda: score_pair(image * 0.9, image, lpips))
    each = step_seconds / 2 + decode + 2 * (write + read) + score
    return OTHER_SECONDS + loading + len(scene.test) * each


def _lpips(device: torch.device) -> Lpips | None:
    with contextlib.suppress(UserError), contextlib.redirect_stdout(io.StringIO()):
        return load_lpips("vgg", None, device)
    return None  # The stage itself will say why.


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result
