"""Which view a block shows at which of its steps: shuffled epochs, keyed by (seed, block, epoch)."""

import functools

import torch

from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera


class ViewOrder:
    """Every training view of a block once an epoch, in an order that no machine or resume can change."""

    def __init__(self, cameras: list[list[Camera]], seed: int) -> None:
        """``cameras[b]``: the training views of block b."""
        self._cameras = cameras
        # A cache, not state: an order is a function of its key. One epoch a block is alive at a time.
        self._order = functools.lru_cache(maxsize=2 * len(cameras))(self._draw)
        self._seed = seed

    def _draw(self, block: int, epoch: int) -> list[int]:
        generator = keyed_generator(self._seed, "views", block, epoch)
        return torch.randperm(len(self._cameras[block]), generator=generator).tolist()

    def camera(self, block: int, step: int) -> Camera:
        """The view that a block shows at its step (from 0)."""
        epoch, index = divmod(step, len(self._cameras[block]))
        return self._cameras[block][self._order(block, epoch)[index]]
