"""Depth and normals of the surface that Gaussians make up, drawn in the same pass as the colours.

A Gaussian stands for the plane through its mean whose normal is the axis of its smallest scale. Its normal and the
plane's distance from the camera are blended like colours, as four further channels of the rasterizer, and the depth of
a pixel is where its ray meets the blended plane. Both numerator and denominator carry the weights, so that the depth
needs no division by alpha and does not depend on where inside of the ellipsoid the ray passes, as the blended camera z
of the means does. Source: PGSR (arXiv 2406.06521), eq. 3 to 5, whose normals are in camera axes; these are in the
world's, so that maps of different views can be compared.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.core.geometry import project
from momentum_gs.core.types import Camera, Gaussians, RenderOutput
from momentum_gs.core.window import Window

CHANNELS = 4
"""Channels beside the colours: the normal, and the plane's distance from the camera."""
MIN_ALPHA = 0.1
"""Accumulated opacity below which a pixel shows no surface."""
GRAZING = 0.01
"""Cosine between ray and blended normal below which a pixel shows no surface: the intersection is then anywhere."""


@dataclass(frozen=True)
class Surface:
    """The surface in one view; differentiable like the image."""

    depth: Float[Tensor, "h w"]
    """Planar depth: camera z where the pixel's ray meets the blended plane, training units; 0 without a surface."""
    normal: Float[Tensor, "3 h w"]
    """Blended normal, world axes, towards the camera, of unit length; 0 where nothing is drawn."""
    alpha: Float[Tensor, "h w"]
    """Accumulated opacity."""

    @property
    def there(self) -> Bool[Tensor, "h w"]:
        """Which pixels show a surface."""
        return self.depth > 0


def planes(gaussians: Gaussians, camera: Camera) -> tuple[Float[Tensor, "g 3"], Float[Tensor, "g 1"]]:
    """The plane of each Gaussian: unit normal in world axes, turned to the camera, and n . (mean - centre) <= 0."""
    normal, distance = _plane_rows(gaussians, camera).split((3, 1))
    return normal.T, distance.T


def _plane_rows(gaussians: Gaussians, camera: Camera) -> Float[Tensor, "4 g"]:
    """``planes``, with a row for each number, which torch computes several times as fast as columns."""
    first, second, third = _rows(gaussians.scales.detach())
    # 1 on the axis of the smallest scale, the first of equal ones; products with it are faster than a choice.
    on_x = (first <= second) & (first <= third)
    on_y = ~on_x & (second <= third)
    i, j, k = (on.to(first) for on in (on_x, on_y, ~(on_x | on_y)))
    real, x, y, z = _rows(gaussians.quats)
    # That axis, turned by the quaternion.
    cosine, twice = 1 - 2 * (x * x + y * y + z * z), 2 * real
    onto = 2 * (i * x + j * y + k * z)
    normal = (
        cosine * i + onto * x + twice * (k * y - j * z),
        cosine * j + onto * y + twice * (i * z - k * x),
        cosine * k + onto * z + twice * (j * x - i * y),
    )
    there = _rows(gaussians.means - camera.center.to(gaussians.means))
    distance = normal[0] * there[0] + normal[1] * there[1] + normal[2] * there[2]
    return torch.stack([*normal, distance]) * (1 - 2 * (distance.detach() > 0).to(distance))


def _rows(columns: Float[Tensor, "g n"]) -> Float[Tensor, "n g"]:
    """The transpose in memory; faster than torch's own copy of it."""
    return torch.stack(columns.unbind(dim=1))


def with_planes(gaussians: Gaussians, camera: Camera) -> Gaussians:
    """The Gaussians with their planes as ``CHANNELS`` further colour channels."""
    rows = torch.cat([gaussians.colors.T, _plane_rows(gaussians, camera)])
    return replace(gaussians, colors=rows.T.contiguous())


def take_planes(output: RenderOutput, camera: Camera, window: Window | None = None) -> tuple[RenderOutput, Surface]:
    """Takes a render of ``with_planes`` over a background of zeros in those channels apart.

    Args:
        output: The render.
        camera: The view.
        window: The part of it that was drawn.

    Returns:
        The render with its colours alone, and the surface.
    """
    image, normal, distance = output.image.split((len(output.image) - CHANNELS, 3, 1))
    # The products of ``pixel_rays`` with the normals, without making the rays: normals in the camera's axes are taken
    # times column, row and 1.
    columns, rows = _through(camera, normal, window)
    right, down, ahead = (camera.rotation.to(normal) @ normal.flatten(1)).view_as(normal)
    slope = torch.addcmul(torch.addcmul(ahead, right, columns), down, rows[:, None])
    inverse = _inverse_length(normal)
    unit = normal * inverse
    # Rays are up to half as long again as their camera z; that precision is enough for a bound.
    there = (output.alpha > MIN_ALPHA) & (slope.detach() * inverse.detach() < -GRAZING)
    depth = torch.where(there, distance[0] / torch.where(there, slope, -1.0), 0.0)
    return replace(output, image=image), Surface(depth, unit, output.alpha)


def expected_depth(output: RenderOutput) -> Float[Tensor, "h w"]:
    """Mean camera z of the means that a pixel shows, training units; 0 where alpha is below ``MIN_ALPHA``."""
    there = output.alpha > MIN_ALPHA
    return torch.where(there, output.depth / torch.where(there, output.alpha, 1.0), 0.0)


def unit_length(vectors: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """The vectors at length 1; 0 stays 0."""
    return vectors * _inverse_length(vectors)


def _inverse_length(vectors: Float[Tensor, "3 h w"]) -> Float[Tensor, "h w"]:
    """1 / length, bounded. Faster than torch's norm along the first axis by an order of magnitude."""
    x, y, z = vectors
    return torch.addcmul(torch.addcmul(x * x, y, y), z, z).clamp_min(1e-20).rsqrt()


def pixel_rays(camera: Camera, like: Tensor, window: Window | None = None) -> Float[Tensor, "3 h w"]:
    """Vectors in world axes from the camera through the centres of the pixels, as long as their camera z is 1.

    They have the dtype and device of ``like``.
    """
    columns, rows = _through(camera, like, window)
    right, down, ahead = camera.rotation.to(like)[:, :, None, None]
    return columns * right + rows[:, None] * down + ahead


def _through(camera: Camera, like: Tensor, window: Window | None) -> tuple[Float[Tensor, "w"], Float[Tensor, "h"]]:
    """x and y, in the camera's axes at z = 1, of the rays through the pixels' columns and rows."""
    x, y, width, height = (0, 0, camera.width, camera.height) if window is None else window.rectangle
    columns = (torch.arange(x, x + width, dtype=like.dtype, device=like.device) + 0.5 - camera.cx) / camera.fx
    rows = (torch.arange(y, y + height, dtype=like.dtype, device=like.device) + 0.5 - camera.cy) / camera.fy
    return columns, rows


def points_of_depth(
    depth: Float[Tensor, "h w"], camera: Camera, window: Window | None = None
) -> Float[Tensor, "3 h w"]:
    """The points that a depth map shows, relative to the camera's centre, in world axes."""
    return depth * pixel_rays(camera, depth, window)


def normals_of_depth(
    depth: Float[Tensor, "h w"], camera: Camera, window: Window | None = None
) -> Float[Tensor, "3 h w"]:
    """Unit normals of a depth map, world axes, towards the camera, from each pixel's four neighbours.

    They are 0 at the image's border and beside pixels without a depth.
    """
    points = points_of_depth(depth, camera, window)
    across = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
    there = depth > 0
    known = there[1:-1, 2:] & there[1:-1, :-2] & there[2:, 1:-1] & there[:-2, 1:-1]
    # torch's cross product along the first axis takes several times as long.
    (a, b, c), (x, y, z) = down, across
    normal = unit_length(torch.stack([b * z - c * y, c * x - a * z, a * y - b * x])) * known
    return F.pad(normal, (1, 1, 1, 1))


def sample_map(
    values: Float[Tensor, "c h w"], points: Float[Tensor, "n 3"], camera: Camera, mode: str = "bilinear"
) -> tuple[Float[Tensor, "c n"], Float[Tensor, "n"]]:
    """A view's map where world points fall, and the points' camera z, which is at most 0 behind the camera.

    Points outside of the image get zeros. ``mode``: of ``torch.nn.functional.grid_sample``.
    """
    pixels, z = project(points, camera)
    size = pixels.new_tensor([camera.width, camera.height])
    grid = torch.where((z > 0)[:, None], 2 * pixels / size - 1, -2.0)
    found = F.grid_sample(values[None], grid[None, None], mode=mode, padding_mode="zeros", align_corners=False)
    return found[0, :, 0], z
