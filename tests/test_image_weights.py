"""Facts about weighted L1 and SSIM, with and without a mask."""

import pytest
import torch
from torch import Tensor

from momentum_gs.core.image import l1, l1_dssim, ssim


def both(a: Tensor, b: Tensor, mask: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    return torch.stack(l1_dssim(a, b, 0.2, mask, weights)).sum()


LOSSES = {"l1": l1, "dssim": lambda *arguments, **named: 1 - ssim(*arguments, **named), "both": both}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def random(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_gradient(loss, a: Tensor, *arguments: object, **named: object) -> tuple[Tensor, Tensor]:
    a = a.clone().requires_grad_()
    value = loss(a, *arguments, **named)
    return value.detach(), torch.autograd.grad(value, a)[0]


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    return random(3, 40, 50, seed=0), random(3, 40, 50, seed=1)


@pytest.fixture
def mask() -> Tensor:
    counts = torch.ones(1, 40, 50, dtype=torch.float64)
    counts[:, 15:30, 10:22] = 0
    return counts


@losses
def test_equal_weights_change_nothing(loss, images: tuple[Tensor, Tensor], mask: Tensor) -> None:
    for beside in (None, mask):
        for weights in (torch.ones_like(mask[0]), torch.full_like(mask[0], 1e-4)):
            weighted, plain = with_gradient(loss, *images, beside, weights), with_gradient(loss, *images, beside)
            torch.testing.assert_close(weighted, plain, rtol=1e-12, atol=1e-15)


@losses
def test_a_mask_of_ones_changes_nothing_with_weights(loss, images: tuple[Tensor, Tensor], mask: Tensor) -> None:
    weights = random(40, 50, seed=2)
    masked = with_gradient(loss, *images, torch.ones_like(mask), weights)
    torch.testing.assert_close(masked, with_gradient(loss, *images, weights=weights), rtol=1e-12, atol=1e-15)


@losses
@pytest.mark.parametrize("masked", [False, True])
def test_parts_by_their_share_sum_to_the_whole(loss, images: tuple[Tensor, Tensor], mask: Tensor, masked: bool) -> None:
    beside, counts = (mask, mask[0]) if masked else (None, torch.ones_like(mask[0]))
    parts = random(4, 40, 50, seed=3)
    parts[:, :, 35:] = torch.tensor([1.0, 0, 0, 0])[:, None, None]  # one owner alone
    parts /= parts.sum(0)
    terms = [with_gradient(loss, *images, beside, part) for part in parts]
    shares = [(part * counts).sum() / counts.sum() for part in parts]
    sums = tuple(sum(share * term[i] for share, term in zip(shares, terms, strict=True)) for i in (0, 1))
    torch.testing.assert_close(sums, with_gradient(loss, *images, beside), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("factors", [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_both_terms_in_one_pass_are_those_of_two(
    images: tuple[Tensor, Tensor], mask: Tensor, masked: bool, weighted: bool, factors: tuple[float, float]
) -> None:
    def together(*arguments: Tensor) -> Tensor:
        a, b, *beside = arguments
        first, second = l1_dssim(a, b, 0.2, *beside)
        return factors[0] * first + factors[1] * second

    def apart(*arguments: Tensor) -> Tensor:
        return factors[0] * 0.8 * l1(*arguments) + factors[1] * 0.2 * (1 - ssim(*arguments))

    beside = (mask if masked else None, random(40, 50, seed=7) if weighted else None)
    expected = with_gradient(apart, *images, *beside)
    torch.testing.assert_close(with_gradient(together, *images, *beside), expected, rtol=1e-10, atol=1e-14)


def test_l1_by_hand() -> None:
    a, b = torch.zeros(3, 1, 3), torch.tensor([0.1, 0.2, 0.4]).expand(3, 1, 3)
    weights = torch.tensor([[0.25, 0.5, 0.0]])
    assert float(l1(a, b, weights=weights)) == pytest.approx((0.25 * 0.1 + 0.5 * 0.2) / 0.75)
    assert float(l1(a, b, torch.tensor([[[1.0, 0.0, 1.0]]]), weights)) == pytest.approx(0.1)


def test_no_edge_arises_where_weights_end(images: tuple[Tensor, Tensor]) -> None:
    # Equal where the weights are and up to 5 pixels around, which are in the windows of weighted pixels.
    a, b = images
    b = b.clone()
    b[:, 5:25, 5:25] = a[:, 5:25, 5:25]
    weights = torch.zeros(40, 50, dtype=torch.float64)
    weights[10:20, 10:20] = 1
    assert float(ssim(a, b, weights=weights)) == pytest.approx(1, abs=1e-12)
    b[:, 4, 15] = 1 - a[:, 4, 15]  # 6 pixels away
    assert float(ssim(a, b, weights=weights)) == pytest.approx(1, abs=1e-12)
    b[:, 5, 15] = 1 - a[:, 5, 15]
    assert float(ssim(a, b, weights=weights)) < 1 - 1e-6


@losses
def test_ignored_pixels_change_nothing(loss, images: tuple[Tensor, Tensor], mask: Tensor) -> None:
    a, b = images
    weights = random(40, 50, seed=4)
    value, gradient = with_gradient(loss, a, b, mask, weights)
    other = torch.where(mask == 0, random(3, 40, 50, seed=5), a)
    torch.testing.assert_close(with_gradient(loss, other, b, mask, weights), (value, gradient), rtol=0, atol=0)
    assert not (gradient * (1 - mask)).any()


@losses
@pytest.mark.parametrize("why", ["weights", "mask", "together"])
def test_without_a_pixel_that_counts_loss_and_gradient_are_zero(
    loss, images: tuple[Tensor, Tensor], mask: Tensor, why: str
) -> None:
    weights, beside = {
        "weights": (torch.zeros(40, 50, dtype=torch.float64), None),
        "mask": (random(40, 50, seed=6), torch.zeros_like(mask)),
        "together": (1 - mask[0], mask),  # some windows of weighted, ignored pixels contain pixels that count
    }[why]
    value, gradient = with_gradient(loss, *images, beside, weights)
    assert value == 0 and not gradient.any()
