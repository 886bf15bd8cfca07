"""Geometry: space contraction, quaternions, cameras.

Notation: world points are rows [N,3]; ``aabb`` is (xmin, ymin, zmin, xmax, ymax, zmax); pixels are COLMAP's, where the
centre of the first pixel is (0.5, 0.5); quaternions are (w, x, y, z).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from momentum_gs.core.types import Camera

Aabb = Shaped[Tensor, "6"] | Sequence[float | int]
_PAIRS = 2**14
"""Points times cameras that are looked at together: their five numbers each stay in the cache."""


def contract(points: Float[Tensor, "n 3"], aabb: Aabb) -> Float[Tensor, "n 3"]:
    """Map all of space into the unit cube, by the L-infinity contraction.

    The box maps linearly to [0.25, 0.75] on each axis. Let x be a point relative to the box's centre in units of its
    half edges, and |x| its largest absolute coordinate: points with |x| > 1 map to (2 - 1/|x|) x/|x| / 4 + 0.5.
    Source: CityGaussian's and Momentum-GS' contract_to_unisphere.

    Returns:
        Coordinates in [0, 1], in the dtype of ``points``.
    """
    low, high = _box(aabb, points)
    x = (points - low) / (high - low) * 2 - 1
    norm = x.abs().amax(dim=1, keepdim=True)
    outside = (2 - 1 / norm) * (x / norm)
    return torch.where(norm > 1, outside, x) / 4 + 0.5


def uncontract(unit: Float[Tensor, "n 3"], aabb: Aabb) -> Float[Tensor, "n 3"]:
    """Inverse of ``contract``. Points on the faces of the unit cube map to infinity."""
    low, high = _box(aabb, unit)
    y = (unit - 0.5) * 4
    norm = y.abs().amax(dim=1, keepdim=True)
    # |x| = 1 / (2 - |y|). Points on a face of the cube, or beyond it by round-off, map to infinity without a change of
    # sign; their zero coordinates stay zero, where 0 * inf would be NaN.
    outside = torch.where(y == 0, y, (y / norm) / (2 - norm).clamp_min(0))
    x = torch.where(norm > 1, outside, y)
    return (x + 1) / 2 * (high - low) + low


def _box(aabb: Aabb, like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = torch.as_tensor(aabb, dtype=like.dtype, device=like.device).split(3)
    return low, high


def quat_to_matrix(quats: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices of quaternions (w, x, y, z) of any positive length."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_quat(rotations: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternions (w, x, y, z) of rotation matrices, with w >= 0.

    The quaternion is the eigenvector of the largest eigenvalue of a symmetric 4x4 matrix (Bar-Itzhack 2000), which
    needs no case distinction and is exact to round-off for every angle.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in rotations.unbind(-2))
    zero = torch.zeros_like(xx)
    # eigh reads the lower triangle.
    rows = (
        (xx + yy + zz, zero, zero, zero),
        (zy - yz, xx - yy - zz, zero, zero),
        (xz - zx, xy + yx, yy - xx - zz, zero),
        (yx - xy, xz + zx, yz + zy, zz - xx - yy),
    )
    quats = torch.linalg.eigh(torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)).eigenvectors[..., -1]
    return torch.where(quats[..., :1] < 0, -quats, quats)


def project(points: Float[Tensor, "n 3"], camera: Camera) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n"]]:
    """Pinhole projection of world points.

    Returns:
        Pixels (x, y) and depth along the camera's axis, in the unit of the points. Behind the camera the depth is
        negative and the pixel is meaningless; at depth 0 the pixel is infinite or NaN.
    """
    # Subtracting the centre first keeps precision where the scene lies far from the origin.
    seen = (points - camera.center.to(points)) @ camera.rotation.to(points).T
    x, y, depth = seen.unbind(1)
    return torch.stack([camera.fx * x / depth + camera.cx, camera.fy * y / depth + camera.cy], dim=1), depth


def pixel_directions(camera: Camera, like: Tensor) -> Float[Tensor, "p 3"]:
    """Unit vectors, in world axes, from the camera through the centre of each pixel, row by row.

    They have the dtype and device of ``like``.
    """
    column, row = (
        torch.arange(side, dtype=like.dtype, device=like.device) + 0.5 for side in (camera.width, camera.height)
    )
    y, x = torch.meshgrid((row - camera.cy) / camera.fy, (column - camera.cx) / camera.fx, indexing="ij")
    seen = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3)
    return F.normalize(seen) @ camera.rotation.to(like)


def in_view(points: Float[Tensor, "n 3"], camera: Camera, near: float = 0.2, margin: float = 0.0) -> Bool[Tensor, "n"]:
    """Which points fall into the image.

    Args:
        points: In world coordinates.
        camera: The view.
        near: Smallest depth, training units (0.2: the rasterizer of 3DGS).
        margin: Widens the image on every side, as a share of its width and height.
    """
    pixels, depth = project(points, camera)
    size = pixels.new_tensor([camera.width, camera.height])
    inside = (pixels >= -margin * size) & (pixels < (1 + margin) * size)
    return inside.all(dim=1) & (depth > near)


def in_any_view(points: Float[Tensor, "n 3"], cameras: Sequence[Camera], near: float = 0.2) -> Bool[Tensor, "n"]:
    """Which points fall into at least one of the images: ``in_view`` for many cameras, in float64, up to rounding."""
    return Sight(cameras, near).see(points)


class Sight:
    """What cameras see, for several sets of points or boxes.

    A point is in view if it is on the inner side of the five planes that bound the view.
    """

    def __init__(self, cameras: Sequence[Camera], near: float = 0.2) -> None:
        """``near``: smallest depth, training units."""
        # Keeps precision where the scene lies far from the origin.
        self._origin = cameras[0].center.double() if cameras else torch.zeros(3, dtype=torch.float64)
        self._sides, self._offsets = _sides(cameras, near, self._origin)

    def see(self, points: Float[Tensor, "n 3"], among: Bool[Tensor, "c"] | None = None) -> Bool[Tensor, "n"]:
        """Which points at least one of the cameras sees, or of those ``among`` them.

        Several cameras are asked at once, and only about the points that none before them sees.
        """
        asked = range(self._offsets.shape[1]) if among is None else among.nonzero().squeeze(1).tolist()
        # Cameras that follow one another see the same, so those that are asked together are spread by the golden ratio.
        spread = sorted(asked, key=lambda i: i * 0.618034 % 1)
        sides, offsets = self._sides[:, spread], self._offsets[:, spread, None]
        seen = torch.zeros(len(points), dtype=torch.bool)
        left, near_by = torch.arange(len(points)), points.double() - self._origin
        begin = 0
        while begin < len(spread) and len(left):
            end = begin + max(_PAIRS // len(left), 1)
            found = _inside(sides[:, begin:end] @ near_by.T - offsets[:, begin:end]).any(dim=0)
            begin = end
            seen[left[found]] = True
            left, near_by = left[~found], near_by[~found]
        return seen

    def may_show(self, boxes: Float[Tensor, "b 6"]) -> Bool[Tensor, "b c"]:
        """Which axis-aligned boxes may be visible in which images; up to rounding never false if a point of it is.

        A box is outside an image if all of it is beyond one of the planes that bound the view, or if it is NaN.

        Args:
            boxes: xmin, ymin, zmin, xmax, ymax, zmax in world coordinates.
        """
        low, high = boxes.double().view(-1, 2, 3).unbind(1)
        middle, half = (low + high) / 2 - self._origin, (high - low) / 2
        # The corner that is farthest on the inner side.
        return _inside(self._sides @ middle.T + self._sides.abs() @ half.T - self._offsets[:, :, None]).T


def _sides(
    cameras: Sequence[Camera], near: float, origin: Float[Tensor, "3"]
) -> tuple[Float[Tensor, "5 c 3"], Float[Tensor, "5 c"]]:
    """The planes that bound views, float64: inward normals, and what a point's product with them, from ``origin``, has
    to exceed. In front, at the right, at the bottom, at the left, at the top; the last two belong to the view."""
    if not cameras:
        return origin.new_zeros(5, 0, 3), origin.new_zeros(5, 0)
    x, y, depth = torch.stack([camera.rotation for camera in cameras]).double().unbind(1)
    lens = [[camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height] for camera in cameras]
    fx, fy, cx, cy, width, height = torch.tensor(lens, dtype=torch.float64)[:, :, None].unbind(1)
    u, v = fx * x + cx * depth, fy * y + cy * depth
    sides = torch.stack([depth, width * depth - u, height * depth - v, u, v])
    offsets = (sides * (torch.stack([camera.center for camera in cameras]) - origin)).sum(dim=2)
    offsets[0] += near
    return sides, offsets


def _inside(beyond: Float[Tensor, "5 c n"]) -> Bool[Tensor, "c n"]:
    """Whether something lies on the inner side of all planes, by how far it is beyond each."""
    return (beyond[:3].amin(dim=0) > 0) & (beyond[3:].amin(dim=0) >= 0)


def camera_radius(centers: Float[Tensor, "m 3"]) -> float:
    """1.1 times the largest distance of a camera from the cameras' mean, in the unit of ``centers``.

    This is ``spatial_lr_scale`` of 3DGS codebases (3DGS scene/dataset_readers.py::getNerfppNorm).
    """
    return 1.1 * float((centers - centers.mean(dim=0)).norm(dim=1).max())


def world_view_transform(rotation_c2w: Float[Tensor, "3 3"], translation: Float[Tensor, "3"]) -> Float[Tensor, "4 4"]:
    """``world_view_transform`` of 3DGS codebases: world to camera for row vectors, ``[x y z 1] @ matrix``.

    Args:
        rotation_c2w: Camera to world (3DGS codebases store the transposed COLMAP rotation).
        translation: World to camera, as COLMAP has it.
    """
    matrix = torch.eye(4, dtype=rotation_c2w.dtype, device=rotation_c2w.device)
    matrix[:3, :3] = rotation_c2w
    matrix[3, :3] = translation
    return matrix


def projection_matrix(znear: float, zfar: float, fovx: float, fovy: float) -> Float[Tensor, "4 4"]:
    """The perspective matrix of 3DGS codebases for row vectors, float64; depth [znear, zfar] maps to [0, 1].

    ``full_proj_transform`` is ``world_view_transform @ projection_matrix``. Angles in radians.
    """
    matrix = torch.zeros(4, 4, dtype=torch.float64)
    matrix[0, 0] = 1 / math.tan(fovx / 2)
    matrix[1, 1] = 1 / math.tan(fovy / 2)
    matrix[2, 2] = zfar / (zfar - znear)
    matrix[3, 2] = -zfar * znear / (zfar - znear)
    matrix[2, 3] = 1
    return matrix
