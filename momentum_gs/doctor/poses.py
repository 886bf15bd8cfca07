"""Checks of poses and points: outliers, cameras that see no point, unseen points, the up axis, too large coordinates.

Distances are compared with medians over the scene itself, so the unit of the scene does not matter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.config.schema import PartitionConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_view
from momentum_gs.core.types import Camera
from momentum_gs.doctor.findings import Finding, some
from momentum_gs.partition.layout import automatic_layout

MAX_POINTS = 4_000
"""Size of the sample of points that is projected into every camera."""
MAX_BLIND = 50
"""Most cameras without a point of the sample that are tested with all points; further ones are not reported."""
PARALLAX = 1e-3
"""Spread of the cameras, as a share of their distance to the points, below which there is no parallax: about a pixel at
a focal length of a thousand pixels."""
FAR_CAMERA = 10.0
"""A camera is too far from the centre of the cameras above this multiple of the median distance. A flight line or a
closed loop stays within 2."""
FAR_POINT = 30.0
"""A point is too far from the centre of the cameras above this multiple of the points' median distance."""
ODD_DEGREES = 60.0
"""Smallest difference between the elevation of a view and the median elevation that is reported. Scenes with both nadir
and oblique flights stay below it."""
UNSEEN = 0.1
"""Largest share of points outside all images without a warning. A few bad tracks stay below it."""
FLOAT_STEP = 0.1
"""Largest rounding error of float32 coordinates without a warning, in pixels on the ground."""
MIN_CAMERAS = 8
"""Smallest number of cameras in which outliers are looked for: the median of fewer is not reliable."""


@dataclass(frozen=True)
class Survey:
    """Which points the cameras see, and how far away they are; lengths in the unit of the given cameras."""

    centers: Float[Tensor, "m 3"]
    seen: Bool[Tensor, "p"]
    """For each point of a sample, whether it is in at least one image."""
    blind: tuple[str, ...]
    """Cameras that see no point."""
    depth: float
    """Median over the cameras of the median depth of their visible points; NaN if no camera sees a point."""
    pixel: float
    """Width that a pixel covers at that depth, with the median focal length; NaN if no camera sees a point."""


def survey(cameras: Sequence[Camera], points: Float[Tensor, "n 3"]) -> Survey:
    """Projects a sample of the points into every camera.

    Args:
        cameras: At least one, at the image size to which ``Survey.pixel`` is to refer.
        points: World coordinates, float64.
    """
    sample = points[:: max(1, -(-len(points) // MAX_POINTS))]
    seen = torch.zeros(len(sample), dtype=torch.bool)
    depths, blind = [], []
    for camera in cameras:
        visible = in_view(sample, camera, near=0.0)
        seen |= visible
        if visible.any():
            depths.append(float(((sample[visible] - camera.center) @ camera.rotation[2]).median()))
        else:
            blind.append(camera)
    blind = [camera for camera in blind[:MAX_BLIND] if not bool(in_view(points, camera, near=0.0).any())]
    depth = float(torch.tensor(depths).median()) if depths else math.nan
    focal = float(torch.tensor([camera.fx for camera in cameras]).median())
    centers = torch.stack([camera.center for camera in cameras])
    return Survey(centers, seen, tuple(camera.name for camera in blind), depth, depth / focal)


def check_poses(
    model: Path, cameras: Sequence[Camera], points: Float[Tensor, "n 3"], partition: PartitionConfig
) -> list[Finding]:
    """All findings about poses and points.

    Args:
        model: Folder of the model, for messages.
        cameras: At least one.
        points: World coordinates, float64; may be empty.
        partition: Its ``aabb`` and ``dim`` are compared with the ground plane of the scene.
    """
    found = survey(cameras, points)
    findings = [*_check_parallax(model, cameras, found), *_check_outliers(model, cameras, found)]
    findings += _check_float_steps(model, found)
    if len(points):
        findings += [*_check_visibility(model, cameras, found), *_check_far_points(model, points, found)]
        findings += _check_ground(model, cameras, points, found, partition)
    return findings


def _check_parallax(model: Path, cameras: Sequence[Camera], found: Survey) -> list[Finding]:
    if len(cameras) == 1:
        return [Finding("warning", "poses-one", str(model), f"one camera, {cameras[0].name}",
                        "several at different places", "add images: one view does not determine depth")]  # fmt: skip
    spread = float((found.centers - found.centers.mean(dim=0)).norm(dim=1).max())
    if spread <= PARALLAX * (found.depth if math.isfinite(found.depth) else 1.0):
        return [Finding("warning", "poses-one-place", str(model), f"all {len(cameras)} cameras in one place (within "
                        f"{spread:.3g} units)", "cameras at different places", "check the poses: without parallax, "
                        "depth is undetermined, and offsets hardly move, as their learning rate is proportional to the "
                        "cameras' radius")]  # fmt: skip
    return []


def _check_outliers(model: Path, cameras: Sequence[Camera], found: Survey) -> list[Finding]:
    if len(cameras) < MIN_CAMERAS:
        return []
    findings = []
    cure = "look at them in the model, and remove those that were registered wrongly (colmap image_deleter)"
    distance = (found.centers - found.centers.median(dim=0).values).norm(dim=1)
    far = distance > FAR_CAMERA * distance.median()
    if far.any() and distance.median() > 0:
        names = _chosen(cameras, far)
        findings.append(Finding("warning", "poses-far", str(model), f"{some(names, len(cameras))}, more than "
                                f"{FAR_CAMERA:g} times as far from the centre as the median camera",
                                "cameras of one scene", cure, names))  # fmt: skip
    views = torch.stack([camera.rotation[2] for camera in cameras])
    # Elevation is measured from the cameras' median direction between down and forward, so the up axis need not be
    # known. A flipped pose differs in elevation.
    held = torch.stack([camera.rotation[1] + camera.rotation[2] for camera in cameras]).median(dim=0).values
    if held.norm() > 0.1:
        angle = torch.rad2deg(torch.asin((views @ (held / held.norm())).clamp(-1, 1)))
        off = (angle - angle.median()).abs()
        odd = off > max(ODD_DEGREES, 6 * 1.4826 * float(off.median()))
        if odd.any():
            names = _chosen(cameras, odd)
            findings.append(Finding("warning", "poses-direction", str(model), f"{some(names, len(cameras))}, looking "
                                    f"up to {float(off[odd].max()):.0f} degrees higher or lower than the median view",
                                    "similar directions", cure, names))  # fmt: skip
    return findings


def _check_float_steps(model: Path, found: Survey) -> list[Finding]:
    """A finding about coordinates so large (e.g. UTM) that float32, used in training, cannot resolve a pixel."""
    away = float(found.centers.abs().max())
    step = away * torch.finfo(torch.float32).eps
    if not step > FLOAT_STEP * found.pixel:
        return []
    return [Finding("warning", "far-from-origin", str(model), f"coordinates up to {away:.4g}, which float32 rounds to "
                    f"{step / found.pixel:.2g} pixels on the ground", f"less than {FLOAT_STEP:g} pixels",
                    "set scene.offset to the centre of the scene")]  # fmt: skip


def _check_visibility(model: Path, cameras: Sequence[Camera], found: Survey) -> list[Finding]:
    if not bool(found.seen.any()):
        return [Finding("error", "points-unseen", str(model), "no point projects into any image (all are behind the "
                        "cameras or outside the images)", "points that the cameras see", "check the poses: an export "
                        "may have swapped axes, or written camera-to-world for world-to-camera")]  # fmt: skip
    findings = []
    unseen = 1 - float(found.seen.double().mean())
    if unseen > UNSEEN:
        findings.append(Finding("warning", "points-unseen", str(model), f"{unseen:.0%} of the points project into no "
                                f"image", f"at most {UNSEEN:.0%}", "check the poses, and whether points and images "
                                "belong to the same reconstruction"))  # fmt: skip
    if found.blind:
        findings.append(Finding("warning", "poses-blind", str(model), f"{some(found.blind, len(cameras))} see no point",
                                "every camera to see points", "look at them in the model, and remove those that were "
                                "registered wrongly (colmap image_deleter)", found.blind))  # fmt: skip
    return findings


def _check_far_points(model: Path, points: Float[Tensor, "n 3"], found: Survey) -> list[Finding]:
    distance = (points - found.centers.median(dim=0).values).norm(dim=1)
    far = float((distance > FAR_POINT * distance.median()).double().mean())
    if far > 0.05:
        return [Finding("warning", "points-far", str(model), f"{far:.0%} of the points are more than {FAR_POINT:g} "
                        "times as far from the cameras as the median point", "at most 5%", "filter the points (colmap "
                        "point_filtering), as anchors are made from all of them")]  # fmt: skip
    return []


def _check_ground(
    model: Path, cameras: Sequence[Camera], points: Float[Tensor, "n 3"], found: Survey, partition: PartitionConfig
) -> list[Finding]:
    """Findings about the up axis, and about ``partition.aabb`` and ``partition.dim``, which should fit it."""
    try:
        open_layout = replace(partition, aabb=None, dim=(1, 1, 1))
        up = automatic_layout(cameras, points, open_layout).rotation[2]
    except UserError as error:
        return [Finding.of_error("up-axis", error, "warning")]
    axis = int(up.abs().argmax())
    name = f"{'+-'[int(up[axis] < 0)]}{'xyz'[axis]}"
    words = name if up[axis].abs() == 1 else f"({', '.join(f'{v:.3f}' for v in up.tolist())}), nearest {name}"
    findings = [Finding("info", "up-axis", str(model), f"up is {words}")]
    if partition.aabb is None:
        return findings
    if up[axis].abs() < 1:
        degrees = math.degrees(math.acos(min(1.0, float(up[axis].abs()))))
        findings.append(Finding("warning", "aabb", "partition.aabb", f"its axes are the world's, and the ground is "
                                f"tilted against them by {degrees:.0f} degrees", "a world axis that is up", "omit "
                                "partition.aabb: the grid is then aligned with the ground"))  # fmt: skip
    if partition.dim is not None and partition.dim[axis] > 1:
        findings.append(Finding("warning", "aabb", "partition.dim", f"{list(partition.dim)} stacks "
                                f"{partition.dim[axis]} cells along {'xyz'[axis]}, which is up", "1 cell along it",
                                "cut along the other two axes"))  # fmt: skip
    low, high = torch.tensor(partition.aabb, dtype=torch.float64).split(3)
    sides = [i for i in range(3) if i != axis]
    inside = ((found.centers >= low) & (found.centers <= high))[:, sides].all(dim=1).double().mean()
    if inside < 0.5:
        lowest, highest = found.centers.amin(dim=0).tolist(), found.centers.amax(dim=0).tolist()
        findings.append(Finding("warning", "aabb", "partition.aabb", f"{float(inside):.0%} of the cameras are inside "
                                f"it, seen from above (they span {_numbers(lowest)} to {_numbers(highest)})",
                                "at least half", "correct or omit it"))  # fmt: skip
    return findings


def _chosen(cameras: Sequence[Camera], mask: Bool[Tensor, "m"]) -> tuple[str, ...]:
    return tuple(camera.name for camera, chosen in zip(cameras, mask.tolist(), strict=True) if chosen)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
