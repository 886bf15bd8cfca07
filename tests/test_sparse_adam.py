"""Adam on the rows in view (``optim.sparse_adam``)."""

import copy
from pathlib import Path

import pytest
import torch
from test_gaussians_training import GAUSSIANS
from tiny_run import (
    assert_same_bits,
    interrupt,
    make_config,
    model_of,
    run_ranks,
    train,
)
from tiny_scene import write_tiny_scene
from torch import Tensor
from torch.optim import Adam

from momentum_gs.config.schema import OptimConfig
from momentum_gs.model.anchors import Anchors
from momentum_gs.train.optim import SparseAdam, anchor_optimizer, move_rows

ON = "optim.sparse_adam=true"


def anchors_of(count: int) -> Anchors:
    generator = torch.Generator().manual_seed(0)
    position, feature, log_scale = (torch.rand(count, n, generator=generator) for n in (3, 8, 6))
    return Anchors.fresh(position, feature, log_scale, 4)


def steps(anchors: Anchors, optimizer: Adam, views: list[Tensor]) -> None:
    """A step for each view, with random gradients of the rows that it shows."""
    for seed, visible in enumerate(views):
        generator = torch.Generator().manual_seed(seed)
        for name in Anchors.LEARNABLE:
            row = anchors.rows()[name]
            row.grad = torch.zeros_like(row)
            row.grad[visible] = torch.randn(row.shape, generator=generator)[visible]
        move_rows(optimizer, visible)
        optimizer.zero_grad()


def test_with_every_row_in_view_it_is_dense_adam() -> None:
    views = [torch.arange(50)] * 5
    made = []
    for sparse in (False, True):
        anchors = anchors_of(50)
        optimizer = anchor_optimizer(anchors, OptimConfig(sparse_adam=sparse), 1.0)
        assert isinstance(optimizer, SparseAdam) == sparse
        steps(anchors, optimizer, views)
        made.append([(row.detach(), optimizer.state[row]) for row in map(anchors.rows().get, Anchors.LEARNABLE)])
    for (dense, dense_state), (sparse, sparse_state) in zip(*made, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=2e-6, atol=2e-6)
        assert dense_state.keys() == sparse_state.keys()  # what is stored with an inactive block is the same
        for key, value in dense_state.items():
            torch.testing.assert_close(sparse_state[key], value, rtol=2e-6, atol=2e-6)


def test_rows_out_of_view_keep_their_bits() -> None:
    anchors = anchors_of(50)
    optimizer = anchor_optimizer(anchors, OptimConfig(sparse_adam=True), 1.0)
    steps(anchors, optimizer, [torch.arange(50)])
    rows = {name: anchors.rows()[name] for name in Anchors.LEARNABLE}
    before = {name: row.detach().clone() for name, row in rows.items()}
    moments = {name: copy.deepcopy(optimizer.state[row]) for name, row in rows.items()}
    steps(anchors, optimizer, [torch.arange(0, 50, 3)] * 2)
    away = torch.arange(50) % 3 != 0
    for name, row in rows.items():
        assert torch.equal(row[away], before[name][away]) and not (row[~away] == before[name][~away]).any()
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[row][key][away], moments[name][key][away])
        assert int(optimizer.state[row]["step"]) == 3


def test_rows_without_a_gradient_do_not_move() -> None:
    # As after growth, which makes new rows.
    anchors = anchors_of(5)
    optimizer = anchor_optimizer(anchors, OptimConfig(sparse_adam=True), 1.0)
    before = anchors.feature.detach().clone()
    move_rows(optimizer, torch.arange(70))  # rows that are there no longer
    assert torch.equal(anchors.feature, before) and not optimizer.state


@pytest.mark.slow
@pytest.mark.parametrize("primitive", ["anchors", "gaussians"])
def test_ranks_and_resume_change_no_bit(tmp_path: Path, primitive: str) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings: tuple[str, ...] = (ON, *((*GAUSSIANS, "gaussians.from_coarse=false") if primitive == "gaussians" else ()))
    train(make_config(scene, whole, *settings))
    config = make_config(scene, parts, *settings, "log.checkpoint_every=37")
    interrupt(config, 42)
    train(config, resume=True)
    assert_same_bits(model_of(whole), model_of(parts))
    if primitive == "anchors":  # One of the two is enough: rows are not looked at across ranks.
        assert_same_bits(model_of(whole), run_ranks(scene, tmp_path / "ranks", 2, *settings))
    train(make_config(scene, tmp_path / "dense", *settings[1:]))
    dense, sparse = model_of(tmp_path / "dense"), model_of(whole)
    # The tiny scene's views show all of its Gaussians, so that dense Adam makes the same steps.
    assert all(torch.equal(dense[name], sparse[name]) for name in dense) == (primitive == "gaussians")
