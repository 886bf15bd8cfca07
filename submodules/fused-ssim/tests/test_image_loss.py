"""The image loss: against the readable reference, against its two parts, and facts about it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from fused_ssim import cpu_kernels, fused_ssim, image_loss
from fused_ssim.reference import image_loss as reference
from ssim_pairs import SIZES
from test_fused_ssim_variants import by_cpu
from torch import Tensor

Given = dict[str, Tensor | None]
UPSTREAM = [(1.0, 1.0), (0.7, 0.0), (0.0, 0.7), (0.3, -2.0)]
"""Gradients of the two terms."""


def images(size: tuple[int, int], device: str = "cpu", weights: bool = False, mask: bool = False) -> Given:
    """A render and a target of that size, with weights of which half are 0 and a mask that ignores a third."""
    generator = torch.Generator().manual_seed(size[0] * 1000 + size[1])

    def random(channels: int) -> Tensor:
        return torch.rand(channels, *size, generator=generator, dtype=torch.float64).to(device)

    target, noise, weight, half, third = (random(count) for count in (3, 3, 1, 1, 1))
    return {
        "render": 0.6 * target + 0.4 * noise,
        "target": target,
        "weights": (weight * (half < 0.5))[0] if weights else None,
        "mask": (third > 1 / 3).to(weight) if mask else None,
    }


def of_dtype(given: Given, dtype: torch.dtype) -> Given:
    return {name: None if tensor is None else tensor.to(dtype) for name, tensor in given.items()}


def evaluate(function: Callable[..., tuple[Tensor, Tensor]], given: Given, dssim: float = 0.2) -> list[Tensor]:
    """Both terms, and the gradient of each of ``UPSTREAM``."""
    render, target, weights, mask = given.values()
    leaf = render.detach().clone().requires_grad_()
    terms = function(leaf, target, dssim, weights, mask)
    sums = (a * terms[0] + b * terms[1] for a, b in UPSTREAM)
    return [*(term.detach() for term in terms), *(torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in sums)]


def assert_close(ours: list[Tensor], expected: list[Tensor], tiny: float = 1e-12) -> None:
    """Values by the largest value, gradients by the largest gradient: those of two terms may cancel."""
    for part in (slice(2), slice(2, None)):
        scale = max(float(wanted.abs().max()) for wanted in expected[part])
        for got, wanted in zip(ours[part], expected[part], strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=tiny * scale)


counted = pytest.mark.parametrize(("weights", "mask"), list(product([False, True], repeat=2)))


@pytest.mark.parametrize("size", SIZES)
@counted
def test_equals_the_reference_in_double(device: str, size: tuple[int, int], weights: bool, mask: bool) -> None:
    given = images(size, device, weights, mask)
    for dssim in (0.2, 0.0, 1.0):
        ours = evaluate(image_loss, given, dssim)
        assert_close(ours, evaluate(reference, given, dssim))
        plain = image_loss(given["render"], given["target"], dssim, given["weights"], given["mask"])
        torch.testing.assert_close(plain, tuple(ours[:2]), rtol=1e-12, atol=1e-15)


@counted
def test_single_precision_is_as_good_as_the_reference(device: str, weights: bool, mask: bool) -> None:
    given = of_dtype(images((135, 50), device, weights, mask), torch.float32)
    exact = evaluate(reference, of_dtype(given, torch.float64))
    for got, other, truth in zip(evaluate(image_loss, given), evaluate(reference, given), exact, strict=True):
        error, allowed = float((got - truth).abs().max()), float((other - truth).abs().max())
        assert error <= max(2 * allowed, 3e-7 * float(truth.abs().max()))


def test_the_parts_are_those_that_each_alone_gives(device: str) -> None:
    given = images((70, 45), device)
    l1, structure = image_loss(given["render"], given["target"], 0.2)
    expected = 0.2 * (1 - fused_ssim(given["render"][None], given["target"][None]))
    torch.testing.assert_close(structure, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(l1, 0.8 * (given["render"] - given["target"]).abs().mean(), rtol=0, atol=1e-14)


@counted
def test_gradcheck(weights: bool, mask: bool) -> None:
    given = images((12, 13), weights=weights, mask=mask)
    render, target = given["render"].requires_grad_(), given["target"]
    assert torch.autograd.gradcheck(lambda x: image_loss(x, target, 0.2, given["weights"], given["mask"]), (render,))


@pytest.mark.parametrize("masked", [False, True])
def test_parts_by_their_share_sum_to_the_whole(device: str, masked: bool) -> None:
    given = images((70, 45), device, mask=masked)
    counts = torch.ones(70, 45, device=device) if given["mask"] is None else given["mask"][0]
    owner = torch.randint(4, (70, 45), generator=torch.Generator().manual_seed(0)).to(device)
    owner[:10] = 3  # rows without weight in the other parts
    expected = evaluate(image_loss, given)
    sums = [torch.zeros_like(each) for each in expected]
    for part in range(4):
        weights = (owner == part).double()
        share = (weights * counts).sum() / counts.sum()
        for total, term in zip(sums, evaluate(image_loss, given | {"weights": weights}), strict=True):
            total += share * term
    assert_close(sums, expected)


def test_a_crop_with_a_margin_of_5_has_the_same_values_and_gradients(device: str) -> None:
    # Weights in rows 70 to 129 of 260: their windows do not reach the first band of 64 rows, nor the last two.
    given = images((260, 60), device)
    weights = torch.zeros(260, 60, dtype=torch.float64, device=device)
    weights[70:130, 20:40] = images((60, 20), device, weights=True)["weights"]
    whole = evaluate(image_loss, given | {"weights": weights})
    crop = (..., slice(65, 135), slice(15, 45))
    part = {name: None if t is None else t[crop] for name, t in (given | {"weights": weights}).items()}
    cropped = evaluate(image_loss, part)
    assert_close([t[crop] if t.dim() else t for t in whole], cropped)
    for gradient in whole[2:]:
        gradient[crop] = 0
        assert not gradient.any()


@pytest.mark.parametrize("why", ["weights", "mask", "together"])
@pytest.mark.parametrize("dssim", [0.0, 0.2])
def test_without_a_pixel_that_counts_all_is_zero(device: str, why: str, dssim: float) -> None:
    given = images((40, 30), device, weights=True, mask=True)
    weights, mask = given["weights"], given["mask"]
    change = {
        "weights": {"weights": torch.zeros_like(weights)},
        "mask": {"mask": torch.zeros_like(mask)},
        "together": {"weights": 1 - mask[0]},  # some windows of weighted, ignored pixels contain pixels that count
    }[why]
    for function in (image_loss, reference):
        assert not any(each.any() for each in evaluate(function, given | change, dssim))


@pytest.mark.parametrize("dssim", [0.0, 0.2])
def test_what_ignored_pixels_hold_is_not_read(device: str, dssim: float) -> None:
    given = images((70, 45), device, weights=True, mask=True)
    given["mask"][:, 20:40, 10:20] = 0
    expected = evaluate(image_loss, given, dssim)
    for value in (0.5, float("nan"), float("inf")):
        other = given | {"render": given["render"].where(given["mask"] != 0, value)}
        for got, wanted in zip(evaluate(image_loss, other, dssim), expected, strict=True):
            assert torch.equal(got, wanted)
    assert not any((gradient * (given["mask"] == 0)).any() for gradient in expected[2:])


def test_equal_images_have_no_loss(device: str) -> None:
    given = images((40, 40), device)
    l1, structure, *gradients = evaluate(image_loss, given | {"render": given["target"]})
    assert l1 == 0 and abs(float(structure)) < 1e-13
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    given = of_dtype(images((300, 200), weights=True, mask=True), dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            results.append(evaluate(image_loss, given) + evaluate(image_loss, given, 0.0))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("order", ["reverse", "1", "2"])
def test_same_bits_on_every_run(monkeypatch: pytest.MonkeyPatch, device: str, order: str) -> None:
    given = of_dtype(images((45, 70), device, weights=True, mask=True), torch.float32)
    expected = evaluate(image_loss, given) + evaluate(image_loss, given, 0.0)
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    again = evaluate(image_loss, given) + evaluate(image_loss, given, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


CALL = """
import sys, torch
from test_image_loss import evaluate, images, of_dtype
from fused_ssim import image_loss
cases = [images((83, 147), weights=weights, mask=mask) for weights in (False, True) for mask in (False, True)]
torch.save([tensor for dtype in (torch.float32, torch.float64) for given in cases for dssim in (0.2, 0.0)
            for tensor in evaluate(image_loss, of_dtype(given, dtype), dssim)], sys.argv[1])
"""


@pytest.mark.slow
@by_cpu
def test_the_variants_have_the_same_bits(tmp_path: Path) -> None:
    if cpu_kernels() != "x86-64-v4":
        pytest.skip("this CPU runs x86-64-v3 alone")

    def called() -> Iterator[list[Tensor]]:
        for variant in ("v3", "v4"):
            environment = {**os.environ, "MOMENTUM_GS_CPU": variant}
            target = tmp_path / variant
            subprocess.run([sys.executable, "-c", CALL, target], env=environment, check=True, cwd=Path(__file__).parent)
            yield torch.load(target, weights_only=True)

    narrow, wide = called()
    assert all(torch.equal(a, b) for a, b in zip(narrow, wide, strict=True))


@pytest.mark.slow
def test_declared_as_torch_expects(device: str) -> None:
    given = images((12, 14), device, weights=True, mask=True)
    render, target, weights, mask = given.values()
    operators = torch.ops.fused_ssim
    torch.library.opcheck(operators.image_loss, (render, target, 0.2, weights, mask))
    torch.library.opcheck(operators.image_loss_with_grad, (render.clone().requires_grad_(), target, 0.2, weights, mask))
    torch.library.opcheck(operators.image_loss_with_grad, (render.clone().requires_grad_(), target, 0.2))
    *_, grad, slope = operators.image_loss_with_grad(render, target, 0.2, weights, mask)
    one, two = (torch.tensor(x, dtype=torch.float64, device=device) for x in (1.0, 2.0))
    for upstream in ((one, two), (one, one), (None, two), (one, None)):
        torch.library.opcheck(operators.image_loss_backward, (*upstream, grad, slope, render, target, weights, mask))


@pytest.mark.slow
@counted
def test_compiles_into_one_graph_with_its_gradients(device: str, weights: bool, mask: bool) -> None:
    given = images((20, 25), device, weights, mask)
    compiled = torch.compile(image_loss, fullgraph=True, backend="aot_eager")
    assert_close(evaluate(compiled, given), evaluate(image_loss, given))


@pytest.mark.parametrize("name", ["target", "weights", "mask"])
def test_what_has_no_gradient_is_refused_with_one(name: str) -> None:
    given = images((12, 13), weights=True, mask=True)
    given[name].requires_grad_()
    with pytest.raises(ValueError, match=f"{name} requires a gradient, .* detach it"):
        evaluate(image_loss, given)
    with torch.no_grad():
        image_loss(given["render"], given["target"], 0.2, given["weights"], given["mask"])


@pytest.mark.parametrize(
    ("change", "dssim", "message"),
    [
        ({"render": torch.ones(1, 3, 12, 13)}, 0.2, r"render has 4 dimensions, expected \[C,H,W\]"),
        ({"target": torch.ones(3, 12, 12)}, 0.2, r"target has shape \[3, 12, 12\], render \[3, 12, 13\]"),
        ({"target": torch.ones(3, 12, 13)}, 0.2, "target is Float, render Double"),
        ({"weights": torch.ones(12, 12)}, 0.2, r"weights have shape \[12, 12\], expected \[12, 13\]"),
        ({"mask": torch.ones(12, 13)}, 0.2, r"mask has shape \[12, 13\], expected \[1, 12, 13\]"),
        ({"mask": torch.ones(1, 12, 13)}, 0.2, "mask is Float, render Double"),
        ({}, 1.5, "dssim is 1.5, expected 0 to 1"),
    ],
)
def test_refusals_say_what_was_found(device: str, change: Given, dssim: float, message: str) -> None:
    given = images((12, 13), device) | {name: tensor.to(device) for name, tensor in change.items()}
    with pytest.raises(RuntimeError, match=message):
        image_loss(given["render"], given["target"], dssim, given["weights"], given["mask"])
