"""The kernels against the readable reference, and facts about SSIM."""

import pytest
import torch
from fused_ssim import fused_ssim
from fused_ssim.reference import mean_ssim
from torch import Tensor

# One pixel, less than a window, one window, one vector and its neighbours, the edge of a band of 64 rows, two bands.
SIZES = [(1, 1), (5, 7), (11, 11), (20, 16), (9, 33), (64, 40), (65, 17), (135, 50)]
BIG_ENOUGH = [size for size in SIZES if min(size) >= 11]
CASES = [(size, "same") for size in SIZES] + [(size, "valid") for size in BIG_ENOUGH]


def pair(size: tuple[int, int], dtype: torch.dtype = torch.float64, batch: int = 1, channels: int = 3) -> list[Tensor]:
    """A smooth-ish image and a noisy copy: SSIM well inside (0, 1)."""
    generator = torch.Generator().manual_seed(size[0] * 1000 + size[1])
    image = torch.rand(batch, channels, *size, generator=generator, dtype=torch.float64)
    noise = torch.rand(batch, channels, *size, generator=generator, dtype=torch.float64)
    return [image.to(dtype), (0.6 * image + 0.4 * noise).to(dtype)]


def value_and_gradients(function, images: list[Tensor], padding: str) -> tuple[Tensor, ...]:
    leaves = [image.detach().clone().requires_grad_() for image in images]
    value = function(*leaves, padding)
    return value.detach(), *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize(("size", "padding"), CASES)
def test_equals_the_reference_in_double(size: tuple[int, int], padding: str) -> None:
    images = pair(size)
    ours, expected = (value_and_gradients(f, images, padding) for f in (fused_ssim, mean_ssim))
    # Both sum 121 products in another order, then divide by variances of at least 1e-3: 1e-16 * 11 * 1e3.
    torch.testing.assert_close(ours[0], expected[0], rtol=0, atol=1e-12)
    for gradient, wanted in zip(ours[1:], expected[1:], strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12 * float(wanted.abs().max()))


@pytest.mark.parametrize(("size", "padding"), CASES)
def test_single_precision_is_as_good_as_the_reference(size: tuple[int, int], padding: str) -> None:
    exact = value_and_gradients(mean_ssim, [x.double() for x in pair(size, torch.float32)], padding)
    ours, reference = (value_and_gradients(f, pair(size, torch.float32), padding) for f in (fused_ssim, mean_ssim))
    for got, other, truth in zip(ours, reference, exact, strict=True):
        scale = float(truth.abs().max())
        error, allowed = float((got - truth).abs().max()), float((other - truth).abs().max())
        # Twice the reference's own error, and never asked for more than a few float32 steps (6e-8).
        assert error <= max(2 * allowed, 3e-7 * scale)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_gradcheck(padding: str) -> None:
    images = [image.requires_grad_() for image in pair((12, 13), channels=2)]
    assert torch.autograd.gradcheck(lambda a, b: fused_ssim(a, b, padding), images)


def test_batch_and_channels_are_planes_of_one_mean() -> None:
    a, b = pair((30, 40), batch=3, channels=4)
    planes = [fused_ssim(a[i : i + 1, j : j + 1], b[i : i + 1, j : j + 1]) for i in range(3) for j in range(4)]
    torch.testing.assert_close(fused_ssim(a, b), torch.stack(planes).mean(), rtol=0, atol=1e-14)


def test_same_bits_for_any_number_of_threads() -> None:
    images = pair((300, 200), torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(value_and_gradients(fused_ssim, images, "same"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_without_training_only_the_work_differs(padding: str) -> None:
    a, b = pair((70, 90), torch.float32)
    trained = fused_ssim(a.requires_grad_(), b, padding)
    plain = fused_ssim(a, b, padding, train=False)
    assert trained.requires_grad and not plain.requires_grad
    # The compiler may fuse multiplications and additions differently in the two: one float32 step near 1.
    torch.testing.assert_close(plain, trained.detach(), rtol=0, atol=1.2e-7)
    with torch.no_grad():
        assert torch.equal(fused_ssim(a, b, padding), plain)


def test_an_image_is_like_itself() -> None:
    image = pair((40, 40))[0].requires_grad_()
    value = fused_ssim(image, image.detach())
    assert float(value.detach()) == pytest.approx(1.0, abs=1e-13)
    # The maximum is flat; terms of size 1/(n * C2) ~ 0.2 cancel to round-off.
    assert float(torch.autograd.grad(value, image)[0].abs().max()) < 1e-12


def test_symmetric_also_in_its_gradients() -> None:
    images = pair((25, 31))
    value, grad1, grad2 = value_and_gradients(fused_ssim, images, "same")
    swapped, other2, other1 = value_and_gradients(fused_ssim, images[::-1], "same")
    torch.testing.assert_close(value, swapped, rtol=0, atol=1e-14)
    assert torch.equal(grad1, other1)
    assert torch.equal(grad2, other2)


def test_gradient_is_scaled_by_what_comes_from_above() -> None:
    a, b = pair((20, 20))
    a.requires_grad_()
    (once,) = torch.autograd.grad(fused_ssim(a, b), a)
    (weighted,) = torch.autograd.grad(0.2 * (1 - fused_ssim(a, b)), a)
    torch.testing.assert_close(weighted, -0.2 * once)


def test_strided_images_count_like_contiguous_ones() -> None:
    a, b = pair((33, 47), torch.float32)
    channels_last = [x.contiguous(memory_format=torch.channels_last) for x in (a, b)]
    for ours, expected in zip(
        value_and_gradients(fused_ssim, channels_last, "same"), value_and_gradients(fused_ssim, [a, b], "same"),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(ours, expected)


def test_nan_is_not_hidden() -> None:
    a, b = pair((80, 80))
    a[0, 1, 70, 3] = float("nan")
    assert fused_ssim(a, b).isnan()
    assert fused_ssim(a, b, train=False).isnan()


def test_declared_as_torch_expects() -> None:
    a, b = pair((12, 14))
    torch.library.opcheck(torch.ops.fused_ssim.mean_ssim, (a, b, True))
    torch.library.opcheck(torch.ops.fused_ssim.mean_ssim_with_grad, (a.requires_grad_(), b, False))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a[0], b[0]), r"img1 has 3 dimensions, expected \[B,C,H,W\]"),
        (lambda a, b: (a, b[..., :-1]), r"img2 has shape \[1, 3, 12, 12\], img1 \[1, 3, 12, 13\]"),
        (lambda a, b: (a, b.float()), "img2 is Float, img1 Double"),
        (lambda a, b: (a.half(), b.half()), "images are Half, expected float32 or float64"),
        (lambda a, b: (a[..., :10], b[..., :10]), "no pixel to average; expected at least 11x11"),
    ],
)
def test_refusals_say_what_was_found(change, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        fused_ssim(*change(*pair((12, 13))), padding="valid")


def test_unknown_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="padding is 'reflect', expected 'same' or 'valid'"):
        fused_ssim(*pair((12, 13)), padding="reflect")
