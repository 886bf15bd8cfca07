"""Learning rates against values of the official code, and the bound on the decoder's gradient."""

import math

import pytest
import torch
from anchor_scene import parity, random_anchors, random_decoder

from momentum_gs.config.schema import Config, OptimConfig
from momentum_gs.train.decoders.learner import DecoderLearner
from momentum_gs.train.lr import exponential
from momentum_gs.train.optim import anchor_optimizer, clip_gradients, decoder_optimizer, set_anchor_lr, set_decoder_lr


def rates(optimizer: torch.optim.Adam) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def test_parity_of_the_schedules() -> None:
    figures = parity("lr_schedule")
    assert figures["iteration"].max() >= 30_000
    anchor_opt, decoder_opt = (
        anchor_optimizer(random_anchors(3), OptimConfig(), 1.0),
        decoder_optimizer(random_decoder(), OptimConfig()),
    )
    for i, step in enumerate(figures["iteration"].tolist()):
        set_anchor_lr(anchor_opt, OptimConfig(), step, float(figures["spatial_lr_scale"]))
        set_decoder_lr(decoder_opt, OptimConfig(), step)
        found = rates(anchor_opt) | rates(decoder_opt)
        for ours, theirs in [("offset", "offset"), *((h, f"mlp_{h}") for h in ("opacity", "cov", "color"))]:
            # float64 on both sides, with logarithms and exponentials of different libraries.
            assert found[ours] == pytest.approx(float(figures[theirs][i]), rel=1e-12)
        assert (found["feature"], found["log_scale"]) == (0.0075, 0.007)


def test_exponential_is_a_constant_factor_between_its_ends() -> None:
    rate = exponential(0.01, 1e-4, 100)
    assert rate(0) == rate(-5) == pytest.approx(0.01, rel=1e-14)
    assert rate(100) == rate(1000) == pytest.approx(1e-4, rel=1e-14)
    assert rate(50) == pytest.approx(math.sqrt(0.01 * 1e-4), rel=1e-14)
    assert rate(30) / rate(20) == pytest.approx(rate(80) / rate(70), rel=1e-12)


def test_constant_pairs_may_be_zero() -> None:
    assert exponential(0.0, 0.0, 10)(3) == 0.0
    assert exponential(0.004, 0.004, 10)(7) == 0.004


def test_rates_of_offsets_scale_with_the_cameras() -> None:
    optimizer = anchor_optimizer(random_anchors(2), OptimConfig(), 2.0)
    assert rates(optimizer)["offset"] == pytest.approx(0.02)
    set_anchor_lr(optimizer, OptimConfig(), 30_000, 2.0)
    assert rates(optimizer)["offset"] == pytest.approx(2e-4)


def test_every_parameter_is_in_exactly_one_group() -> None:
    decoder = random_decoder(use_feature_bank=True)
    optimizer = decoder_optimizer(decoder, OptimConfig())
    assert set(rates(optimizer)) == {"opacity", "cov", "color", "feature_bank"}
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in decoder.parameters())
    anchors = random_anchors(2)
    groups = {group["name"]: group["params"] for group in anchor_optimizer(anchors, OptimConfig(), 1.0).param_groups}
    assert groups.keys() == {"offset", "feature", "log_scale"}
    assert all(len(params) == 1 and params[0] is anchors.rows()[name] for name, params in groups.items())


def test_steps_follow_adam() -> None:
    """The first step of Adam is lr times the sign of the gradient, with an eps of 1e-15 even for tiny gradients."""
    anchors = random_anchors(4)
    before = anchors.feature.detach().clone()
    optimizer = anchor_optimizer(anchors, OptimConfig(), 1.0)
    sign = torch.where(torch.arange(8) % 2 == 0, 1.0, -1.0)
    anchors.feature.grad = (1e-9 * sign).expand(4, 8).contiguous()
    optimizer.step()
    # One float32 rounding of values up to 4.
    torch.testing.assert_close(before - anchors.feature.detach(), (0.0075 * sign).expand(4, 8), rtol=0, atol=1e-6)


def test_no_anchor_is_no_error() -> None:
    anchors = random_anchors(0)
    optimizer = anchor_optimizer(anchors, OptimConfig(), 1.0)
    (anchors.feature.sum() + anchors.offset.sum()).backward()
    optimizer.step()
    assert len(anchors) == 0


def lengths(optimizer: torch.optim.Adam) -> dict[str, float]:
    """Length of each group's gradient."""
    return {
        group["name"]: math.sqrt(sum(float(p.grad.square().sum()) for p in group["params"]))
        for group in optimizer.param_groups
    }


def give_gradients(optimizer: torch.optim.Adam, factors: dict[str, float]) -> None:
    """Random gradients, those of a group times its factor (default: 1)."""
    rng = torch.Generator().manual_seed(3)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn(p.shape, generator=rng) * factors.get(group["name"], 1.0)


def test_an_unusually_large_gradient_is_scaled_down_in_its_group_alone() -> None:
    optimizer = decoder_optimizer(random_decoder(), OptimConfig())
    for _ in range(5):
        give_gradients(optimizer, {})
        optimizer.step()
    usual = lengths(optimizer)
    give_gradients(optimizer, {"cov": 1000.0, "color": 3.9})
    before = {g["name"]: [p.grad.clone() for p in g["params"]] for g in optimizer.param_groups}
    clip_gradients(optimizer, 4.0)
    found = lengths(optimizer)
    # After five equal gradients the usual length is theirs, up to float32 sums.
    assert found["cov"] == pytest.approx(4 * usual["cov"], rel=1e-5)
    for group in optimizer.param_groups:
        for p, g in zip(group["params"], before[group["name"]], strict=True):
            if group["name"] == "cov":  # Shorter, in the same direction.
                torch.testing.assert_close(p.grad / p.grad.norm(), g / g.norm())
            else:
                assert torch.equal(p.grad, g)


@pytest.mark.parametrize("earlier", [0, 3], ids=["first", "after zeros"])
def test_a_gradient_with_nothing_to_compare_to_passes_whole(earlier: int) -> None:
    optimizer = decoder_optimizer(random_decoder(), OptimConfig())
    for _ in range(earlier):
        give_gradients(optimizer, {"cov": 0.0})
        optimizer.step()
    give_gradients(optimizer, {"cov": 50.0})
    before = lengths(optimizer)
    clip_gradients(optimizer, 1.0)
    assert lengths(optimizer)["cov"] == before["cov"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("clip", [None, 4.0])
def test_with_the_bound_one_gradient_does_not_shorten_the_steps_that_follow(clip: float | None) -> None:
    learner = DecoderLearner(Config(optim=OptimConfig(decoder_clip=clip)), torch.device("cpu"))
    bias = learner.module.cov[2].bias.detach()
    moved = []
    # After the large gradient, 100 usual ones: of 1000 times a usual gradient, 0.9^100 leaves 0.03 in the first moment.
    for factor in (*(1.0, -1.0) * 20, 1000.0, *(-1.0, 1.0) * 50):
        before = bias.clone()
        for p in learner.module.parameters():
            p.grad = torch.full_like(p, factor)
        learner.step(0)
        moved.append(float((bias - before).abs().max()))
    # The square of the large gradient in the second moment is 1e6 times a usual one, or 16 times with the bound.
    assert moved[-1] < 0.05 * moved[39] if clip is None else moved[-1] > 0.8 * moved[39]
