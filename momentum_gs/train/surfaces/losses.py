"""Loss terms on the surface: flat Gaussians, one view's depth against its normals, and two views against each other.

Notation: the view in training has depth and normals from its own render; the neighbour's are held fixed, as each view
is in training at some step. Source: PGSR (arXiv 2406.06521), sections 3.3 and 3.4; what differs is in docs/surfaces.md.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from momentum_gs.core.types import Camera
from momentum_gs.core.window import Window
from momentum_gs.render.surface import Surface, normals_of_depth, pixel_rays, points_of_depth

PATCH = 3
"""Pixels around the middle of a patch: patches of 7 x 7 (PGSR)."""
PATCHES = 4096
"""Patches compared in a step: with 49 samples each, about what drawing a small image costs on a CPU."""
CLOSE = 1.0
"""Pixels by which a point may miss its pixel after the way to the neighbour's surface and back (PGSR): farther, the
neighbour sees another surface."""
UNLIKE = 0.9
"""1 - correlation from which two patches are taken to show different things (PGSR)."""
_LUMA = (0.299, 0.587, 0.114)


def flatness(scales: Float[Tensor, "g 3"]) -> Float[Tensor, ""]:
    """Mean smallest scale, training units; 0 without Gaussians."""
    return scales.amin(dim=1).sum() / max(len(scales), 1)


def gray(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "h w"]:
    """Luma in [0, 1]."""
    red, green, blue = image
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def smoothness(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "h w"]:
    """(1 - gradient)^2 in [0, 1], with the image's largest gradient as 1: small at edges of the image, where surfaces
    may end; 0 at its border."""
    luma = gray(image)
    across, down = luma[1:-1, 2:] - luma[1:-1, :-2], luma[2:, 1:-1] - luma[:-2, 1:-1]
    gradient = (across.square() + down.square()).sqrt()
    return F.pad((1 - gradient / gradient.amax().clamp_min(1e-6)).square(), (1, 1, 1, 1))


def normal_errors(
    surface: Surface, camera: Camera, image: Float[Tensor, "3 h w"], window: Window | None
) -> Float[Tensor, "h w"]:
    """Difference (L1) between the normals of the depth map and the blended ones, by ``smoothness`` of the image."""
    of_depth = normals_of_depth(surface.depth, camera, window)
    known = (of_depth.detach() != 0).any(dim=0)
    error = (of_depth - surface.normal).abs().sum(dim=0)
    return torch.where(known, smoothness(image) * error, 0.0)


@dataclass(frozen=True)
class Match:
    """Where the pixels of a view fall in a neighbour, for those that both see."""

    pixel: Int64[Tensor, "m"]
    """Row times width plus column, in the view's window."""
    error: Float[Tensor, "m"]
    """Pixels by which the way there and back misses; differentiable."""
    weight: Float[Tensor, "m"]
    """exp(-error), without gradient: how surely both see the same surface."""


def match(
    surface: Surface, camera: Camera, other: Surface, other_camera: Camera, window: Window | None = None
) -> Match:
    """Sends every pixel's surface point to the neighbour, and the neighbour's surface point there back.

    Args:
        surface: Of the view in training, of its window.
        camera: The view.
        other: Of the neighbour, whole.
        other_camera: The neighbour.
        window: Of the view.
    """
    there = (surface.depth > 0).flatten().nonzero()[:, 0]
    step = (camera.center - other_camera.center).to(surface.depth)
    turn, back = other_camera.rotation.to(surface.depth), camera.rotation.to(surface.depth)
    points = points_of_depth(surface.depth, camera, window).flatten(1)[:, there]
    x, y, z = turn @ (points + step[:, None])
    ahead = z.detach() > 1e-3
    safe = torch.where(ahead, z, 1.0)
    u, v = other_camera.fx * x / safe + other_camera.cx, other_camera.fy * y / safe + other_camera.cy
    grid = torch.stack([2 * u / other_camera.width - 1, 2 * v / other_camera.height - 1], dim=-1)[None, None]
    found = F.grid_sample(other.depth[None, None], grid, mode="bilinear", align_corners=False)[0, 0, 0]
    inside = (grid[0, 0].detach().abs() < 1).all(dim=1) & ahead & (found.detach() > 0)
    right, down = (u - other_camera.cx) / other_camera.fx, (v - other_camera.cy) / other_camera.fy
    again = back @ (turn.T @ torch.stack([right * found, down * found, found]) - step[:, None])
    near = torch.where(inside & (again[2].detach() > 1e-3), again[2], 1.0)
    column, row = camera.fx * again[0] / near + camera.cx, camera.fy * again[1] / near + camera.cy
    left, top, width = (0, 0, camera.width) if window is None else window.rectangle[:3]
    own_column, own_row = there % width + left + 0.5, there // width + top + 0.5
    error = ((column - own_column).square() + (row - own_row).square()).clamp_min(1e-12).sqrt()
    close = (inside & (error.detach() < CLOSE)).nonzero()[:, 0]
    error = error[close]
    return Match(there[close], error, (-error.detach()).exp())


def patch_errors(
    surface: Surface,
    camera: Camera,
    luma: Float[Tensor, "h w"],
    other_camera: Camera,
    other_luma: Float[Tensor, "rows columns"],
    pixel: Int64[Tensor, "m"],
    window: Window | None = None,
) -> Float[Tensor, "m"]:
    """1 - normalised cross correlation of the patch around each pixel and the neighbour's, warped by the plane that the
    pixel shows; from 0 to 2, and without gradient where it exceeds ``UNLIKE``.

    Args:
        surface: Of the view in training.
        camera: The view.
        luma: Its image, of the window.
        other_camera: The neighbour.
        other_luma: Its image.
        pixel: Middles of the patches; at least ``PATCH`` pixels from the border of the window.
        window: Of the view.
    """
    width = luma.shape[1]
    normal = surface.normal.flatten(1)[:, pixel]
    rays = pixel_rays(camera, luma, window).flatten(1)[:, pixel]
    slope = (normal * rays).sum(dim=0)
    depth = surface.depth.flatten()[pixel]
    offset = torch.arange(-PATCH, PATCH + 1, device=luma.device)
    rows, columns = (part.flatten() for part in torch.meshgrid(offset, offset, indexing="ij"))
    # Where the other camera sees the plane's points is linear in the offset, up to a factor: three vectors a patch and
    # one product give all samples, in two thirds of the time that it takes to meet every ray with the plane.
    axes, turn = camera.rotation.to(luma), other_camera.rotation.to(luma)
    ways = torch.stack([axes[0] / camera.fx, axes[1] / camera.fy])
    tilts = ways @ normal
    step = turn @ (camera.center - other_camera.center).to(luma)
    places = torch.stack([
        turn @ rays + step[:, None] / depth,
        *((turn @ way)[:, None] + step[:, None] * (tilt / (depth * slope))
          for way, tilt in zip(ways, tilts, strict=True)),
    ], dim=2)  # fmt: skip
    x, y, z = places @ torch.stack([torch.ones_like(rows), columns, rows]).to(luma)
    z = z.clamp_min(1e-3)
    u = other_camera.fx * x / z + other_camera.cx
    v = other_camera.fy * y / z + other_camera.cy
    grid = torch.stack([2 * u / other_camera.width - 1, 2 * v / other_camera.height - 1], dim=-1)
    theirs = F.grid_sample(other_luma[None, None], grid[None], mode="bilinear", align_corners=False)[0, 0]
    ours = luma.flatten()[pixel[:, None] + rows * width + columns]
    ours, theirs = ours - ours.mean(dim=1, keepdim=True), theirs - theirs.mean(dim=1, keepdim=True)
    # The constant is the noise of images of 8 bits: a patch without detail is like any other.
    energy = (ours.square().mean(dim=1) + 1e-4) * (theirs.square().mean(dim=1) + 1e-4)
    error = 1 - (ours * theirs).mean(dim=1) / energy.sqrt()
    inside = (grid.detach().abs() < 1).flatten(1).all(dim=1)
    # The corner where the plane is seen most from its edge; beyond, its back would be.
    inside &= slope.detach() + PATCH * tilts.detach().abs().sum(dim=0) < -1e-3
    return torch.where(inside & (error.detach() < UNLIKE), error, 0.0)
