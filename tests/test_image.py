"""Facts about the image metrics."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from momentum_gs.core.image import color_correct, l1, psnr, ssim, to_uint8

PARITY = Path(__file__).parent / "fixtures" / "parity"


@pytest.fixture(scope="module")
def figures() -> dict[str, Tensor]:
    with np.load(PARITY / "image_metrics.npz") as stored:
        return {key: torch.as_tensor(stored[key]) for key in stored}


def random_image(seed: int, height: int = 24, width: int = 32) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def test_metrics_equal_the_original(figures: dict[str, Tensor]) -> None:
    image, reference = figures["image"], figures["reference"]
    # Float32 means of 36,864 values; SSIM also subtracts blurred squares of similar size, which costs a digit.
    assert float(ssim(image, reference)) == pytest.approx(float(figures["ssim"]), abs=1e-6)
    assert float(l1(image, reference)) == pytest.approx(float(figures["l1"]), rel=1e-6)
    assert float(psnr(image, reference)) == pytest.approx(float(figures["psnr"]), abs=1e-5)


def test_color_correct_equals_the_original(figures: dict[str, Tensor]) -> None:
    expected = figures["color_corrected"].permute(2, 0, 1)
    corrected = color_correct(figures["image"], figures["reference"])
    torch.testing.assert_close(corrected.double(), expected, rtol=0, atol=6e-8)  # half a float32 step at 1
    exact = color_correct(figures["image"].double(), figures["reference"].double())
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-12)  # two float64 least-squares methods


def test_color_correct_undoes_a_tint() -> None:
    # Kept inside (0.3, 0.7), so that neither the tint nor its inverse saturates.
    reference = 0.3 + 0.4 * random_image(0)
    tinted = (reference * torch.tensor([0.9, 1.1, 1.0])[:, None, None] + 0.02).clamp(0, 1)
    assert psnr(tinted, reference) < 30
    torch.testing.assert_close(color_correct(tinted, reference), reference, rtol=0, atol=1e-6)


def test_color_correct_keeps_an_image_that_is_right() -> None:
    image = random_image(1)
    torch.testing.assert_close(color_correct(image, image), image, rtol=0, atol=1e-6)


def test_color_correct_of_a_flat_image_is_the_mean_colour() -> None:
    # One colour determines one of ten coefficients: of all exact fits, that of least norm must be found.
    reference = 0.2 + 0.6 * random_image(2)
    corrected = color_correct(torch.full_like(reference, 0.5), reference)
    mean = reference.mean(dim=(1, 2), keepdim=True).expand_as(reference)
    torch.testing.assert_close(corrected, mean, rtol=0, atol=1e-6)


def test_color_correct_leaves_a_channel_without_usable_pixels() -> None:
    image, reference = random_image(3), 0.1 + 0.8 * random_image(4)
    reference[2] = 1.0
    assert torch.equal(color_correct(image, reference)[2], image[2])


def test_psnr_by_hand() -> None:
    image = torch.full((3, 4, 4), 0.5)
    assert float(psnr(image, image + 0.1)) == pytest.approx(20.0, abs=1e-5)
    assert float(psnr(image, image)) == math.inf
    one_channel = image.clone()
    one_channel[0] += 0.1  # a third of the squared error: one mean over all channels, not a mean of three PSNRs
    assert float(psnr(image, one_channel)) == pytest.approx(20 + 10 * math.log10(3), abs=1e-5)


def test_ssim_is_one_on_itself_symmetric_and_smaller_elsewhere() -> None:
    a, b = random_image(5), random_image(6)
    assert float(ssim(a, a)) == pytest.approx(1.0, abs=1e-6)
    assert float(ssim(a, b)) == pytest.approx(float(ssim(b, a)), abs=1e-6)
    assert float(ssim(a, b)) < 0.5


def test_a_step_along_the_gradient_increases_ssim() -> None:
    a, b = random_image(7).requires_grad_(), random_image(8)
    before = ssim(a, b)
    (gradient,) = torch.autograd.grad(before, a)
    # A step short enough for the linear term to dominate.
    step = 1e-2 * gradient / gradient.abs().max()
    assert float(ssim((a + step).detach(), b)) > float(before.detach())


def test_to_uint8_rounds_clamps_and_inverts_division() -> None:
    every_value = torch.arange(255).repeat(3)[: 3 * 16 * 15].reshape(3, 16, 15)
    assert torch.equal(to_uint8(every_value / 255), every_value.to(torch.uint8))
    assert to_uint8(torch.tensor([-1.0, 2.0, 0.998]).reshape(3, 1, 1)).flatten().tolist() == [0, 255, 254]
