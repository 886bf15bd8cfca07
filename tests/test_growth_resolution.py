"""Growth uses gradients of the mean loss in NDC, so that it does not depend on the size of the images."""

import pytest
import torch
from torch import Tensor

from momentum_gs.core.image import l1, ssim
from momentum_gs.core.types import Camera, Gaussians
from momentum_gs.render.rasterize import rasterize


def statistic(size: int, dssim: float) -> Tensor:
    """Norm of the screen gradient of each Gaussian, in images of ``size`` by 3/4 ``size`` pixels of one field of view.

    The target images are those of the same Gaussians, shifted.
    """
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(60, 3, generator=generator) * torch.tensor([4.0, 3.0, 1.0]) - torch.tensor([2.0, 1.5, -4.5])
    colors = torch.rand(60, 3, generator=generator)
    camera = Camera(
        "view", size, size * 3 // 4, size * 0.94, size * 0.94, size / 2, size * 3 / 8,
        torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64),
    )  # fmt: skip

    def drawn(shift: Tensor) -> Gaussians:
        quats = torch.tensor([1.0, 0, 0, 0]).repeat(60, 1)
        return Gaussians(means + shift, torch.full((60, 3), 0.3), quats, torch.full((60, 1), 0.6), colors)

    with torch.no_grad():
        target = rasterize(drawn(torch.tensor([0.05, 0.02, 0.0])), camera, torch.zeros(3)).image
    gaussians = drawn(torch.zeros(3))
    gaussians.means.requires_grad_()
    output = rasterize(gaussians, camera, torch.zeros(3))
    ((1 - dssim) * l1(output.image, target) + dssim * (1 - ssim(output.image, target))).backward()
    assert output.screen_means.grad is not None
    return output.screen_means.grad[:, :2].norm(dim=1)


# The window of SSIM is 11 pixels at any image size, so its part of the gradient falls with the size: by a quarter from
# 64 to 512 pixels, whereas a gradient in pixels would fall to an eighth.
@pytest.mark.parametrize(("dssim", "tolerance"), [(0.0, 0.1), (0.2, 0.35)])
def test_gradients_do_not_depend_on_the_number_of_pixels(dssim: float, tolerance: float) -> None:
    small, large = statistic(64, dssim), statistic(512, dssim)
    ratio = (large / small).quantile(torch.tensor([0.25, 0.5, 0.75]))
    assert (ratio - 1).abs().max() < tolerance, ratio
