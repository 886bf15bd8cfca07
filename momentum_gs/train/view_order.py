"""Which view a block trains on at each of its steps: epochs shuffled by (seed, block, epoch)."""

import functools
from collections.abc import Callable, Collection, Iterator

import torch

from momentum_gs.core.errors import UserError, blame
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.core.window import Window
from momentum_gs.data.views import Views


class ViewOrder:
    """Every training view of a block once per epoch, in an order that is the same on every machine and after a resume.

    Where an image is skipped (``scene.bad_images``), the next readable one in the epoch's order takes its place. The
    view of a step thus depends only on (seed, block, step) and on which files are bad; a checkpoint stores nothing.
    """

    def __init__(self, cameras: list[list[Camera]], seed: int) -> None:
        """``cameras[b]``: the training views of block b."""
        self._cameras = cameras
        # Only a cache: an order follows from its key. Each block needs one epoch at a time, or two while prefetching.
        self._order = functools.lru_cache(maxsize=2 * len(cameras))(self._draw)
        self._seed = seed

    def _draw(self, block: int, epoch: int) -> list[int]:
        generator = keyed_generator(self._seed, "views", block, epoch)
        return torch.randperm(len(self._cameras[block]), generator=generator).tolist()

    def cameras(self, block: int, step: int) -> Iterator[Camera]:
        """All views of a block: that of ``step`` (from 0), then its replacements, cyclically in the epoch's order."""
        cameras = self._cameras[block]
        epoch, index = divmod(step, len(cameras))
        order = self._order(block, epoch)
        return (cameras[order[(index + i) % len(order)]] for i in range(len(order)))

    def camera(self, block: int, step: int) -> Camera:
        """The view of a step if every image can be read."""
        return next(self.cameras(block, step))

    def expected(self, block: int, step: int, bad: Collection[str]) -> Camera:
        """The view that a block will train on at a step, given the names of the bad images known so far; for
        prefetching."""
        return next((c for c in self.cameras(block, step) if c.name not in bad), self.camera(block, step))

    def show(
        self, block: int, step: int, views: Views, window_of: Callable[[Camera], Window | None] = lambda camera: None
    ) -> tuple[Camera, Window | None, TargetImage]:
        """The view that a block trains on at a step, the part of it by ``window_of``, and that part's target image on
        the device of ``views``.

        Raises:
            UserError: naming block and image, for an image that cannot be read and is not to be skipped; or naming the
                block, if none of its images can be read.
        """
        for camera in self.cameras(block, step):
            window = window_of(camera)
            with blame(f"block {block}"):
                target = views.target_or_skip(camera.name, window)
            if target is not None:
                return camera, window, target
        count, first = len(self._cameras[block]), self.camera(block, step).name
        raise UserError(f"block {block}: none of its {count} images can be read; first: {views.bad[first]}")
