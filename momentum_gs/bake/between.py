"""Cameras between those of the training views."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from momentum_gs.core.types import Camera

NEIGHBOURS = 6
"""A camera is joined with one of this many nearest ones that look in a similar direction."""
ANGLE = 0.5
"""Least cosine between their viewing directions: 60 degrees. Half way between cameras that look in opposite directions,
a camera would look at something that neither sees."""


class Between:
    """Draws cameras between pairs of neighbouring ones."""

    def __init__(self, cameras: Sequence[Camera], rng: torch.Generator) -> None:
        """``cameras``: at least one."""
        self._cameras, self._rng = cameras, rng
        self._centers = torch.stack([camera.center for camera in cameras])
        self._axes = torch.stack([camera.rotation[2] for camera in cameras])

    def draw(self, first: int) -> Camera:
        """A camera on the way from the camera ``first`` to one of its neighbours, with the size of the image and the
        intrinsics of the first; that camera itself if it has no neighbours."""
        camera = self._cameras[first]
        distance = (self._centers - self._centers[first]).norm(dim=1)
        distance[self._axes @ self._axes[first] < ANGLE] = torch.inf
        distance[first] = torch.inf
        near = [i for i in distance.argsort().tolist()[:NEIGHBOURS] if distance[i] < torch.inf]
        if not near:
            return camera
        second = self._cameras[near[int(torch.randint(len(near), (), generator=self._rng))]]
        share = float(torch.rand((), generator=self._rng))
        rotation = _between(camera.rotation, second.rotation, share)
        center = torch.lerp(camera.center, second.center, share)
        return replace(camera, rotation=rotation, translation=-rotation @ center)


def _between(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The rotation nearest to the weighted mean of two, [3,3]."""
    u, _, v = torch.linalg.svd(torch.lerp(first, second, share))
    u[:, -1] *= torch.linalg.det(u @ v)
    return u @ v
