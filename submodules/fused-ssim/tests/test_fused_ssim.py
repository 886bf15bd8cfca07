"""The kernels against the readable reference, and facts about SSIM."""

import pytest
import torch
from fused_ssim import fused_ssim
from fused_ssim.reference import mean_ssim
from ssim_pairs import CASES, pair
from torch import Tensor


def value_and_gradients(function, images: list[Tensor], padding: str) -> tuple[Tensor, ...]:
    leaves = [image.detach().clone().requires_grad_() for image in images]
    value = function(*leaves, padding)
    return value.detach(), *torch.autograd.grad(value, leaves)


@pytest.mark.parametrize(("size", "padding"), CASES)
def test_equals_the_reference_in_double(device: str, size: tuple[int, int], padding: str) -> None:
    images = pair(size, device=device)
    ours, expected = (value_and_gradients(f, images, padding) for f in (fused_ssim, mean_ssim))
    # Both sum 121 products in another order, then divide by variances of at least 1e-3: 1e-16 * 11 * 1e3.
    torch.testing.assert_close(ours[0], expected[0], rtol=0, atol=1e-12)
    for gradient, wanted in zip(ours[1:], expected[1:], strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-12 * float(wanted.abs().max()))


@pytest.mark.parametrize(("size", "padding"), CASES)
def test_single_precision_is_as_good_as_the_reference(device: str, size: tuple[int, int], padding: str) -> None:
    images = pair(size, torch.float32, device=device)
    exact = value_and_gradients(mean_ssim, [x.double() for x in images], padding)
    ours, reference = (value_and_gradients(f, images, padding) for f in (fused_ssim, mean_ssim))
    for got, other, truth in zip(ours, reference, exact, strict=True):
        scale = float(truth.abs().max())
        error, allowed = float((got - truth).abs().max()), float((other - truth).abs().max())
        # Twice the reference's error in float32, and at least a few rounding steps (6e-8).
        assert error <= max(2 * allowed, 3e-7 * scale)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_gradcheck(padding: str) -> None:
    images = [image.requires_grad_() for image in pair((12, 13), channels=2)]
    assert torch.autograd.gradcheck(lambda a, b: fused_ssim(a, b, padding), images)


def test_batch_and_channels_are_planes_of_one_mean(device: str) -> None:
    a, b = pair((30, 40), batch=3, channels=4, device=device)
    planes = [fused_ssim(a[i : i + 1, j : j + 1], b[i : i + 1, j : j + 1]) for i in range(3) for j in range(4)]
    torch.testing.assert_close(fused_ssim(a, b), torch.stack(planes).mean(), rtol=0, atol=1e-14)


def test_same_bits_for_any_number_of_threads() -> None:
    images = pair((300, 200), torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            results.append(value_and_gradients(fused_ssim, images, "same"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("order", ["reverse", "1", "2"])
def test_same_bits_on_every_run(monkeypatch: pytest.MonkeyPatch, device: str, order: str) -> None:
    # Between two barriers the emulator runs the threads of a block in this order: a missing barrier changes the bits.
    images = pair((45, 70), torch.float32, device=device)
    expected = value_and_gradients(fused_ssim, images, "same")
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    got = value_and_gradients(fused_ssim, images, "same")
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_train_false_gives_the_same_value_without_a_gradient(device: str, padding: str) -> None:
    a, b = pair((70, 90), torch.float32, device=device)
    trained = fused_ssim(a.requires_grad_(), b, padding)
    plain = fused_ssim(a, b, padding, train=False)
    assert trained.requires_grad and not plain.requires_grad
    # The compiler may fuse multiplications and additions differently in the two: one float32 step near 1.
    torch.testing.assert_close(plain, trained.detach(), rtol=0, atol=1.2e-7)
    with torch.no_grad():
        assert torch.equal(fused_ssim(a, b, padding), plain)


def test_an_image_and_itself_have_ssim_1(device: str) -> None:
    image = pair((40, 40), device=device)[0].requires_grad_()
    value = fused_ssim(image, image.detach())
    assert float(value.detach()) == pytest.approx(1.0, abs=1e-13)
    # The maximum is flat; terms of size 1/(n * C2) ~ 0.2 cancel to round-off.
    assert float(torch.autograd.grad(value, image)[0].abs().max()) < 1e-12


def test_symmetric_also_in_its_gradients(device: str) -> None:
    images = pair((25, 31), device=device)
    value, grad1, grad2 = value_and_gradients(fused_ssim, images, "same")
    swapped, other2, other1 = value_and_gradients(fused_ssim, images[::-1], "same")
    torch.testing.assert_close(value, swapped, rtol=0, atol=1e-14)
    assert torch.equal(grad1, other1)
    assert torch.equal(grad2, other2)


def test_gradient_is_scaled_by_the_upstream_gradient(device: str) -> None:
    a, b = pair((20, 20), device=device)
    a.requires_grad_()
    (once,) = torch.autograd.grad(fused_ssim(a, b), a)
    (weighted,) = torch.autograd.grad(0.2 * (1 - fused_ssim(a, b)), a)
    torch.testing.assert_close(weighted, -0.2 * once)


def test_strided_images_count_like_contiguous_ones(device: str) -> None:
    a, b = pair((33, 47), torch.float32, device=device)
    channels_last = [x.contiguous(memory_format=torch.channels_last) for x in (a, b)]
    for ours, expected in zip(
        value_and_gradients(fused_ssim, channels_last, "same"), value_and_gradients(fused_ssim, [a, b], "same"),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_nan_and_inf_give_nan_and_affect_only_pixels_nearby(device: str, padding: str, bad: float) -> None:
    images = pair((80, 75), torch.float32, device=device)
    clean = value_and_gradients(fused_ssim, images, padding)
    images[0][0, 1, 30, 3] = bad
    assert fused_ssim(*images, padding, train=False).isnan()
    value, *gradients = value_and_gradients(fused_ssim, images, padding)
    assert value.isnan()
    far = torch.ones(80, 75, dtype=torch.bool)
    far[20:41, :14] = False  # a pixel is in the windows up to 5 pixels away, whose gradients reach 5 pixels farther
    for gradient, wanted in zip(gradients, clean[1:], strict=True):
        assert gradient[0, 1, 30, 3].isnan()
        assert torch.equal(gradient[:, 1, far], wanted[:, 1, far])
        assert torch.equal(gradient[:, ::2], wanted[:, ::2])


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-40, 1e-20, 1e-3, 255.0, 1e6])
def test_gradients_are_finite_where_the_value_is(device: str, scale: float) -> None:
    # Up to 1e6: beyond 1e9 the product of the two denominators overflows float32, and the value itself is not finite.
    images = [scale * x for x in pair((33, 20), torch.float32, device=device)]
    value, *gradients = value_and_gradients(fused_ssim, images, "same")
    assert -1 <= float(value) <= 1.000001
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("size", [(7919, 3), (3, 7919)])
def test_very_narrow_images(device: str, size: tuple[int, int]) -> None:
    images = pair(size, channels=1, device=device)
    ours, expected = (value_and_gradients(f, images, "same") for f in (fused_ssim, mean_ssim))
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12 * float(wanted.abs().max()))


@pytest.mark.slow
def test_declared_as_torch_expects(device: str) -> None:
    a, b = pair((12, 14), device=device)
    torch.library.opcheck(torch.ops.fused_ssim.mean_ssim, (a, b, True))
    torch.library.opcheck(torch.ops.fused_ssim.mean_ssim_with_grad, (a.requires_grad_(), b, False))
    torch.library.opcheck(torch.ops.fused_ssim.mean_ssim_with_grad, (a, b.requires_grad_(), True))


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_compiles_into_one_graph_with_its_gradients(device: str, padding: str) -> None:
    def loss(a: Tensor, b: Tensor, padding: str) -> Tensor:
        return 0.2 * (1 - fused_ssim(a.sigmoid(), b, padding)) + 0.8 * (a - b).abs().mean()

    images = pair((20, 25), device=device)
    # aot_eager traces forward and backward without generating code, which is enough to find a graph break.
    compiled = value_and_gradients(torch.compile(loss, fullgraph=True, backend="aot_eager"), images, padding)
    for got, wanted in zip(compiled, value_and_gradients(loss, images, padding), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (a[0], b[0]), r"img1 has 3 dimensions, expected \[B,C,H,W\]"),
        (lambda a, b: (a, b[..., :-1]), r"img2 has shape \[1, 3, 12, 12\], img1 \[1, 3, 12, 13\]"),
        (lambda a, b: (a, b.float()), "img2 is Float, img1 Double"),
        (lambda a, b: (a.half(), b.half()), "images are Half, expected float32 or float64"),
        (lambda a, b: (a.byte(), b.byte()), "images are Byte, expected float32 or float64"),
        (lambda a, b: (a[:0], b[:0]), r"shape \[0, 3, 12, 13\] have no pixel to average"),
        (lambda a, b: (a[..., :10], b[..., :10]), "no pixel to average; expected at least 11x11"),
    ],
)
def test_refusals_say_what_was_found(device: str, change, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        fused_ssim(*change(*pair((12, 13), device=device)), padding="valid")


def test_unknown_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="padding is 'reflect', expected 'same' or 'valid'"):
        fused_ssim(*pair((12, 13)), padding="reflect")
