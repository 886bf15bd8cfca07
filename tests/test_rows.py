"""Edits of rows keep Adam's moments with their rows; scatter-max against a loop."""

import pytest
import torch
from torch import Tensor
from torch.optim import Adam

from momentum_gs.core import rows as rows_module
from momentum_gs.core.rows import append_rows, edit_rows, keep_rows, scatter_max, scatter_max_torch


def make(n: int, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    moved = torch.randn(n, 2, 3, generator=rng).requires_grad_()
    return {"moved": moved, "fixed": torch.randn(n, generator=rng)}


def adam(rows: dict[str, Tensor]) -> Adam:
    return Adam([{"params": [rows["moved"]], "name": "moved"}], lr=0.1)


def step(rows: dict[str, Tensor], optimizer: Adam, target: Tensor) -> None:
    optimizer.zero_grad()
    (rows["moved"] - target).square().sum().backward()
    optimizer.step()


def test_kept_rows_train_on_as_if_alone() -> None:
    """Adam works entry by entry, so the rows that are kept must move exactly as without the others."""
    mask = torch.tensor([True, False, True, True, False])
    target = torch.arange(5.0).view(5, 1, 1).expand(5, 2, 3)
    rows = make(5)
    alone = {name: row.detach()[mask].clone().requires_grad_(row.requires_grad) for name, row in rows.items()}
    optimizer, optimizer_alone = adam(rows), adam(alone)
    for _ in range(3):
        step(rows, optimizer, target)
        step(alone, optimizer_alone, target[mask])
    rows = keep_rows(rows, mask, optimizer)
    for _ in range(3):
        step(rows, optimizer, target[mask])
        step(alone, optimizer_alone, target[mask])
    assert torch.equal(rows["moved"], alone["moved"])
    assert torch.equal(rows["fixed"], alone["fixed"])


def test_appended_rows_have_zero_moments_and_leave_the_old_ones_alone() -> None:
    rows, new = make(3), make(2, seed=1)
    optimizer = adam(rows)
    step(rows, optimizer, torch.zeros(3, 2, 3))
    before = {key: value.clone() for key, value in optimizer.state[rows["moved"]].items()}
    after_rows = append_rows(rows, new, optimizer)
    state = optimizer.state[after_rows["moved"]]
    assert torch.equal(after_rows["moved"], torch.cat([rows["moved"], new["moved"]]))
    assert torch.equal(after_rows["fixed"], torch.cat([rows["fixed"], new["fixed"]]))
    assert torch.equal(state["step"], before["step"])
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(state[key][:3], before[key])
        assert not state[key][3:].any()


def test_edited_rows_are_leaves_and_the_next_step_does_not_move_them() -> None:
    rows = make(4)
    optimizer = adam(rows)
    step(rows, optimizer, torch.zeros(4, 2, 3))
    rows = keep_rows(rows, torch.tensor([True, True, False, True]), optimizer)
    moved = rows["moved"]
    assert moved.is_leaf and moved.requires_grad and moved.grad is None
    assert not rows["fixed"].requires_grad
    before = moved.detach().clone()
    optimizer.step()
    assert torch.equal(moved, before)
    assert len(optimizer.state) == 1


def test_edits_before_the_first_step_and_without_optimizer() -> None:
    rows = make(3)
    optimizer = adam(rows)
    rows = append_rows(keep_rows(rows, torch.tensor([True, False, True]), optimizer), make(1, seed=2), optimizer)
    step(rows, optimizer, torch.zeros(3, 2, 3))
    assert len(keep_rows(rows, torch.zeros(3, dtype=torch.bool), None)["moved"]) == 0


def test_one_edit_is_to_keep_and_then_to_append() -> None:
    mask, new = torch.tensor([True, False, True, False]), make(3, seed=5)
    found = []
    for in_one in (True, False):
        rows = make(4)
        optimizer = adam(rows)
        step(rows, optimizer, torch.zeros(4, 2, 3))
        if in_one:
            rows = edit_rows(rows, mask.nonzero().squeeze(1), new, optimizer)
        else:
            rows = append_rows(keep_rows(rows, mask, optimizer), new, optimizer)
        found.append(rows | optimizer.state[rows["moved"]])
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())


def test_a_foreign_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="moved"):
        keep_rows(make(3), torch.ones(3, dtype=torch.bool), adam(make(3)))


def scatter_max_loop(src: Tensor, index: Tensor, n_rows: int) -> Tensor:
    rows = [src[index == row] for row in range(n_rows)]
    return torch.stack([part.amax(0) if len(part) else src.new_zeros(src.shape[1]) for part in rows])


@pytest.mark.parametrize("n_sources", [0, 1, 200])
def test_scatter_max_is_the_loop(n_sources: int) -> None:
    rng = torch.Generator().manual_seed(n_sources)
    # All negative, so that a zero that does not belong would be the maximum.
    src = -torch.rand(n_sources, 5, generator=rng) - 1
    index = torch.randint(0, 40, (n_sources,), generator=rng)
    expected = scatter_max_loop(src, index, 50)
    assert torch.equal(scatter_max(src, index, 50), expected)
    assert torch.equal(scatter_max_torch(src, index, 50), expected)


@pytest.mark.skipif(rows_module._torch_scatter_max is None, reason="torch_scatter is not installed")
def test_both_scatter_max_agree_bit_for_bit() -> None:
    rng = torch.Generator().manual_seed(3)
    src = torch.randn(5000, 32, generator=rng)
    index = torch.randint(0, 700, (5000,), generator=rng)
    assert torch.equal(scatter_max(src, index, 720), scatter_max_torch(src, index, 720))
