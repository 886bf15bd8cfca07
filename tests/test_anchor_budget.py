"""Bytes of an anchor in training, compared with those of a block, and the bound on anchors that follows."""

import pytest
import torch
from anchor_scene import random_anchors

from momentum_gs.config.schema import AnchorsConfig, Config, GrowthConfig, ModelConfig
from momentum_gs.model.anchors import Anchors
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.blocks.anchor_budget import bytes_per_anchor, max_anchors


def block(n: int, config: Config) -> AnchorBlock:
    anchors = random_anchors(n, config.model.n_offsets, config.model.feature_dim)
    return AnchorBlock.of(0, anchors, config, lr_scale=1.0, voxel_size=0.01)


@pytest.mark.parametrize(("feature_dim", "n_offsets"), [(32, 10), (8, 3)])
def test_bytes_are_those_of_a_block_between_backward_and_step(feature_dim: int, n_offsets: int) -> None:
    config = Config(model=ModelConfig(feature_dim=feature_dim, n_offsets=n_offsets))
    state = block(50, config)
    rows = state.model.rows()
    for _ in range(2):  # The first step makes the moments; the second backward the gradients beside them.
        state.optimizer.zero_grad(set_to_none=True)
        sum(rows[name].square().sum() for name in Anchors.LEARNABLE).backward()
        state.optimizer.step()
    tensors = [*rows.values(), *state.stats.rows().values()]
    tensors += [rows[name].grad for name in Anchors.LEARNABLE]
    # Adam's count of steps is one number for all rows.
    tensors += [value for moments in state.optimizer.state.values() for value in moments.values() if value.dim()]
    assert sum(tensor.nbytes for tensor in tensors) == 50 * bytes_per_anchor(config.model)


def test_the_smaller_bound_counts() -> None:
    model = ModelConfig()
    gb = 1000 * bytes_per_anchor(model) / 2**30
    assert max_anchors(AnchorsConfig(), model) is None
    assert max_anchors(AnchorsConfig(max_per_block=7), model) == 7
    assert max_anchors(AnchorsConfig(max_gb_per_block=gb), model) == 1000
    assert max_anchors(AnchorsConfig(max_gb_per_block=0.999 * gb), model) == 999
    assert max_anchors(AnchorsConfig(max_per_block=2000, max_gb_per_block=gb), model) == 1000
    assert max_anchors(AnchorsConfig(max_gb_per_block=1e-9), model) == 0


@pytest.mark.parametrize("limit", [None, 45])
def test_a_block_grows_to_its_bound(limit: int | None) -> None:
    config = Config(
        model=ModelConfig(feature_dim=8, n_offsets=4), growth=GrowthConfig(interval=10),
        anchors=AnchorsConfig(max_per_block=limit),
    )  # fmt: skip
    state = block(40, config)
    state.stats.offset_denom.fill_(9)
    state.stats.offset_gradient_accum.copy_(torch.linspace(0, 1, 160).unsqueeze(1))
    report = state.grow(config)
    assert len(state.model) == 40 + sum(report.grown) and report.pruned == 0
    if limit is None:
        assert sum(report.grown) > 5 and report.refused == 0
    else:
        assert len(state.model) == limit and report.refused > 0
    assert len(state.stats.anchor_denom) == len(state.model)
