"""The functions of the compiled module in 3DGS codebases, called as there."""

from typing import Any

import pytest
import torch
from fused_ssim import fused_ssim
from fused_ssim.reference import ssim_map
from fused_ssim_cuda import fusedssim, fusedssim_backward
from ssim_pairs import SIZES, pair
from torch import Tensor

C1, C2 = 0.01**2, 0.03**2


class NewerMap(torch.autograd.Function):
    """How callers wrap the functions."""

    @staticmethod
    def forward(ctx: Any, img1: Tensor, img2: Tensor) -> Tensor:
        value, *partials = fusedssim(C1, C2, img1, img2, True)
        ctx.save_for_backward(img1.detach(), img2, *partials)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        img1, img2, *partials = ctx.saved_tensors
        return fusedssim_backward(C1, C2, img1, img2, grad, *partials), None


class OlderMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, img1: Tensor, img2: Tensor) -> Tensor:
        ctx.save_for_backward(img1.detach(), img2)
        return fusedssim(C1, C2, img1, img2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return fusedssim_backward(C1, C2, *ctx.saved_tensors, grad), None


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("function", [NewerMap, OlderMap])
def test_map_and_gradient_are_those_of_the_reference(size: tuple[int, int], function: Any) -> None:
    image, target = pair(size, batch=2)
    weight = torch.randn(image.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for ssim in (function.apply, ssim_map):
        leaf = image.clone().requires_grad_()
        value = ssim(leaf, target)
        results.append((value.detach(), *torch.autograd.grad((weight * value).sum(), leaf)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11 * max(1.0, float(expected.abs().max())))


def test_the_mean_of_the_map_is_the_fast_function() -> None:
    images = pair((65, 40), torch.float32)
    value, *partials = fusedssim(C1, C2, *images, False)
    torch.testing.assert_close(value.mean(), fused_ssim(*images, train=False), atol=1e-6, rtol=0)
    assert [tensor.numel() for tensor in partials] == [0, 0, 0]
