"""The decoder: its heads, options and ranges."""

import pytest
import torch
from anchor_scene import random_decoder
from torch import Tensor

from momentum_gs.model.decoder import GaussianDecoder, blend_strides


def inputs(m: int = 6, feature_dim: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(m, 3, generator=rng))
    return torch.randn(m, feature_dim, generator=rng), direction, torch.rand(m, 1, generator=rng) * 5 + 1


def test_shapes_and_ranges() -> None:
    feature, direction, distance = inputs()
    opacity, cov, color = random_decoder()(feature * 100, direction, distance)
    assert (opacity.shape, cov.shape, color.shape) == ((6, 4), (6, 4, 7), (6, 4, 3))
    assert (opacity.abs() <= 1).all() and (color >= 0).all() and (color <= 1).all()


def test_state_dict_has_names_and_sizes_of_the_official_heads() -> None:
    shapes = {
        name: tuple(value.shape) for name, value in GaussianDecoder(32, 10, add_cov_dist=True).state_dict().items()
    }
    assert shapes == {
        "opacity.0.weight": (32, 35),
        "opacity.0.bias": (32,),
        "opacity.2.weight": (10, 32),
        "opacity.2.bias": (10,),
        "cov.0.weight": (32, 36),
        "cov.0.bias": (32,),
        "cov.2.weight": (70, 32),
        "cov.2.bias": (70,),
        "color.0.weight": (32, 35),
        "color.0.bias": (32,),
        "color.2.weight": (30, 32),
        "color.2.bias": (30,),
    }


@pytest.mark.parametrize("head", ["opacity", "cov", "color"])
def test_the_distance_reaches_exactly_the_heads_that_ask_for_it(head: str) -> None:
    feature, direction, distance = inputs()
    for asked in (True, False):
        decoder = random_decoder(**{f"add_{head}_dist": asked})
        near, far = decoder(feature, direction, distance), decoder(feature, direction, distance * 2)
        for name in ("opacity", "cov", "color"):
            same = torch.equal(getattr(near, name), getattr(far, name))
            assert same != (asked and name == head)


def test_heads_read_feature_direction_distance_in_this_order() -> None:
    feature, direction, distance = inputs()
    decoder = random_decoder(add_color_dist=True)
    by_hand = decoder.color(torch.cat([feature, direction, distance], dim=1)).view(6, 4, 3)
    assert torch.equal(decoder(feature, direction, distance).color, by_hand)


def test_feature_bank_blends_three_strides() -> None:
    feature = torch.arange(8.0).repeat(3, 1)
    fine, middle, coarse = blend_strides(feature, torch.eye(3).flip(0))
    assert coarse.tolist() == [0, 4, 0, 4, 0, 4, 0, 4]
    assert middle.tolist() == [0, 2, 4, 6, 0, 2, 4, 6]
    assert fine.tolist() == list(range(8))
    half = blend_strides(feature[:1], torch.tensor([[0.25, 0.25, 0.5]]))
    assert torch.equal(half[0], 0.25 * coarse + 0.25 * middle + 0.5 * fine)


def test_feature_bank_depends_on_the_view_and_learns() -> None:
    feature, direction, distance = inputs()
    decoder = random_decoder(use_feature_bank=True)
    assert decoder.feature_bank is not None
    weight = decoder.feature_bank(torch.cat([direction, distance], dim=1))
    # A softmax: a sum of three float32 numbers.
    torch.testing.assert_close(weight.sum(1), torch.ones(6), rtol=0, atol=3e-7)
    near = decoder(feature, direction, distance)
    assert not torch.equal(near.opacity, decoder(feature, direction, distance * 3).opacity)
    near.color.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in decoder.feature_bank.parameters())


def test_hidden_dim() -> None:
    decoder = GaussianDecoder(8, 4, hidden_dim=64)
    assert decoder.cov[0].out_features == 64 and decoder.cov[2].in_features == 64


def test_architecture_rebuilds_the_decoder() -> None:
    decoder = random_decoder(use_feature_bank=True, add_opacity_dist=True)
    twin = GaussianDecoder(**decoder.architecture)
    twin.load_state_dict(decoder.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(decoder(*inputs()), twin(*inputs()), strict=True))


def test_no_anchor_gives_no_gaussian() -> None:
    opacity, cov, color = random_decoder(use_feature_bank=True, add_cov_dist=True)(*inputs(m=0))
    assert (opacity.shape, cov.shape, color.shape) == ((0, 4), (0, 4, 7), (0, 4, 3))
