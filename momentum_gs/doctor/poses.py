"""Poses and points against each other: strays, blind cameras, unseen points, the up axis, numbers too far out.

All measures are relative to the scene itself (medians of its own distances), so a scene may have any unit.
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
"""Sample of points that every camera is held against."""
MAX_BLIND = 50
"""Cameras that see none of the sample and are held against all points."""
PARALLAX = 1e-3
"""Spread of the cameras over their distance to the points under which there is no parallax: about a pixel at a focal
length of a thousand pixels."""
FAR_CAMERA = 10.0
"""Times the median distance from the cameras' middle. A flight line or a closed loop stays within 2."""
FAR_POINT = 30.0
"""Times the points' median distance from the cameras' middle."""
ODD_DEGREES = 60.0
"""Views that look so much higher or lower than the middle one, nadir and oblique flights in one scene staying below."""
UNSEEN = 0.1
"""Share of points in no image that says more than a few bad tracks."""
FLOAT_STEP = 0.1
"""Of a pixel on the ground: coordinates rounded more coarsely than this in float32 show."""
MIN_CAMERAS = 8
"""Fewer have no middle to stand out from."""


@dataclass(frozen=True)
class Survey:
    """How cameras and points lie to each other."""

    centers: Float[Tensor, "m 3"]
    seen: Bool[Tensor, "p"]
    """Of a sample of the points: in at least one image."""
    blind: tuple[str, ...]
    """Cameras that see no point."""
    depth: float
    """Median over the cameras of their median depth of visible points, training units; NaN where none sees one."""
    pixel: float
    """Scene units that a pixel of the middle camera covers at that depth; NaN likewise."""


def survey(cameras: Sequence[Camera], points: Float[Tensor, "n 3"]) -> Survey:
    """Holds every camera against a sample of the points.

    Args:
        cameras: At least one; sizes and focal lengths as pixels are wanted.
        points: World, float64.
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
    """All that poses and points say about each other.

    Args:
        model: Folder of the model, for messages.
        cameras: At least one.
        points: World, float64; may be empty.
        partition: Its ``aabb`` and ``dim`` are held against the scene's own ground.
    """
    found = survey(cameras, points)
    findings = [*_check_parallax(model, cameras, found), *_check_strays(model, cameras, found)]
    findings += _check_float_steps(model, found)
    if len(points):
        findings += [*_check_visibility(model, cameras, found), *_check_far_points(model, points, found)]
        findings += _check_ground(model, cameras, points, found, partition)
    return findings


def _check_parallax(model: Path, cameras: Sequence[Camera], found: Survey) -> list[Finding]:
    if len(cameras) == 1:
        return [Finding("warning", "poses-one", str(model), f"one camera, {cameras[0].name}",
                        "several, from different places", "add images: one view holds no depth")]  # fmt: skip
    spread = float((found.centers - found.centers.mean(dim=0)).norm(dim=1).max())
    if spread <= PARALLAX * (found.depth if math.isfinite(found.depth) else 1.0):
        return [Finding("warning", "poses-one-place", str(model), f"all {len(cameras)} cameras in one place (within "
                        f"{spread:.3g} units)", "cameras that moved", "check the poses: without parallax no depth is "
                        "held, and offsets, whose rate follows the cameras' radius, hardly move")]  # fmt: skip
    return []


def _check_strays(model: Path, cameras: Sequence[Camera], found: Survey) -> list[Finding]:
    if len(cameras) < MIN_CAMERAS:
        return []
    findings = []
    cure = "look at them in the model, take them out if they registered wrongly (colmap image_deleter)"
    distance = (found.centers - found.centers.median(dim=0).values).norm(dim=1)
    far = distance > FAR_CAMERA * distance.median()
    if far.any() and distance.median() > 0:
        names = _chosen(cameras, far)
        findings.append(Finding("warning", "poses-far", str(model), f"{some(names, len(cameras))}, more than "
                                f"{FAR_CAMERA:g} times as far from the middle as half of the cameras",
                                "cameras of one scene", cure, names))  # fmt: skip
    views = torch.stack([camera.rotation[2] for camera in cameras])
    # Against the mean way that cameras are held: what is up need not be known, and a flipped pose looks elsewhere.
    held = torch.stack([camera.rotation[1] + camera.rotation[2] for camera in cameras]).median(dim=0).values
    if held.norm() > 0.1:
        angle = torch.rad2deg(torch.asin((views @ (held / held.norm())).clamp(-1, 1)))
        off = (angle - angle.median()).abs()
        odd = off > max(ODD_DEGREES, 6 * 1.4826 * float(off.median()))
        if odd.any():
            names = _chosen(cameras, odd)
            findings.append(Finding("warning", "poses-direction", str(model), f"{some(names, len(cameras))}, looking "
                                    f"{float(off[odd].max()):.0f} degrees higher or lower than the middle one",
                                    "views of one kind of flight", cure, names))  # fmt: skip
    return findings


def _check_float_steps(model: Path, found: Survey) -> list[Finding]:
    """Coordinates so large that training's float32 cannot tell neighbouring pixels apart (UTM coordinates)."""
    away = float(found.centers.abs().max())
    step = away * torch.finfo(torch.float32).eps
    if not step > FLOAT_STEP * found.pixel:
        return []
    return [Finding("warning", "far-from-origin", str(model), f"coordinates up to {away:.4g}, which float32 rounds to "
                    f"{step / found.pixel:.2g} pixels on the ground", f"less than {FLOAT_STEP:g} pixels",
                    "set scene.offset to the middle of the scene")]  # fmt: skip


def _check_visibility(model: Path, cameras: Sequence[Camera], found: Survey) -> list[Finding]:
    if not bool(found.seen.any()):
        return [Finding("error", "points-unseen", str(model), "no point is inside any image (all behind the cameras "
                        "or beside them)", "points that the cameras see", "check the poses: an export may have turned "
                        "the axes, or written camera-to-world for world-to-camera")]  # fmt: skip
    findings = []
    unseen = 1 - float(found.seen.double().mean())
    if unseen > UNSEEN:
        findings.append(Finding("warning", "points-unseen", str(model), f"{unseen:.0%} of the points are behind all "
                                "cameras or beside their images", f"at most {UNSEEN:.0%}", "check the poses and "
                                "whether points and images belong to one reconstruction"))  # fmt: skip
    if found.blind:
        findings.append(Finding("warning", "poses-blind", str(model), f"{some(found.blind, len(cameras))} see no point",
                                "every image to hold points", "look at these poses, take them out if they "
                                "registered wrongly (colmap image_deleter)", found.blind))  # fmt: skip
    return findings


def _check_far_points(model: Path, points: Float[Tensor, "n 3"], found: Survey) -> list[Finding]:
    distance = (points - found.centers.median(dim=0).values).norm(dim=1)
    far = float((distance > FAR_POINT * distance.median()).double().mean())
    if far > 0.05:
        return [Finding("warning", "points-far", str(model), f"{far:.0%} of the points are more than {FAR_POINT:g} "
                        "times as far out as half of them", "at most 5%", "filter the points (colmap point_filtering): "
                        "each becomes an anchor")]  # fmt: skip
    return []


def _check_ground(
    model: Path, cameras: Sequence[Camera], points: Float[Tensor, "n 3"], found: Survey, partition: PartitionConfig
) -> list[Finding]:
    """The up axis, and the settings' box and grid against it."""
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
                                f"tilted against them by {degrees:.0f} degrees", "a world with an axis up", "leave "
                                "partition.aabb out: the grid then stands on the ground"))  # fmt: skip
    if partition.dim is not None and partition.dim[axis] > 1:
        findings.append(Finding("warning", "aabb", "partition.dim", f"{list(partition.dim)} stacks "
                                f"{partition.dim[axis]} cells along {'xyz'[axis]}, which is up", "1 cell along it",
                                "cut along the ground"))  # fmt: skip
    low, high = torch.tensor(partition.aabb, dtype=torch.float64).split(3)
    sides = [i for i in range(3) if i != axis]
    inside = ((found.centers >= low) & (found.centers <= high))[:, sides].all(dim=1).double().mean()
    if inside < 0.5:
        lowest, highest = found.centers.amin(dim=0).tolist(), found.centers.amax(dim=0).tolist()
        findings.append(Finding("warning", "aabb", "partition.aabb", f"{float(inside):.0%} of the cameras stand inside "
                                f"its ground plan (they span {_numbers(lowest)} to {_numbers(highest)})",
                                "at least half", "correct it, or leave it out"))  # fmt: skip
    return findings


def _chosen(cameras: Sequence[Camera], mask: Bool[Tensor, "m"]) -> tuple[str, ...]:
    return tuple(camera.name for camera, chosen in zip(cameras, mask.tolist(), strict=True) if chosen)


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
