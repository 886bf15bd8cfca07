"""A readable reference implementation in PyTorch, which documents the kernels and is the reference of their tests.

Every Gaussian is evaluated at every pixel, so it is only for small images; gradients are autograd's. Notation as in
csrc/common: t = R m + p is the mean in the camera, K the 2x2 screen covariance, T the transmittance.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diff_gaussian_rasterization.ops import NEAR, TILE, Rasterization, Window

LOW_PASS = 0.3
"""Added to the diagonal of the screen covariance, in square pixels (3DGS)."""
JACOBIAN_MARGIN = 1.3
"""The Jacobian is evaluated at positions clamped to this many times the field of view (3DGS)."""
MIN_ALPHA = 1 / 255
"""Contributions of less are skipped (3DGS)."""
MAX_ALPHA = 0.99
"""Upper bound of alpha (3DGS)."""
MIN_TRANSMITTANCE = 1e-4
"""A pixel is finished before its transmittance falls under this (3DGS)."""
MEDIAN = 0.5
"""The median depth is that of the Gaussian behind which the transmittance is first this or less."""
CULL_TILE = 16
"""Pixels that culling rounds the image's sides up to a multiple of: the tile of the CUDA original."""
REACH = 3.34
"""Standard deviations within which a Gaussian of opacity 1 reaches 1/255: sqrt(2 ln 255) = 3.329, and a margin."""

MIN_COMPENSATION = 0.005
"""Lower bound of the factor by which antialiasing lowers an opacity (3DGS)."""


def rotation_of(quats: Tensor) -> Tensor:
    """Rotation matrices [G,3,3] of quaternions [G,4] (w, x, y, z), which are not normalised here."""
    w, x, y, z = quats.unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def covariance_of(scales: Tensor, quats: Tensor) -> Tensor:
    """Covariances R diag(s)^2 R^T, [G,3,3]."""
    m = rotation_of(quats) * scales[:, None, :]
    return m @ m.mT


def project_reference(
    means: Tensor,
    cov: Tensor,
    world_view: Tensor,
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    width: int,
    height: int,
    near: float,
    window: Window | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means [G,2] in pixels, screen covariances [G,2,2], camera z [G], radii int32 [G] (0 where culled)."""
    rotation, translation = world_view[:3, :3], world_view[:3, 3]
    t = means @ rotation.T + translation
    x, y, z = t.unbind(-1)
    u, v = x / z, y / z
    margin_u = (JACOBIAN_MARGIN - 1) * 0.5 * width / fx
    margin_v = (JACOBIAN_MARGIN - 1) * 0.5 * height / fy
    uc = u.clamp(-cx / fx - margin_u, (width - cx) / fx + margin_u)
    vc = v.clamp(-cy / fy - margin_v, (height - cy) / fy + margin_v)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * uc / z, zero, fy / z, -fy * vc / z], -1).reshape(-1, 2, 3)
    p = jacobian @ rotation
    k = p @ cov @ p.mT + LOW_PASS * torch.eye(2, dtype=means.dtype, device=means.device)
    means2d = torch.stack([fx * u + cx, fy * v + cy], -1)

    det = k[:, 0, 0] * k[:, 1, 1] - k[:, 0, 1] ** 2
    mid = 0.5 * (k[:, 0, 0] + k[:, 1, 1])
    sigma = torch.sqrt(mid + torch.sqrt((mid * mid - det).clamp_min(0.1)))
    radius = torch.ceil(3 * sigma)
    # Culled unless the square around the mean, enlarged to multiples of 16 pixels, overlaps the image.
    px, py = (means2d - 0.5).unbind(-1)
    right, bottom = -(-width // CULL_TILE) * CULL_TILE, -(-height // CULL_TILE) * CULL_TILE
    meets = (px + radius >= 1) & (px - radius < right) & (py + radius >= 1) & (py - radius < bottom)
    # The same for the window, but with the farthest that a Gaussian is visible: what the whole image shows in this part
    # must not be missing from it.
    reach = torch.ceil(REACH * sigma)
    left, top, columns, rows = window or (0, 0, width, height)
    right, bottom = left + -(-columns // CULL_TILE) * CULL_TILE, top + -(-rows // CULL_TILE) * CULL_TILE
    shows = (px + reach >= left) & (px - reach < right) & (py + reach >= top) & (py - reach < bottom)
    visible = (z > near) & (det > 0) & (radius < 1e9) & meets & shows
    return means2d, k, z, torch.where(visible, radius, 0).to(torch.int32)


class _PixelCenters(torch.autograd.Function):
    """A copy [g,P,2] of the centers [g,2] for each pixel. The second argument receives the sum over pixels of the
    absolute values of their gradients."""

    @staticmethod
    def forward(ctx: Any, centers: Tensor, absolute: Tensor, pixels: int) -> Tensor:
        return centers[:, None].expand(-1, pixels, -1).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return grads[0].sum(1), grads[0].abs().sum(1), None


def compensation_reference(k: Tensor) -> Tensor:
    """Factors [G,1] that keep what Gaussians give the image, of screen covariances [G,2,2] with the low-pass filter."""
    narrow = k - LOW_PASS * torch.eye(2, dtype=k.dtype, device=k.device)
    share = torch.linalg.det(narrow) / torch.linalg.det(k)
    return share.clamp_min(MIN_COMPENSATION**2).sqrt()[:, None]


def rasterize_reference(
    means: Tensor,
    opacities: Tensor,
    colors: Tensor,
    *,
    scales: Tensor | None = None,
    quats: Tensor | None = None,
    cov3d: Tensor | None = None,
    world_view: Tensor,
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    width: int,
    height: int,
    background: Tensor,
    means2d: Tensor | None = None,
    scale_modifier: float = 1.0,
    near: float = NEAR,
    window: Window | None = None,
    tiles: Tensor | None = None,
    antialiasing: bool = False,
) -> Rasterization:
    """The same as ``ops.rasterize``, with the same arguments."""
    if cov3d is not None:
        cov = cov3d[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    else:
        assert scales is not None and quats is not None
        cov = covariance_of(scales * scale_modifier, quats)
    centers, k, z, radii = project_reference(means, cov, world_view, fx, fy, cx, cy, width, height, near, window)
    absolute = torch.zeros_like(centers)
    if means2d is not None:
        # NDC ranges over two units across the image.
        half = means2d.new_tensor([0.5 * width, 0.5 * height])
        centers = centers + means2d[:, :2] * half
        absolute = means2d[:, 2:] * half if means2d.shape[1] == 4 else absolute

    order = torch.nonzero(radii > 0)[:, 0]
    order = order[torch.argsort(z[order], stable=True)]
    if antialiasing:
        opacities = opacities * compensation_reference(k)
    conic = torch.linalg.inv(k[order])

    left, top, columns, rows = window or (0, 0, width, height)
    pixel_ys = torch.arange(top, top + rows, dtype=means.dtype, device=means.device) + 0.5
    pixel_xs = torch.arange(left, left + columns, dtype=means.dtype, device=means.device) + 0.5
    ys, xs = torch.meshgrid(pixel_ys, pixel_xs, indexing="ij")
    pixels = torch.stack([xs.reshape(-1), ys.reshape(-1)], -1)
    d = pixels[None] - _PixelCenters.apply(centers[order], absolute[order], len(pixels))
    power = -0.5 * torch.einsum("gpi,gij,gpj->gp", d, conic, d)
    alpha = (opacities[order] * torch.exp(power)).clamp_max(MAX_ALPHA)
    alpha = torch.where(alpha >= MIN_ALPHA, alpha, 0)
    if tiles is not None:
        squares = tiles.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
        alpha = torch.where(squares[:rows, :columns].reshape(-1), alpha, 0)
    # T behind each Gaussian. It decreases monotonically, so the early stop at the limit of T is a mask.
    behind = torch.cumprod(1 - alpha, 0)
    alpha = torch.where(behind >= MIN_TRANSMITTANCE, alpha, 0)
    front = torch.cumprod(torch.cat([torch.ones_like(alpha[:1]), 1 - alpha]), 0) if len(order) else None
    if front is None:
        front = means.new_ones(1, rows * columns)
    weight = alpha * front[:-1]
    image = torch.einsum("gp,gc->cp", weight, colors[order]) + background[:, None] * front[-1]
    depth = torch.einsum("gp,g->p", weight, z[order])
    return Rasterization(
        image.reshape(-1, rows, columns), (1 - front[-1]).reshape(rows, columns), depth.reshape(rows, columns), radii
    )


def median_depth_reference(means: Tensor, opacities: Tensor, *, near: float = NEAR, **settings: Any) -> Tensor:
    """The same as ``ops.median_depth``, with the same arguments: what is drawn of the nearest Gaussians alone shows the
    transmittance behind each."""
    plain = {"background": means.new_zeros(1), "near": near}
    view = settings["world_view"]
    z = means @ view[2, :3] + view[2, 3]
    order = z.argsort(stable=True)
    depth: Tensor = z.new_zeros(())
    for count in range(len(means), -1, -1):
        nearest = order[:count]
        rows = {k: settings[k][nearest] for k in ("scales", "quats", "cov3d") if settings.get(k) is not None}
        with torch.no_grad():
            solid = opacities[nearest]
            alpha = rasterize_reference(means[nearest], solid, colors=solid, **(settings | plain | rows)).alpha
        last = z[nearest[-1]] if count else z.new_zeros(())
        depth = torch.where(1 - alpha <= MEDIAN, last, depth)
    return depth


@torch.no_grad()
def adam_reference(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    moments: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    lrs: Sequence[float],
    steps: Sequence[int] | None,
    visible: Tensor | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15,
) -> None:
    """The same as ``adam.adam_update``, with the same arguments (Kingma and Ba 2015, algorithm 1)."""
    for i, (param, grad, moment, square) in enumerate(zip(params, grads, moments, squares, strict=True)):
        rows = torch.arange(len(param), device=param.device) if visible is None else visible.nonzero()[:, 0]
        mean = betas[0] * moment[rows] + (1 - betas[0]) * grad[rows]
        power = betas[1] * square[rows] + (1 - betas[1]) * grad[rows] ** 2
        moment[rows], square[rows] = mean, power
        if steps is not None:
            mean, power = mean / (1 - betas[0] ** steps[i]), power / (1 - betas[1] ** steps[i])
        param[rows] = param[rows] - lrs[i] * mean / (power.sqrt() + eps)
