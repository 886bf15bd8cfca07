"""The weighted mean: against the readable reference, and facts about it."""

import pytest
import torch
from fused_ssim import fused_ssim
from fused_ssim.reference import mean_ssim
from ssim_pairs import CASES, pair
from torch import Tensor


def random_weights(size: tuple[int, int], padding: str, device: str = "cpu") -> Tensor:
    """Weights of the SSIM map, half of them 0."""
    outside = 10 if padding == "valid" else 0
    generator = torch.Generator().manual_seed(size[0] + size[1])
    values = torch.rand(size[0] - outside, size[1] - outside, generator=generator, dtype=torch.float64) + 0.01
    return (values * (torch.rand(values.shape, generator=generator) < 0.5)).to(device)


def evaluate(function, images: list[Tensor], weights: Tensor | None, padding: str = "same") -> tuple[Tensor, ...]:
    """The value and the gradients of both images."""
    leaves = [image.detach().clone().requires_grad_() for image in images]
    value = function(*leaves, padding=padding, weights=weights)
    return value.detach(), *torch.autograd.grad(value, leaves)


def assert_close(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for got, wanted in zip(ours, expected, strict=True):  # tolerances as in test_fused_ssim.py
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12 * max(float(wanted.abs().max()), 1e-6))


@pytest.mark.parametrize(("size", "padding"), CASES)
def test_equals_the_reference_in_double(device: str, size: tuple[int, int], padding: str) -> None:
    images, weights = pair(size, batch=2, device=device), random_weights(size, padding, device)
    assert_close(*(evaluate(f, images, weights, padding) for f in (fused_ssim, mean_ssim)))
    plain = fused_ssim(*images, padding, train=False, weights=weights)
    torch.testing.assert_close(plain, mean_ssim(*images, padding, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_single_precision_is_as_good_as_the_reference(device: str, padding: str) -> None:
    size = (135, 50)
    images, weights = pair(size, torch.float32, device=device), random_weights(size, padding, device).float()
    exact = evaluate(mean_ssim, [x.double() for x in images], weights.double(), padding)
    ours, reference = (evaluate(f, images, weights, padding) for f in (fused_ssim, mean_ssim))
    for got, other, truth in zip(ours, reference, exact, strict=True):
        error, allowed = float((got - truth).abs().max()), float((other - truth).abs().max())
        assert error <= max(2 * allowed, 3e-7 * float(truth.abs().max()))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_gradcheck(padding: str) -> None:
    images = [image.requires_grad_() for image in pair((12, 13), channels=2)]
    weights = random_weights((12, 13), padding)
    assert torch.autograd.gradcheck(lambda a, b: fused_ssim(a, b, padding, weights=weights), images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_equal_weights_are_no_weights(device: str, padding: str, dtype: torch.dtype) -> None:
    images = pair((70, 45), dtype, batch=2, device=device)
    expected = evaluate(fused_ssim, images, None, padding)
    outside = 10 if padding == "valid" else 0
    # A weight of 0.3 rounds every value, and partial derivatives that cancel in the gradient.
    for weight, steps in ((1.0, 2), (0.3, 1000)):
        weights = torch.full((70 - outside, 45 - outside), weight, dtype=dtype, device=device)
        for got, wanted in zip(evaluate(fused_ssim, images, weights, padding), expected, strict=True):
            tiny = steps * torch.finfo(dtype).eps * float(wanted.abs().max())
            torch.testing.assert_close(got, wanted, rtol=0, atol=tiny)


def test_parts_sum_to_the_whole(device: str) -> None:
    images = pair((70, 45), device=device)
    owner = torch.randint(4, (70, 45), generator=torch.Generator().manual_seed(0))
    owner[:10] = 3  # rows without weight in the other parts
    sums = [torch.zeros(()), *map(torch.zeros_like, images)]
    for part in range(4):
        weights = (owner == part).double().to(device)
        for total, term in zip(sums, evaluate(fused_ssim, images, weights), strict=True):
            total += term * weights.mean()
    for total, wanted in zip(sums, evaluate(fused_ssim, images, None), strict=True):
        torch.testing.assert_close(total.to(wanted), wanted, rtol=1e-6, atol=1e-12 * float(wanted.abs().max()))


def test_a_crop_with_a_margin_of_5_has_the_same_value_and_gradients(device: str) -> None:
    # Weights in rows 70 to 129 of 260: their windows do not reach the first band of 64 rows, nor the last two.
    images, weights = pair((260, 60), device=device), torch.zeros(260, 60, dtype=torch.float64, device=device)
    weights[70:130, 20:40] = random_weights((60, 20), "same", device)
    value, *gradients = evaluate(fused_ssim, images, weights)
    crop = (..., slice(65, 135), slice(15, 45))
    expected, *cropped = evaluate(fused_ssim, [image[crop] for image in images], weights[crop])
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)
    for gradient, wanted in zip(gradients, cropped, strict=True):
        torch.testing.assert_close(gradient[crop], wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))
        gradient[crop] = 0
        assert not gradient.any()


@pytest.mark.parametrize("row", [0, 5, 63, 64, 69, 129])
def test_the_gradient_of_one_pixel_reaches_five_around_it(device: str, row: int) -> None:
    images, weights = pair((130, 30), device=device), torch.zeros(130, 30, dtype=torch.float64, device=device)
    weights[row, 12] = 0.5
    ours, expected = (evaluate(f, images, weights) for f in (fused_ssim, mean_ssim))
    assert_close(ours, expected)
    assert ours[1][:, :, max(row - 5, 0) : row + 6, 7:18].all()
    assert ours[1].count_nonzero() == 3 * 11 * (min(row + 6, 130) - max(row - 5, 0))


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_weights_of_zero_give_1_and_no_gradient(device: str, padding: str) -> None:
    images = pair((40, 70), torch.float32, device=device)
    weights = torch.zeros_like(random_weights((40, 70), padding, device), dtype=torch.float32)
    for function in (fused_ssim, mean_ssim):
        value, *gradients = evaluate(function, images, weights, padding)
        assert value == 1
        assert not any(gradient.any() for gradient in gradients)
    assert fused_ssim(*images, padding, train=False, weights=weights) == 1


def test_nan_counts_by_its_weight(device: str) -> None:
    images, weights = pair((80, 75), torch.float32, device=device), torch.ones(80, 75, device=device)
    weights[25:36, :9] = 0  # all windows that contain the pixel
    clean = evaluate(fused_ssim, images, weights)
    images[0][0, 1, 30, 3] = float("nan")
    value, *gradients = evaluate(fused_ssim, images, weights)
    assert torch.equal(value, clean[0])
    for gradient, wanted in zip(gradients, clean[1:], strict=True):
        gradient[0, 1, 30, 3] = wanted[0, 1, 30, 3]  # NaN, as 0 times the pixel itself
        assert torch.equal(gradient, wanted)
    weights[30, 8] = 1
    assert evaluate(fused_ssim, images, weights)[0].isnan()
    images = pair((80, 75), torch.float32, device=device)
    weights[70, 70] = float("nan")
    assert all(result.isnan().any() for result in evaluate(fused_ssim, images, weights))


def test_same_bits_for_any_number_of_threads() -> None:
    # Large enough that torch would divide the sum of the weights among the threads.
    images, weights = pair((300, 200)), random_weights((300, 200), "same")
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            results.append(evaluate(fused_ssim, images, weights))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("order", ["reverse", "1"])
def test_same_bits_on_every_run(monkeypatch: pytest.MonkeyPatch, device: str, order: str) -> None:
    images, weights = pair((45, 70), device=device), random_weights((45, 70), "same", device)
    expected = evaluate(fused_ssim, images, weights)
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    assert all(torch.equal(a, b) for a, b in zip(evaluate(fused_ssim, images, weights), expected, strict=True))


def test_strided_weights_count_like_contiguous_ones(device: str) -> None:
    images, weights = pair((33, 47), device=device), random_weights((33, 47), "same", device)
    strided = weights.T.contiguous().T
    ours, expected = (evaluate(fused_ssim, images, w) for w in (strided, weights))
    assert not strided.is_contiguous() and all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_declared_as_torch_expects(device: str) -> None:
    a, b = pair((12, 14), device=device)
    weights = random_weights((12, 14), "valid", device)
    torch.library.opcheck(torch.ops.fused_ssim.mean_ssim, (a, b, True, weights))
    torch.library.opcheck(torch.ops.fused_ssim.mean_ssim_with_grad, (a, b.requires_grad_(), True, weights))


def test_compiles_into_one_graph_with_its_gradients(device: str) -> None:
    images, weights = pair((20, 25), device=device), random_weights((20, 25), "same", device)
    compiled = torch.compile(fused_ssim, fullgraph=True, backend="aot_eager")
    assert_close(evaluate(compiled, images, weights), evaluate(fused_ssim, images, weights))


@pytest.mark.parametrize(
    ("weights", "padding", "message"),
    [
        (torch.ones(12, 12), "same", r"weights have shape \[12, 12\], expected \[12, 13\] as the SSIM map"),
        (torch.ones(12, 13), "valid", r"weights have shape \[12, 13\], expected \[2, 3\] as the SSIM map"),
        (torch.ones(1, 12, 13), "same", r"weights have shape \[1, 12, 13\], expected \[12, 13\]"),
        (torch.ones(12, 13), "same", "weights are Float, img1 is Double"),
    ],
)
def test_refusals_say_what_was_found(device: str, weights: Tensor, padding: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        fused_ssim(*pair((12, 13), device=device), padding, weights=weights.to(device))


def test_weights_have_no_gradient() -> None:
    images, weights = pair((12, 13)), random_weights((12, 13), "same").requires_grad_()
    with pytest.raises(ValueError, match="weights require a gradient, .* detach them"):
        fused_ssim(*images, weights=weights)
    with torch.no_grad():
        fused_ssim(*images, weights=weights)
