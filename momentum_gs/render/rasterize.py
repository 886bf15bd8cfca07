"""The only door to the rasterizer."""

from typing import Any

import diff_gaussian_rasterization.ops as ops
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from momentum_gs.core.types import Camera, Gaussians, RenderOutput
from momentum_gs.model.anchors import Anchors


def rasterize(
    gaussians: Gaussians,
    camera: Camera,
    background: Float[Tensor, "c"],
    window: ops.Window | None = None,
    tiles: Bool[Tensor, "rows columns"] | None = None,
) -> RenderOutput:
    """Draws Gaussians into the camera's pixel grid, differentiable in every field of ``gaussians``.

    Args:
        gaussians: What to draw; its device and dtype are those of the image.
        camera: The view.
        background: Colour behind everything, [C].
        window: The part of the image to draw, as (x, y, width, height) in its pixels; without one all of it. What is
            drawn has the bits of that part of the whole image, and costs about its share of the pixels.
        tiles: Which squares of 16x16 pixels of the window, counted from its corner, are drawn,
            [ceil(height/16), ceil(width/16)]; the others show the background, with alpha and depth 0.

    Returns:
        The image, of the window's size. After a backward pass ``screen_means.grad[:, :2]`` is the gradient of the
        projected means in NDC of the whole image.
    """
    screen_means = torch.zeros_like(gaussians.means, requires_grad=torch.is_grad_enabled())
    drawn = ops.rasterize(
        gaussians.means,
        gaussians.opacities,
        gaussians.colors,
        scales=gaussians.scales,
        quats=gaussians.quats,
        cov3d=None,
        background=background,
        means2d=screen_means,
        window=window,
        tiles=tiles,
        **_pinhole(camera, gaussians.means),
    )
    return RenderOutput(
        image=drawn.image, alpha=drawn.alpha, depth=drawn.depth, radii=drawn.radii, screen_means=screen_means
    )


def spherical_harmonics(
    degree: int, directions: Float[Tensor, "g 3"], sh: Float[Tensor, "g k c"]
) -> Float[Tensor, "g c"]:
    """Real spherical harmonics in the order and signs of 3DGS, differentiable in both tensors.

    Args:
        degree: 0 to 3; the first (degree + 1)^2 of the K coefficients are used.
        directions: From the camera to each Gaussian, any length above 0.
        sh: Coefficients.
    """
    values: Tensor = ops.spherical_harmonics(degree, directions, sh)
    return values


@torch.no_grad()
def visible_anchors(anchors: Anchors, camera: Camera, window: ops.Window | None = None) -> Int[Tensor, "m"]:
    """Rows of the anchors whose own ellipsoid, of the first three scales, touches the image.

    The others are not decoded. Source: Scaffold-GS gaussian_renderer/__init__.py::prefilter_voxel.

    Args:
        anchors: Which of them are looked for.
        camera: The view.
        window: Only those that can touch this part of the image, as in ``rasterize``. An anchor's Gaussians are placed
            off it and may reach farther than its own ellipsoid: what is drawn from these rows alone lacks them, at the
            borders of a window as at those of an image.

    Returns:
        int64 rows, ascending.
    """
    radii = ops.visible_radii(
        anchors.position,
        anchors.scales[:, :3].contiguous(),
        anchors.rotation,
        window=window,
        **_pinhole(camera, anchors.position),
    )
    return radii.nonzero()[:, 0]


def _pinhole(camera: Camera, like: Tensor) -> dict[str, Any]:
    return {
        "world_view": camera.world_view.to(like),
        "fx": camera.fx,
        "fy": camera.fy,
        "cx": camera.cx,
        "cy": camera.cy,
        "width": camera.width,
        "height": camera.height,
    }
