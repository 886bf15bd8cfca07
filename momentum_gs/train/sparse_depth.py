"""Depth supervision: the depths of the sparse points that an image observes are targets for the rendered depth."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import project
from momentum_gs.core.types import Camera, RenderOutput
from momentum_gs.core.window import Window
from momentum_gs.data.colmap.model import find_model
from momentum_gs.data.scene import Scene
from momentum_gs.data.tracks import Tracks, read_tracks

MIN_ALPHA = 0.1
"""Accumulated opacity below which a pixel's rendered depth is ignored."""


@dataclass(frozen=True)
class ViewDepths:
    """The sparse depths of one image."""

    pixel: Int64[Tensor, "m"]
    """Row times width plus column."""
    depth: Float[Tensor, "m"]
    """z in camera coordinates, training units."""
    weight: Float[Tensor, "m"]
    """Confidence in the point, in (0, 1]."""


class SparseDepths:
    """The sparse depths of every image of a scene, computed on first use."""

    def __init__(self, scene: Scene, device: torch.device) -> None:
        """Raises UserError for a scene whose points have no tracks."""
        self._device = device
        self._known: dict[str, ViewDepths] = {}
        # A scene in two parts has the points of its train part, whose image names may have been prefixed with train/.
        part = scene.path / "train"
        self._tracks = read_tracks(find_model(part if (part / "sparse").is_dir() else scene.path))
        if not self._tracks.seen:
            raise UserError(
                f"loss.depth: the points of {scene.path} have no tracks (lists of the images that observe a point); "
                "give a COLMAP model with tracks, or set loss.depth=0"
            )
        self._xyz = scene.frame.points(self._tracks.points.xyz)
        self._trust = trust(self._tracks)

    def of(self, camera: Camera, window: Window | None = None) -> ViewDepths:
        """The depths of one image, or of the pixels of its window that count, on the device."""
        whole = self._whole(camera)
        if window is None:
            return whole
        x, y, width, height = window.rectangle
        row, column = whole.pixel // camera.width - y, whole.pixel % camera.width - x
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixel = (row * width + column)[inside]
        weight = whole.weight[inside] * window.weights.flatten().index_select(0, pixel)
        return ViewDepths(pixel, whole.depth[inside], weight)

    def _whole(self, camera: Camera) -> ViewDepths:
        if camera.name not in self._known:
            none = torch.empty(0, dtype=torch.int64)
            seen = self._tracks.seen
            rows = seen.get(camera.name, seen.get(camera.name.removeprefix("train/"), none))
            pixels, depth = project(self._xyz[rows], camera)
            column, row = pixels.floor().long().unbind(1)
            inside = (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height) & (depth > 0)
            found = (row * camera.width + column)[inside], depth[inside].float(), self._trust[rows][inside].float()
            self._known[camera.name] = ViewDepths(*(part.to(self._device) for part in found))
        return self._known[camera.name]


def trust(tracks: Tracks) -> Float[Tensor, "p"]:
    """Confidence in each point, in (0, 1]: smaller for a large reprojection error and for few observations.

    exp(-(error / mean error)^2), as DS-NeRF weights key points, times 1 - 1 / observations: two images measure the
    depth, each further one confirms it. The first factor is 1 for points whose error is unknown.
    """
    known = tracks.error > 0
    mean = tracks.error[known].mean() if known.any() else 1.0
    by_error = torch.where(known, torch.exp(-((tracks.error / mean) ** 2)), 1.0)
    return (by_error * (1 - 1 / tracks.length.clamp_min(2))).clamp_min(1e-6)


def depth_loss(output: RenderOutput, known: ViewDepths) -> Float[Tensor, ""]:
    """Weighted mean of ``|z / D - 1|``: the error of the rendered inverse depth 1 / D, relative to the point's 1 / z.

    D is the rendered depth divided by alpha. The loss has no unit and does not change with the scale of the scene. The
    error is 0 at pixels with an alpha up to ``MIN_ALPHA``.
    """
    # Not index_select: several points may share a pixel, and on a GPU the sums of its gradient would have no order.
    alpha, depth = (part.flatten()[known.pixel] for part in (output.alpha, output.depth))
    there = (alpha > MIN_ALPHA) & (depth > 0)
    ratio = known.depth * alpha / torch.where(there, depth, 1.0)
    error = torch.where(there, (ratio - 1).abs(), 0.0)
    return (known.weight * error).sum() / known.weight.sum().clamp_min(1e-6)
