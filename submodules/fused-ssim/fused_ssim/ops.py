"""The operator: loads the compiled part, adds autograd. ``reference.py`` is the same in readable PyTorch."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LIBRARY = Path(__file__).parent / "_kernels.so"
_BUILD = "pip install --no-build-isolation ./submodules/fused-ssim"
try:
    torch.ops.load_library(_LIBRARY)
except OSError as error:
    state = "does not fit this torch" if _LIBRARY.exists() else "is not there"
    raise ImportError(f"fused_ssim: the compiled part {state}; build it: {_BUILD}") from error


def has_cuda() -> bool:
    """Whether the compiled part was built for GPUs too."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("fused_ssim::mean_ssim", "CUDA")


def cpu_kernels() -> str:
    """The variant of the CPU kernels that is used: ``x86-64-v4`` (AVX-512) or ``x86-64-v3`` (AVX2).

    It is the best that this CPU supports, or the one that the environment variable MOMENTUM_GS_CPU names (``v4``,
    ``v3``) when the first kernel runs. A build with NATIVE=1 has one variant, ``native``; other architectures have
    ``plain``.

    Raises:
        RuntimeError: no variant runs on this CPU, or MOMENTUM_GS_CPU names a variant that does not exist.
    """
    return torch.ops.fused_ssim.cpu_kernels()


def fused_ssim(
    img1: Tensor, img2: Tensor, padding: str = "same", train: bool = True, weights: Tensor | None = None
) -> Tensor:
    """Mean structural similarity of two batches of images, over all pixels alike or by weights.

    11x11 Gaussian window of sigma 1.5 per channel, C1 = 0.01^2, C2 = 0.03^2 (values in [0, 1]). With weights w, shared
    by batch and channels, it is sum(w * ssim) / (B * C * sum(w)). The SSIM at a pixel is computed from the images as
    they are, whatever the weights around it: weights that end make no edge.

    Args:
        img1: [B,C,H,W] float32 or float64, the render.
        img2: [B,C,H,W] of the same dtype, the target image.
        padding: ``same``: mean over all pixels, zeros around the images (3DGS); ``valid``: over the pixels whose window
            lies inside.
        train: False skips all work for the gradient.
        weights: [H,W], for ``valid`` [H-10,W-10], of the images' dtype, at least 0 (not checked): the weight of each
            pixel of the SSIM map. Pixels of weight 0 do not count, even if they are NaN. Has no gradient.

    Returns:
        Scalar in [-1, 1], differentiable once for both images; 1 with zero gradient where all weights are 0. The
        gradient of ``img1`` costs no second pass, that of ``img2`` one. The same bits whatever the number of threads.

    Raises:
        ValueError: for another padding, and for weights that require a gradient while gradients are recorded.
        RuntimeError: for images that do not match or are too small, and weights that do not match.
    """
    if padding not in ("same", "valid"):
        raise ValueError(f"fused_ssim: padding is {padding!r}, expected 'same' or 'valid'")
    if weights is not None and weights.requires_grad and torch.is_grad_enabled():
        raise ValueError("fused_ssim: weights require a gradient, expected none as they get none; detach them")
    valid = padding == "valid"
    if train and torch.is_grad_enabled() and (img1.requires_grad or img2.requires_grad):
        return torch.ops.fused_ssim.mean_ssim_with_grad(img1, img2, valid, weights)[0]
    return torch.ops.fused_ssim.mean_ssim(img1.detach(), img2.detach(), valid, weights)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, bool, Tensor | None], output: tuple[Tensor, Tensor]) -> None:
    img1, img2, ctx.valid, weights = inputs
    grad = output[1]
    ctx.mark_non_differentiable(grad)
    ctx.save_for_backward(grad, *((img1, img2, weights) if ctx.needs_input_grad[1] else ()))


def _backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    grad, *rest = ctx.saved_tensors
    grad1 = upstream * grad if ctx.needs_input_grad[0] else None
    grad2 = None
    if rest:  # SSIM is symmetric: the same operator with the images swapped
        img1, img2, weights = rest
        grad2 = upstream * torch.ops.fused_ssim.mean_ssim_with_grad(img2, img1, ctx.valid, weights)[1]
    return grad1, grad2, None, None


torch.library.register_autograd("fused_ssim::mean_ssim_with_grad", _backward, setup_context=_save)


def _check_devices(*tensors: Tensor | None) -> None:
    """Where one of several tensors has no data, torch asks for shapes alone, and what they hold is not initialized."""
    devices = {str(tensor.device) for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"fused_ssim: tensors are on {' and '.join(sorted(devices))}, expected one device")


@torch.library.register_fake("fused_ssim::mean_ssim")
def _(img1: Tensor, img2: Tensor, valid: bool, weights: Tensor | None = None) -> Tensor:
    _check_devices(img1, img2, weights)
    return img1.new_empty(())


@torch.library.register_fake("fused_ssim::mean_ssim_with_grad")
def _(img1: Tensor, img2: Tensor, valid: bool, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    _check_devices(img1, img2, weights)
    return img1.new_empty(()), torch.empty_like(img1, memory_format=torch.contiguous_format)


def image_loss(
    render: Tensor, target: Tensor, dssim: float, weights: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``(1 - dssim) * L1`` and ``dssim * (1 - SSIM)`` of two images, in one pass that also computes their gradient.

    L1 is the mean absolute difference, SSIM that of ``fused_ssim`` with zeros around the images. A pixel counts by
    weights * mask: both sums are divided by the channels times the sum of that. Ignored pixels are made black in both
    images before SSIM, while pixels of weight 0 are shown to the windows around them.

    Args:
        render: [C,H,W] float32 or float64.
        target: [C,H,W] of the same dtype. Has no gradient.
        dssim: From 0 to 1. If it is 0, SSIM is not computed.
        weights: [H,W] of the same dtype, at least 0 (not checked): how much each pixel counts. Has no gradient.
        mask: [1,H,W] of the same dtype: 1 where a pixel counts, 0 where it is ignored, whatever it holds, even NaN. Has
            no gradient.

    Returns:
        Two scalars, differentiable once for the render; 0 with zero gradient where no pixel counts. If their gradients
        are equal, as those of the terms of a sum, the backward pass is one product. The same bits whatever the number
        of threads.

    Raises:
        ValueError: for a target, weights or a mask that require a gradient while gradients are recorded.
        RuntimeError: for tensors that do not match, or a ``dssim`` out of its range.
    """
    if torch.is_grad_enabled():
        for name, fixed in (("target", target), ("weights", weights), ("mask", mask)):
            if fixed is not None and fixed.requires_grad:
                raise ValueError(f"fused_ssim: {name} requires a gradient, expected none as it gets none; detach it")
        if render.requires_grad:
            given = (render, target, dssim, weights, mask)
            if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
                return torch.ops.fused_ssim.image_loss_with_grad(*given)[:2]
            return _ImageLoss.apply(*given)[:2]
    return torch.ops.fused_ssim.image_loss(render.detach(), target, dssim, weights, mask)


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    render, target, dssim, weights, mask = inputs
    grad, slope = output[2:]
    ctx.l1_alone = dssim == 0
    ctx.mark_non_differentiable(grad, slope)
    ctx.set_materialize_grads(False)  # no zeros of the images' size for `grad`
    ctx.save_for_backward(grad, slope, render, target, weights, mask)


def _loss_backward(ctx: Any, l1: Tensor | None, dssim: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if ctx.l1_alone:
        dssim = l1  # the map is that of the first term; the other is 0, with zero gradient
    if l1 is None and dssim is None:
        return (None,) * 5
    return torch.ops.fused_ssim.image_loss_backward(l1, dssim, *ctx.saved_tensors), None, None, None, None


torch.library.register_autograd("fused_ssim::image_loss_with_grad", _loss_backward, setup_context=_save_loss)


class _ImageLoss(torch.autograd.Function):
    """The same for eager code, past the wrappers of ``torch.library``, which take a tenth of a millisecond."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.fused_ssim.image_loss_with_grad(*inputs)
        _save_loss(ctx, inputs, output)
        return output

    backward = staticmethod(_loss_backward)


@torch.library.register_fake("fused_ssim::image_loss")
def _(
    render: Tensor, target: Tensor, dssim: float, weights: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    _check_devices(render, target, weights, mask)
    return render.new_empty(()), render.new_empty(())


@torch.library.register_fake("fused_ssim::image_loss_with_grad")
def _(
    render: Tensor, target: Tensor, dssim: float, weights: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_devices(render, target, weights, mask)
    grad = torch.empty_like(render, memory_format=torch.contiguous_format)
    return render.new_empty(()), render.new_empty(()), grad, render.new_empty(())


@torch.library.register_fake("fused_ssim::image_loss_backward")
def _(
    l1: Tensor | None, dssim: Tensor | None, grad: Tensor, slope: Tensor, render: Tensor, target: Tensor,
    weights: Tensor | None = None, mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    _check_devices(l1, dssim, grad, slope, render, target, weights, mask)
    return torch.empty_like(render, memory_format=torch.contiguous_format)
