"""Block weights against values of the official code."""

import torch
from anchor_scene import parity
from hypothesis import given
from hypothesis import strategies as st

from momentum_gs.train.blocks.weight import block_weights


def test_parity() -> None:
    figures = parity("block_weights")
    found = block_weights(figures["psnr"], figures["ssim"], float(figures["sigma"]), float(figures["ssim_scale"]))
    # float64 with one exponential.
    torch.testing.assert_close(found, figures["weight"], rtol=1e-13, atol=0)


@given(
    st.lists(st.tuples(st.floats(5, 45), st.floats(0, 1)), min_size=1, max_size=8),
    st.floats(0.5, 50),
)
def test_weights_are_in_1_to_2_and_worse_is_heavier(scores: list[tuple[float, float]], sigma: float) -> None:
    psnr, ssim = torch.tensor(scores, dtype=torch.float64).unbind(1)
    weights = block_weights(psnr, ssim, sigma)
    assert (weights >= 1).all() and (weights <= 2).all()
    worse = (psnr[:, None] <= psnr[None]) & (ssim[:, None] <= ssim[None])
    assert (weights[:, None] >= weights[None])[worse].all()


def test_the_best_block_weighs_one() -> None:
    weights = block_weights(torch.tensor([20.0, 25.0]), torch.tensor([0.6, 0.8]), 10.0)
    assert weights[1] == 1 and weights[0] > 1
    assert torch.equal(block_weights(torch.tensor([17.0]), torch.tensor([0.3]), 1.0), torch.ones(1))


def test_with_a_scale_of_zero_a_metric_does_not_count() -> None:
    psnr, ssim = torch.tensor([[22.0, 25.0, 24.0], [0.7, 0.8, 0.9]], dtype=torch.float64)
    same = torch.zeros_like(psnr)
    by_psnr, by_ssim = block_weights(psnr, ssim, 5.0, ssim_scale=0.0), block_weights(psnr, ssim, 5.0, psnr_scale=0.0)
    assert torch.equal(by_psnr, block_weights(psnr, same, 5.0))
    assert torch.equal(by_ssim, block_weights(same, ssim, 5.0))
    assert by_psnr.argmin() == 1 and by_ssim.argmin() == 2


def test_equation_7_by_hand() -> None:
    psnr, ssim = torch.tensor([[22.0, 25.0], [0.7, 0.8]], dtype=torch.float64)
    # dPSNR = 3, dSSIM = 0.1, lambda = 100: exponent (9 + 1) / (2 * 25).
    expected = 2 - torch.tensor(-10 / 50, dtype=torch.float64).exp()
    torch.testing.assert_close(block_weights(psnr, ssim, 5.0)[0], expected, rtol=1e-13, atol=0)
