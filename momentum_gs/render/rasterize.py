"""The only module that calls the rasterizer."""

from collections.abc import Sequence
from typing import Any

import diff_gaussian_rasterization.ops as ops
import torch
import torch.nn.functional as F
from diff_gaussian_rasterization.adam import adam_update
from diff_gaussian_rasterization.ops import Around, Capacity
from jaxtyping import Bool, Float, Int
from torch import Tensor

from momentum_gs.core.device import beside
from momentum_gs.core.types import Camera, Gaussians, RenderOutput
from momentum_gs.core.window import Window
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.splats import Splats


def rasterize(
    gaussians: Gaussians,
    camera: Camera,
    background: Float[Tensor, "c"],
    window: Window | None = None,
    around: Gaussians | None = None,
    capacity: Capacity | None = None,
) -> RenderOutput:
    """Rasterizes Gaussians for a camera; differentiable in every field of ``gaussians``.

    Args:
        gaussians: Gaussians with C colour channels; their device and dtype are those of the image.
        camera: The view.
        background: [C] colour behind the Gaussians.
        window: Part of the image to render: it has the bits of that part of the whole image, except in tiles that the
            window leaves out. None: all of it.
        around: Further Gaussians to render, which ``radii`` and ``screen_means`` do not cover, and which get gradients
            only if their means require them.
        capacity: What earlier views took, so that the host need not wait for a GPU before it has queued the drawing;
            changed. Results do not depend on it.

    Returns:
        Image, alpha, depth and radii. After a backward pass ``screen_means.grad[:, :2]`` is the gradient of the
        projected means in NDC of the whole image.
    """
    screen_means = torch.zeros_like(gaussians.means, requires_grad=torch.is_grad_enabled())
    means2d, everything, fixed = screen_means, gaussians, None
    if around is not None and not around.means.requires_grad:
        fixed = Around(around.means, around.opacities, around.colors, around.scales, around.quats)
    elif around is not None:
        means2d = torch.cat([screen_means, torch.zeros_like(around.means)])
        pairs = ((getattr(gaussians, name), getattr(around, name)) for name in gaussians.__dataclass_fields__)
        everything = Gaussians(*(torch.cat(pair) for pair in pairs))
    drawn = ops.rasterize(
        everything.means,
        everything.opacities,
        everything.colors,
        scales=everything.scales,
        quats=everything.quats,
        cov3d=None,
        background=background,
        means2d=means2d,
        window=None if window is None else window.rectangle,
        tiles=None if window is None else window.tiles,
        around=fixed,
        capacity=capacity,
        **_pinhole(camera, gaussians.means),
    )
    radii = drawn.radii[: len(gaussians)]
    return RenderOutput(image=drawn.image, alpha=drawn.alpha, depth=drawn.depth, radii=radii, screen_means=screen_means)


def median_depth(gaussians: Gaussians, camera: Camera) -> Float[Tensor, "h w"]:
    """Camera z of the Gaussian at which half of a pixel's light is gone, training units.

    It is 0 where more than half is left. Differentiable in ``gaussians.means``; the colours do not matter.
    """
    depth: Tensor = ops.median_depth(
        gaussians.means,
        gaussians.opacities,
        scales=gaussians.scales,
        quats=gaussians.quats,
        **_pinhole(camera, gaussians.means),
    )
    return depth


def spherical_harmonics(
    degree: int, directions: Float[Tensor, "g 3"], sh: Float[Tensor, "g k c"]
) -> Float[Tensor, "g c"]:
    """Evaluates real spherical harmonics in the order and signs of 3DGS; differentiable in both tensors.

    Args:
        degree: 0 to 3; the first (degree + 1)^2 of the K coefficients are used.
        directions: From the camera to each Gaussian, of any length above 0.
        sh: Coefficients of each Gaussian, K for each of C channels.
    """
    values: Tensor = ops.spherical_harmonics(degree, directions, sh)
    return values


def adam_rows(
    params: Sequence[Float[Tensor, "_ ..."]],
    rates: Sequence[float],
    steps: Sequence[int],
    first: Sequence[Float[Tensor, "_ ..."]],
    second: Sequence[Float[Tensor, "_ ..."]],
    rows: Bool[Tensor, "n"] | None,
    eps: float,
) -> None:
    """One step of Adam, in place, on some rows of several tensors that have gradients; the others keep their bits.

    Args:
        params: The tensors.
        rates: Their learning rates.
        steps: Which step this is for each, from 1, for the bias corrections.
        first: Their first moments.
        second: Their second moments.
        rows: The rows to move; None: all, and the tensors may have different numbers of them.
        eps: Added to the root of the second moment.
    """
    values = [param.detach() for param in params]
    grads = [param.grad.contiguous() for param in params if param.grad is not None]
    adam_update(values, grads, first, second, lrs=rates, steps=steps, visible=rows, eps=eps)


@torch.no_grad()
def anchors_in_view(
    anchors: Anchors, camera: Camera, window: Window | None = None, drawn: bool = False
) -> Bool[Tensor, "n"]:
    """Which anchors are in view: those whose ellipsoid with their first three scales projects onto the image, or onto
    its window; with ``drawn`` onto a square of the window that is drawn.

    Only these are decoded. Source: Scaffold-GS gaussian_renderer/__init__.py::prefilter_voxel.
    """
    radii: Tensor = ops.visible_radii(
        anchors.position,
        anchors.reach,
        anchors.rotation,
        window=None if window is None else window.rectangle,
        tiles=window.tiles if drawn and window is not None else None,
        **_pinhole(camera, anchors.position),
    )
    return radii > 0


def visible_anchors(anchors: Anchors, camera: Camera, window: Window | None = None) -> Int[Tensor, "m"]:
    """The rows of ``anchors_in_view``: int64, ascending. On a GPU, the host waits for their number."""
    return anchors_in_view(anchors, camera, window).nonzero()[:, 0]


@torch.no_grad()
def visible_splats(splats: Splats, camera: Camera) -> Int[Tensor, "m"]:
    """Indices of the splats that project onto the image: int64, ascending."""
    quats = F.normalize(splats.rotation)
    radii = ops.visible_radii(splats.position, splats.scales, quats, **_pinhole(camera, splats.position))
    return radii.nonzero()[:, 0]


def _pinhole(camera: Camera, like: Tensor) -> dict[str, Any]:
    return {
        "world_view": beside(camera.world_view, like),
        "fx": camera.fx,
        "fy": camera.fy,
        "cx": camera.cx,
        "cy": camera.cy,
        "width": camera.width,
        "height": camera.height,
    }
