"""The functions of the compiled module in 3DGS codebases, for callers that bypass ``GaussianRasterizer``.

Of the buffers that ``rasterize_gaussians`` returns, the first holds the opacities, and the others are empty.
``rasterize_gaussians_backward`` therefore draws the image again before it goes back; callers that can use
``GaussianRasterizer`` and autograd do not pay for that.
"""

from typing import Any

import torch
from torch import Tensor

from diff_gaussian_rasterization.adam import adam_update
from diff_gaussian_rasterization.settings import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    in_front,
)

_FORWARD = (
    "bg", "means3D", "colors_precomp", "opacities", "scales", "rotations", "scale_modifier", "cov3D_precomp",
    "viewmatrix", "projmatrix", "tanfovx", "tanfovy", "image_height", "image_width", "shs", "sh_degree", "campos",
    "prefiltered",
)  # fmt: skip
_BACKWARD = (
    "bg", "means3D", "radii", "colors_precomp", "opacities", "scales", "rotations", "scale_modifier", "cov3D_precomp",
    "viewmatrix", "projmatrix", "tanfovx", "tanfovy", "grad_image", "grad_inverse_depth", "shs", "sh_degree", "campos",
    "opacities_drawn", "drawn", "second_buffer", "third_buffer", "antialiasing", "debug",
)  # fmt: skip
_OF_2024 = ("opacities", "grad_inverse_depth", "antialiasing")
_INPUTS = ("means3D", "colors_precomp", "opacities", "scales", "rotations", "cov3D_precomp", "shs")


def rasterize_gaussians(*arguments: Any) -> tuple[Any, ...]:
    """Draws an image; the arguments and results are those of the interface of 2023 or of 2024.

    Args:
        arguments: bg, means3D, colors, opacity, scales, rotations, scale_modifier, cov3D_precomp, viewmatrix,
            projmatrix, tanfovx, tanfovy, image_height, image_width, sh, sh_degree, campos, prefiltered, then
            antialiasing in the interface of 2024, then debug.

    Returns:
        Number of drawn Gaussians, image [C,H,W], radii int32 [G], three buffers for the way back, and in the interface
        of 2024 the inverse depth [1,H,W].

    Raises:
        ValueError: another number of arguments, or as for ``GaussianRasterizer``.
    """
    if len(arguments) not in (19, 20):
        raise ValueError(f"_C.rasterize_gaussians: {len(arguments)} arguments, expected 19, or 20 with antialiasing")
    given = dict(zip(_FORWARD, arguments, strict=False)) | {
        "antialiasing": bool(arguments[18]) if len(arguments) == 20 else None
    }
    with torch.no_grad():
        image, radii, *inverse_depth = _draw(given, None)
    empty = torch.empty(0, dtype=torch.uint8, device=image.device)
    return (int((radii > 0).sum()), image, radii, given["opacities"].detach(), empty, empty, *inverse_depth)


def rasterize_gaussians_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of ``rasterize_gaussians``; the arguments are those of the interface of 2023 or of 2024.

    Args:
        arguments: bg, means3D, radii, colors, (2024: opacities,) scales, rotations, scale_modifier, cov3D_precomp,
            viewmatrix, projmatrix, tanfovx, tanfovy, grad_image, (2024: grad_inverse_depth,) sh, sh_degree, campos,
            first buffer, number of drawn Gaussians, second and third buffer, (2024: antialiasing,) debug.

    Returns:
        Gradients of means2D [G,3] in NDC units, colors, opacities, means3D, cov3D_precomp, sh, scales and rotations;
        those of absent inputs are empty.

    Raises:
        ValueError: another number of arguments.
    """
    names = [name for name in _BACKWARD if len(arguments) != 21 or name not in _OF_2024]
    if len(arguments) != len(names):
        raise ValueError(
            f"_C.rasterize_gaussians_backward: {len(arguments)} arguments, expected 21, or 24 with opacities, "
            "grad_inverse_depth and antialiasing"
        )
    given = dict(zip(names, arguments, strict=True))
    given.setdefault("opacities", given["opacities_drawn"])
    image_grad, depth_grad = given["grad_image"], given.get("grad_inverse_depth")
    given |= {"image_height": image_grad.shape[1], "image_width": image_grad.shape[2]}
    leaves = {name: given[name].detach().requires_grad_() for name in _INPUTS if given[name].numel()}
    means2d = torch.zeros_like(given["means3D"]).requires_grad_()
    with torch.enable_grad():
        image, _, *inverse_depth = _draw(given | leaves, means2d)
        outputs, upstream = [image], [image_grad]
        if depth_grad is not None and depth_grad.numel():
            outputs, upstream = [image, *inverse_depth], [image_grad, depth_grad]
        grads = torch.autograd.grad(outputs, [means2d, *leaves.values()], upstream, allow_unused=True)
    found = dict(zip(("means2D", *leaves), grads, strict=True))
    order = ("means2D", "colors_precomp", "opacities", "means3D", "cov3D_precomp", "shs", "scales", "rotations")
    return tuple(_or_zeros(found.get(name), given.get(name, means2d)) for name in order)


def mark_visible(means3D: Tensor, viewmatrix: Tensor, projmatrix: Tensor) -> Tensor:
    """bool [G]: points [G,3] in front of the near plane."""
    return in_front(means3D, viewmatrix)


def adamUpdate(  # noqa: N802 (the name in 3DGS)
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, visible: Tensor, lr: float, b1: float, b2: float,
    eps: float, N: int, M: int,
) -> None:  # fmt: skip
    """One step of Adam without bias correction, in place, on the rows where ``visible`` [N] is true.

    Args:
        param: N rows of M entries, in any shape; with it its gradient and its two moments.
        grad: see param.
        exp_avg: see param.
        exp_avg_sq: see param.
        visible: bool [N].
        lr: learning rate.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        N: rows.
        M: entries of a row.
    """
    rows = [tensor.detach().view(N, M) for tensor in (param, grad, exp_avg, exp_avg_sq)]
    named = [[tensor] for tensor in rows]
    adam_update(*named, lrs=[float(lr)], steps=None, visible=visible.reshape(-1), betas=(float(b1), float(b2)), eps=eps)


def __getattr__(name: str) -> Any:
    """The SSIM that 3DGS codebases import from here, where the package fused-ssim is installed."""
    if name in ("fusedssim", "fusedssim_backward"):
        import fused_ssim_cuda

        return getattr(fused_ssim_cuda, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _draw(given: dict[str, Any], means2d: Tensor | None) -> tuple[Tensor, ...]:
    settings = {name: given[name] for name in GaussianRasterizationSettings._fields if name in given}
    inputs = {name: given[name] for name in _INPUTS}
    return GaussianRasterizer(GaussianRasterizationSettings(**settings))(means2D=means2d, **inputs)


def _or_zeros(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad
