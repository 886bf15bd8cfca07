"""Covered pixels: those of a held-out view whose surface point enough training views see; and scores over them.

At the edge of a survey, held-out views show ground that no training image shows. No model can reconstruct it, and such
pixels lower the mean score of a view by several dB with any method.

A training view sees a pixel's surface point if the point projects into its image, is not masked there, and is not
occluded by the model. Points and occlusion are found from rendered depth. A point *nearer* than the training view's
depth counts as seen: the training image showed what is behind it, so a floater before the held-out camera is a fault
that training could have avoided, and it stays in the score.

Depth is rendered at a quarter of the size. The depth of a training view is used once and then dropped; of a held-out
view, 6 bytes are kept per 16 pixels.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int16, UInt8
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import Sight
from momentum_gs.core.image import Mask, psnr
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera
from momentum_gs.data.images import image_size, stored_pixels
from momentum_gs.data.masks import read_mask
from momentum_gs.data.scene import Scene
from momentum_gs.eval.cells import MIN_ALPHA, world_points
from momentum_gs.eval.results import png_names, read_json, write_json
from momentum_gs.model.io import load_model
from momentum_gs.partition.coverage import SEEN_BY
from momentum_gs.render.view import render_view

SHRINK = 4
"""Divisor of the image size at which depth is rendered. Covered regions end along lines, so a raster of four pixels
is accurate enough; smaller images would not be faster, because decoding and projection remain."""
TOLERANCE = 0.05
"""How much farther than a training view's depth a point may be and still count as seen, as a share of that depth.
Within a pixel of a quarter-size image, which is about 1/200 of the depth wide, depth changes by 3 % on a surface seen
at 80 degrees from its normal. Occlusion changes it more: a roof one storey of 3 m above the ground, seen from 60 m, by
5 %."""
NEAR = 0.2
"""Depth of the near plane, scene units, as in the rasterizers of 3DGS codebases."""
MIN_SHARE = 0.01
"""Smallest share of covered pixels for which a view gets a score over them: in the mean over views, a score over a few
pixels would weigh as much as one over a whole view."""

Depth = Float[Tensor, "h w"]
"""z in camera coordinates, scene units; infinite at pixels without a surface."""


def count_views(
    cameras: Sequence[Camera],
    training: Sequence[Camera],
    depth_of: Callable[[Camera], Depth],
    limit_of: Callable[[Camera], Depth],
    title: str = "views that see",
) -> list[Int16[Tensor, "h w"]]:
    """For each pixel of every camera, the number of training views that see its surface point; 0 without a surface.

    Args:
        cameras: Held-out views, at the size of the maps.
        training: Training views. One that is also in ``cameras`` counts as seeing itself.
        depth_of: Gives the rendered depth of a held-out view.
        limit_of: Gives how far a training view sees at each pixel: its rendered depth, or 0 where it is masked. Called
            at most once for each, and only for views whose frustum may contain a surface point.
        title: Text of the progress bar.

    Returns:
        A map for each of ``cameras``.
    """
    depths = [depth_of(camera) for camera in cameras]
    counts = [torch.zeros(depth.shape, dtype=torch.int16, device=depth.device) for depth in depths]
    boxes = torch.stack([_box(depth, camera) for depth, camera in zip(depths, cameras, strict=True)])
    shown = Sight(training, NEAR).may_show(boxes)
    for number, other in enumerate(progress(training, title)):
        near = shown[:, number].nonzero().flatten().tolist()
        if not near:
            continue
        limit = limit_of(other)
        for i in near:
            counts[i] += seen_from(depths[i], cameras[i], limit, other)
    return counts


def seen_from(depth: Depth, camera: Camera, limit: Float[Tensor, "rows columns"], other: Camera) -> Bool[Tensor, "h w"]:
    """Which pixels of ``camera`` show a surface point that ``other`` sees: inside its image, and not behind its depth.

    Args:
        depth: Rendered depth of ``camera``.
        camera: The view with the pixels.
        limit: How far ``other`` sees at each of its own pixels, as depth in scene units.
        other: The view that may see the points.
    """
    # The relative pose is computed in float64, as scenes may lie far from the origin; pixels are in float32.
    turn = (other.rotation @ camera.rotation.T).tolist()
    step = (other.rotation @ (camera.center - other.center)).tolist()
    column = (torch.arange(camera.width, device=depth.device) + 0.5 - camera.cx) / camera.fx
    row = ((torch.arange(camera.height, device=depth.device) + 0.5 - camera.cy) / camera.fy)[:, None]
    there = depth.isfinite()
    z = torch.where(there, depth, 1.0)
    x, y, far = ((turn[i][0] * column + turn[i][1] * row + turn[i][2]) * z + step[i] for i in range(3))
    ahead = there & (far > NEAR)
    far = torch.where(ahead, far, 1.0)
    u, v = other.fx * x / far + other.cx, other.fy * y / far + other.cy
    inside = ahead & (u >= 0) & (u < other.width) & (v >= 0) & (v < other.height)
    u, v = (torch.where(inside, pixel, 0.0).long() for pixel in (u, v))
    return inside & (far <= limit[v, u] * (1 + TOLERANCE))


def _box(depth: Depth, camera: Camera) -> Float[Tensor, "6"]:
    """Bounding box of a view's surface points, low corner first, float64 on the CPU; NaN, which is in no view, if it
    shows no surface."""
    rows = depth.isfinite().nonzero()
    if not len(rows):
        return torch.full((6,), math.nan, dtype=torch.float64)
    points = world_points(depth[rows[:, 0], rows[:, 1]], rows, camera).cpu()
    return torch.cat([points.amin(dim=0), points.amax(dim=0)])


@torch.no_grad()
def write_covered(folder: Path, ply: Path, scene: Scene, cameras: Sequence[Camera], background: Tensor) -> None:
    """Writes ``covered/<name>`` for the views of a finished rendering, and records it in its ``render.json``.

    Args:
        folder: OUT/<split>/ours_<N>, already rendered.
        ply: The model whose depth is rendered.
        scene: Gives the training views and their masks.
        cameras: The views of the split.
        background: [3] in [0, 1], on the device that renders.
    """
    model, decoder = load_model(ply)
    model, decoder = model.to(background.device), decoder.to(background.device).eval()

    def depth_of(camera: Camera) -> Depth:
        output = render_view(model, decoder, camera, background).output
        return torch.where(output.alpha >= MIN_ALPHA, output.depth / output.alpha, math.inf)

    def limit_of(camera: Camera) -> Depth:
        depth, mask = depth_of(camera), scene.mask_paths.get(camera.name)
        if mask is not None:
            counts = read_mask(mask, camera.width, camera.height)[0].to(depth.device)
            depth = torch.where(counts > 0, depth, 0.0)
        return depth

    held_out, training = ([_reduced(camera) for camera in some] for some in (cameras, scene.train))
    counts = count_views(held_out, training, depth_of, limit_of, f"views that see {folder}")
    names = png_names([camera.name for camera in cameras])
    for camera, count in zip(cameras, counts, strict=True):
        _write_map(folder / "covered" / names[camera.name], count.cpu(), camera)
    record = read_json(folder / "render.json")
    about = {
        "training_views": len(scene.train),
        "shrink": SHRINK,
        "tolerance": TOLERANCE,
        # The model that gave the depth.
        "method": record["method"],
        "config_sha256": record["config_sha256"],
    }
    write_json(folder / "render.json", {**record, "covered": about})


def _reduced(camera: Camera) -> Camera:
    return camera.resized(*(max(1, round(side / SHRINK)) for side in (camera.width, camera.height)))


def _write_map(path: Path, count: Int16[Tensor, "h w"], camera: Camera) -> None:
    """Writes a map as an 8-bit grey PNG at the size of the view; counts above 255 become 255."""
    pixels = count.clamp(max=255).to(torch.uint8).numpy()
    pixels = cv2.resize(pixels, (camera.width, camera.height), interpolation=cv2.INTER_NEAREST)
    _, data = cv2.imencode(".png", pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def read_map(path: Path, width: int, height: int) -> UInt8[Tensor, "h w"]:
    """Reads a map: how many training views see the surface point of each pixel, at most 255.

    Raises:
        UserError: for a map that is missing, damaged or of another size.
    """
    pixels = stored_pixels(path)
    if pixels.dtype != np.uint8 or pixels.shape != (height, width):
        raise UserError(
            f"{path}: {'x'.join(map(str, reversed(pixels.shape)))} of {pixels.dtype}, expected an 8-bit grey map of "
            f"{width}x{height}; run 'momentum-gs render --covered' again"
        )
    return torch.from_numpy(pixels)


@dataclass(frozen=True)
class OtherMaps:
    """The maps of another run, to score the views of this run over the same pixels."""

    folder: Path
    about: dict[str, Any]
    """The entry ``covered`` of its ``render.json``."""
    names: list[str]

    def copy(self, folder: Path) -> None:
        """Copies the maps into the folder of a finished rendering of the same views."""
        for name in self.names:
            data = (self.folder / "covered" / name).read_bytes()
            (folder / "covered" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "covered" / name).write_bytes(data)
        write_json(folder / "render.json", {**read_json(folder / "render.json"), "covered": self.about})


def other_maps(out: Path, split: str, cameras: Sequence[Camera]) -> OtherMaps:
    """The maps in ``out`` for these views, of the model with the highest iteration that has maps.

    Raises:
        UserError: if there are none, if a view has none, or if one has another size.
    """
    how = f"run 'momentum-gs render {out} --split {split} --covered' first"
    found = {path: read_json(path / "render.json") for path in (out / split).glob("ours_*")}
    found = {path: record for path, record in found.items() if record.get("covered") is not None}
    if not found:
        raise UserError(f"{out / split}: no maps of covered pixels, expected ours_N/covered; {how}")
    folder = max(found, key=lambda path: found[path]["iteration"])
    names = png_names([camera.name for camera in cameras])
    for camera in cameras:
        path = folder / "covered" / names[camera.name]
        if not path.is_file():
            raise UserError(f"{path}: missing, expected a map for every view to render; {how}")
        if (size := image_size(path)) != (camera.width, camera.height):
            raise UserError(
                f"{path}: {size[0]}x{size[1]}, expected {camera.width}x{camera.height} as the view is rendered; give a "
                "run with the same scene.resolution"
            )
    return OtherMaps(folder, found[folder]["covered"], list(names.values()))


class CoveredPixels:
    """Scores over the covered pixels: those whose surface point at least ``SEEN_BY`` training views see.

    Covered pixels depend on the model whose depth was rendered; ``sha256`` is equal if two scores use the same ones.
    """

    def __init__(self, folder: Path) -> None:
        """``folder``: holds a map for each view."""
        self._folder = folder
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hash of the covered pixels of all views scored so far, in their order."""
        return self._digest.hexdigest()

    def score(
        self, name: str, render: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"], mask: Mask
    ) -> dict[str, float]:
        """Scores a view.

        Args:
            name: PNG name of the view.
            render: In [0, 1].
            truth: The target image, in [0, 1].
            mask: Pixels that count.

        Returns:
            ``covered_share``, the share of covered pixels among those that count, in [0, 1]; if it is at least
            ``MIN_SHARE``, also ``PSNR_covered``, the raw PSNR over them, in dB.
        """
        covered = read_map(self._folder / name, truth.shape[2], truth.shape[1])[None] >= SEEN_BY
        if mask is not None:
            covered &= mask.cpu() > 0
        self._digest.update(covered.numpy().tobytes())
        share = float(covered.sum()) / (covered.numel() if mask is None else float(mask.sum()))
        if share < MIN_SHARE:
            return {"covered_share": share}
        psnr_covered = float(psnr(render, truth, covered.to(truth)))
        return {"covered_share": share, "PSNR_covered": psnr_covered}


def covered_pixels(folder: Path, names: Sequence[str]) -> CoveredPixels | None:
    """The covered pixels of a method's views; None if the merged model has no maps for them.

    Blocks before the merge use the maps of the merged model.

    Args:
        folder: OUT/<split>/ours_<N> or OUT/<split>/ours_<N>_blocks.
        names: PNG names of its views.
    """
    merged = folder.with_name(folder.name.removesuffix("_blocks"))
    record = read_json(merged / "render.json")
    if record.get("covered") is None or not set(names) <= set(record["names"]):
        return None
    return CoveredPixels(merged / "covered")
