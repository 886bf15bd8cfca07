"""Which view a block shows at which of its steps: shuffled epochs, keyed by (seed, block, epoch)."""

import functools
from collections.abc import Collection, Iterator

import torch

from momentum_gs.core.errors import UserError, blame
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.data.views import Views


class ViewOrder:
    """Every training view of a block once an epoch, in an order that no machine or resume can change.

    A view whose image is skipped (``scene.bad_images``) gives its steps to the next in the order that can be read.
    So what a block shows depends on (seed, block, step) and on which files are bad, and on nothing that has to be kept.
    """

    def __init__(self, cameras: list[list[Camera]], seed: int) -> None:
        """``cameras[b]``: the training views of block b."""
        self._cameras = cameras
        # A cache, not state: an order is a function of its key. One epoch a block is alive at a time.
        self._order = functools.lru_cache(maxsize=2 * len(cameras))(self._draw)
        self._seed = seed

    def _draw(self, block: int, epoch: int) -> list[int]:
        generator = keyed_generator(self._seed, "views", block, epoch)
        return torch.randperm(len(self._cameras[block]), generator=generator).tolist()

    def cameras(self, block: int, step: int) -> Iterator[Camera]:
        """All views of a block: that of its step (from 0), then those that take its place, around its epoch's order."""
        cameras = self._cameras[block]
        epoch, index = divmod(step, len(cameras))
        order = self._order(block, epoch)
        return (cameras[order[(index + i) % len(order)]] for i in range(len(order)))

    def camera(self, block: int, step: int) -> Camera:
        """The view of a step where every image is good."""
        return next(self.cameras(block, step))

    def expected(self, block: int, step: int, bad: Collection[str]) -> Camera:
        """The view that a block will show at a step, as far as bad images are known by name: to decode ahead."""
        return next((c for c in self.cameras(block, step) if c.name not in bad), self.camera(block, step))

    def show(self, block: int, step: int, views: Views) -> tuple[Camera, TargetImage]:
        """The view that a block shows at its step, and its image on the views' device.

        Raises:
            UserError: naming block and image where it cannot be read, or the block where all of its are skipped.
        """
        for camera in self.cameras(block, step):
            with blame(f"block {block}"):
                target = views.target_or_skip(camera.name)
            if target is not None:
                return camera, target
        count, first = len(self._cameras[block]), self.camera(block, step).name
        raise UserError(f"block {block}: none of its {count} images can be read; first: {views.bad[first]}")
