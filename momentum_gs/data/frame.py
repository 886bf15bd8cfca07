"""The coordinates that a scene trains in: those of its files, or normalized ones that do not depend on their unit.

Learning rates, loss terms, bounds and the near plane of 3DGS codebases depend on the unit of length; they were tuned on
scenes whose cameras see the subject from a few units away. A survey in metres is a hundred times as large, one in other
units a tenth. In normalized coordinates these values mean the same for every scene: the origin is the centre of the
cameras, the median viewing distance is ``VIEW_DISTANCE``, and axes are rotated by quarter turns so that z points up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.config.schema import Axis, SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_view
from momentum_gs.core.types import Camera, PointCloud

VIEW_DISTANCE = 5.0
"""Median distance from the cameras to the points in normalized coordinates, training units. It is about that of the
captures on which the learning rates of 3DGS and Scaffold-GS were tuned, whose cameras circle their subject at a radius
of four to five units."""

# Normalized coordinates are rounded to multiples of these, so that round-off from a file's unit or origin does not
# reach the training: a scene in feet, or shifted by a million, gives bit-identical training. At 5 units from the ground
# and a focal length of 5,000 pixels, rounding moves a camera by at most 0.0005 pixels and a point by 0.008. Rotations
# are rounded more finely than the float32 of the renderer.
_CAMERA_STEP = 2.0**-20
_POINT_STEP = 2.0**-16
_ROTATION_STEP = 2.0**-30
_SAMPLE = 20_000
"""Number of points from which the viewing distance is measured, at most."""

Axes = tuple[Axis, Axis, Axis]


@dataclass(frozen=True)
class Frame:
    """Transform from the scene's coordinates to training coordinates: ``axes @ (point - offset) / unit``."""

    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Origin of the training coordinates, scene units."""
    unit: float = 1.0
    """Scene units in one training unit."""
    axes: Axes = ("x", "y", "z")
    """Axes of the scene that become x, y and z; they must be right-handed."""
    normalized: bool = False
    """Whether coordinates are rounded to the steps of normalized coordinates."""

    @property
    def rotation(self) -> Float[Tensor, "3 3"]:
        """Rotation from scene axes to training axes, float64; a signed permutation."""
        return torch.stack([_vector(axis) for axis in self.axes])

    @property
    def is_identity(self) -> bool:
        """Whether training coordinates are those of the scene's files."""
        return not any(self.offset) and self.unit == 1 and self.axes == ("x", "y", "z")

    def record(self) -> dict[str, Any]:
        """Offset, unit and axes as JSON values."""
        return {"offset": list(self.offset), "unit": self.unit, "axes": list(self.axes)}

    def recorded(self, config: SceneConfig) -> SceneConfig:
        """The settings with this frame's values, which reproduce it even if the scene changes."""
        if self.is_identity:
            return config
        return replace(config, offset=self.offset, unit=self.unit, axes=self.axes if self.normalized else config.axes)

    def points(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Points of the scene in training coordinates, float64."""
        return self._rounded(self._moved(xyz), _POINT_STEP)

    def scene_points(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Points from training coordinates to the scene's, float64; the inverse of ``points``, except for rounding."""
        offset = torch.tensor(self.offset, dtype=torch.float64)
        return xyz.double() * self.unit @ self.rotation + offset

    def camera(self, camera: Camera) -> Camera:
        """A camera of the scene in training coordinates."""
        rotation = self._rounded(camera.rotation @ self.rotation.T, _ROTATION_STEP)
        if self.normalized:
            center = self._rounded(self._moved(camera.center[None]), _CAMERA_STEP)[0]
            return replace(camera, rotation=rotation, translation=-rotation @ center)
        shift = torch.tensor(self.offset, dtype=torch.float64)
        translation = (camera.translation + camera.rotation @ shift) / self.unit
        return replace(camera, rotation=rotation, translation=translation)

    def _moved(self, xyz: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        offset = torch.tensor(self.offset, dtype=torch.float64)
        return (xyz.double() - offset) @ self.rotation.T / self.unit

    def _rounded(self, values: Float[Tensor, "n 3"], step: float) -> Float[Tensor, "n 3"]:
        return (values / step).round() * step if self.normalized else values


def recorded_frame(config: SceneConfig, record: Mapping[str, Any]) -> SceneConfig:
    """The settings with ``unit: auto`` replaced by a recorded frame (``Frame.record``), if the record has one."""
    if config.unit != "auto" or not {"offset", "unit", "axes"} <= record.keys():
        return config
    return replace(config, offset=tuple(record["offset"]), unit=record["unit"], axes=tuple(record["axes"]))


def same_frame(one: SceneConfig, other: SceneConfig) -> bool:
    """Whether two runs have the same coordinates, according to their recorded settings (``Frame.recorded``)."""
    none = (0.0, 0.0, 0.0)
    return (one.offset or none, one.unit, one.axes) == (other.offset or none, other.unit, other.axes)


def check_axes(axes: Axes) -> None:
    """Raises UserError if the axes are not right-handed."""
    rotation = torch.stack([_vector(axis) for axis in axes])
    if round(float(torch.linalg.det(rotation))) != 1:
        raise UserError(
            f"config: scene.axes is {list(axes)}, expected a right-handed set of x, y, z with signs, such as x,-z,y"
        )


def normalized_frame(
    cameras: Sequence[Camera],
    points: PointCloud,
    offset: tuple[float, float, float] | None = None,
    axes: Axes | None = None,
) -> Frame:
    """The frame of normalized coordinates.

    The same views and points, scaled, shifted or rotated by quarter turns, give the same training coordinates.

    Args:
        cameras: All views, at least one, in scene coordinates.
        points: The sparse points, in scene coordinates.
        offset: Origin, scene units; None: the centre of the cameras.
        axes: Axes that become x, y and z; None: chosen so that z points up.

    Raises:
        UserError: no camera has a point in view, so that the viewing distance cannot be measured.
    """
    centers = torch.stack([camera.center for camera in cameras])
    center = centers.mean(dim=0)
    origin = center if offset is None else torch.tensor(offset, dtype=torch.float64)
    unit = view_distance(cameras, points) / VIEW_DISTANCE
    if axes is None:
        axes = _upright(cameras, _sample(points), center)
    x, y, z = origin.tolist()
    return Frame((x, y, z), unit, axes, normalized=True)


def view_distance(cameras: Sequence[Camera], points: PointCloud) -> float:
    """Median depth over all pairs of a camera and a point in its view, in the unit of the points.

    Raises:
        UserError: no camera has a point in view.
    """
    sample = _sample(points)
    depths = []
    for camera in cameras:
        seen = sample[in_view(sample, camera, near=0.0)]
        depths.append((seen - camera.center) @ camera.rotation[2])
    depth = torch.cat(depths)
    if len(depth) == 0:
        raise UserError(
            f"scene: none of {len(sample)} points is in view of any of {len(cameras)} cameras, expected points that "
            "they see; check the poses in sparse/0, or set scene.unit=1 to train in the scene's own coordinates"
        )
    return float(depth.median())


def _sample(points: PointCloud) -> Float[Tensor, "n 3"]:
    return points.xyz[:: -(-len(points) // _SAMPLE)].double()


def _upright(cameras: Sequence[Camera], points: Float[Tensor, "n 3"], center: Float[Tensor, "3"]) -> Axes:
    """z: the signed axis closest to up; x: of the four others, the one closest to the direction from cameras to points.

    Cameras are assumed to be held upright and to look at the horizon or below it, so that up is between the cameras'
    mean up and backward directions. Where these are two different axes, as in images taken straight down, up is the one
    along which the points spread less.
    """
    towards = points.mean(dim=0) - center  # Its length does not matter; it rotates with the scene.
    low, high = torch.quantile(points, torch.tensor([0.25, 0.75], dtype=points.dtype), dim=0)
    spread = high - low
    held = -torch.stack([camera.rotation[1] + camera.rotation[2] for camera in cameras]).mean(dim=0)
    up = held / (spread + spread.max()).clamp_min(1e-300)
    every = get_args(Axis)
    z = max(every, key=lambda axis: float(_vector(axis) @ up))
    x = max((a for a in every if a[-1] != z[-1]), key=lambda axis: float(_vector(axis) @ towards))
    y = torch.linalg.cross(_vector(z), _vector(x))
    return x, next(axis for axis in every if bool((_vector(axis) == y).all())), z


def _vector(axis: Axis) -> Float[Tensor, "3"]:
    unit = torch.zeros(3, dtype=torch.float64)
    unit["xyz".index(axis[-1])] = -1.0 if axis.startswith("-") else 1.0
    return unit
