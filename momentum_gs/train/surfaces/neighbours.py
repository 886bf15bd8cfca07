"""Which other views of a block see the same surface from a little aside."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.geometry import in_view
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera
from momentum_gs.data.scene import Scene

LEAST_OVERLAP = 0.3
"""Share of a view's points that a neighbour must have in view: of flights with an overlap of 60 %, the next image and
that of the next line."""
ANGLES = (2.0, 40.0)
"""Degrees between the rays to the shared points: below, depth is hardly constrained; above, patches look different."""
SAMPLE = 4000
"""Points of the scene from which overlaps are measured."""


class Neighbours:
    """The neighbours of every view among the training views of the same block.

    They depend on the scene's cameras and points only. The one that a step uses is drawn from (seed, block, step), so a
    checkpoint stores nothing.
    """

    def __init__(
        self, cameras: Sequence[Sequence[Camera]], points: Float[Tensor, "p 3"], most: int, seed: int
    ) -> None:
        """
        Args:
            cameras: Training views by block.
            points: On the scene's surface, training coordinates.
            most: Neighbours of a view; the nearest cameras are taken.
            seed: Of the run.
        """
        self._cameras, self._most, self._seed = cameras, most, seed
        self._points = points[:: -(-len(points) // SAMPLE)].double() if len(points) else points.double()
        self._place = [{camera.name: i for i, camera in enumerate(block)} for block in cameras]
        # Only a cache; a block's views need one table of [views, points] bits.
        self._seen = functools.lru_cache(maxsize=4)(self._find_seen)
        self._of = functools.lru_cache(maxsize=4096)(self._find)

    def of(self, block: int, camera: Camera) -> tuple[Camera, ...]:
        """The neighbours of a view, nearest first; none if no view of the block shows enough of the same."""
        return self._of(block, self._place[block][camera.name])

    def draw(self, block: int, step: int, camera: Camera) -> Camera | None:
        """The neighbour that a view is compared with at a block step."""
        found = self.of(block, camera)
        if not found:
            return None
        generator = keyed_generator(self._seed, "neighbour", block, step)
        return found[int(torch.randint(len(found), (), generator=generator))]

    def _find_seen(self, block: int) -> Bool[Tensor, "v p"]:
        return torch.stack([in_view(self._points, camera) for camera in self._cameras[block]])

    def _find(self, block: int, index: int) -> tuple[Camera, ...]:
        cameras, seen = self._cameras[block], self._seen(block)
        shared = seen & seen[index]
        overlap = shared.sum(dim=1) / shared[index].sum().clamp_min(1)
        overlap[index] = 0
        own, found = cameras[index].center, []
        for i in (overlap >= LEAST_OVERLAP).nonzero()[:, 0].tolist():
            other = cameras[i].center
            to_own, to_other = (torch.nn.functional.normalize(self._points[shared[i]] - c) for c in (own, other))
            angle = float(torch.rad2deg((to_own * to_other).sum(dim=1).clamp(-1, 1).acos().median()))
            if ANGLES[0] <= angle <= ANGLES[1]:
                found.append((float((other - own).norm()), i))
        return tuple(cameras[i] for _, i in sorted(found)[: self._most])


def make_neighbours(config: Config, scene: Scene, cameras: Sequence[Sequence[Camera]]) -> Neighbours | None:
    """The neighbours of all blocks' training views; None without planar surfaces."""
    if config.model.surface == "none":
        return None
    return Neighbours(cameras, scene.points.xyz, config.surface.neighbours, config.seed)
