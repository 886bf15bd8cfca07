"""The distance between the histograms of two clouds: against dense histograms, in double precision, and its facts."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from momentum_gs.train.distillation.structure import Counts, structure_loss, structure_loss_reference

ALL: list[Counts] = list(get_args(Counts))
SOFT = [counts for counts in ALL if counts != "hard"]


def cloud(n: int, seed: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("counts", ALL)
@pytest.mark.parametrize("grid", [1, 2, 5, 16])
def test_the_sparse_histogram_is_the_dense_one(counts: Counts, grid: int) -> None:
    for seed in range(3):
        student, teacher = cloud(40, seed), cloud(60, seed + 10, 0.7)
        found, wanted = structure_loss(student, teacher, grid, counts), structure_loss_reference(
            student, teacher, grid, counts
        )
        assert torch.allclose(found, wanted, atol=1e-12), (found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("counts", SOFT)
def test_gradcheck_and_the_gradient_of_the_reference(counts: Counts) -> None:
    teacher = cloud(30, 1)
    # Two far points hold the box, which the gradient takes as fixed.
    student = torch.cat([cloud(12, 0), torch.tensor([[-9.0, -9, -9], [9, 9, 9]], dtype=torch.float64)])
    inner = student[:12].clone().requires_grad_()

    def loss(points: Tensor) -> Tensor:
        return structure_loss(torch.cat([points, student[12:]]), teacher, 8, counts)

    # The gaussian's density ends after two voxels, where it has fallen to 3e-4 of its height.
    assert torch.autograd.gradcheck(loss, (inner,), eps=1e-7, atol=1e-5)
    (found,) = torch.autograd.grad(loss(inner), inner)
    (wanted,) = torch.autograd.grad(
        structure_loss_reference(torch.cat([inner, student[12:]]), teacher, 8, counts), inner
    )
    assert torch.allclose(found, wanted, atol=1e-12) and bool(found.abs().max() > 0)


@pytest.mark.parametrize("counts", ALL)
def test_equal_clouds_in_any_order_have_loss_zero(counts: Counts) -> None:
    points = cloud(500, 0)
    shuffled = points[torch.randperm(500, generator=torch.Generator().manual_seed(1))]
    assert float(structure_loss(points, shuffled, 32, counts)) == pytest.approx(0, abs=1e-12)
    assert float(structure_loss(torch.cat([points, points]), points, 32, counts)) == pytest.approx(0, abs=1e-12)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 999), st.sampled_from(ALL))
@settings(max_examples=40, deadline=None)
def test_invariant_to_order_unit_and_origin_and_within_0_and_1(n: int, m: int, seed: int, counts: Counts) -> None:
    student, teacher = cloud(n, seed), cloud(m, seed + 1)
    loss = structure_loss(student, teacher, 16, counts)
    assert -1e-9 <= float(loss) <= 1 + 1e-9
    shuffled = student[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    assert torch.allclose(structure_loss(shuffled, teacher, 16, counts), loss, atol=1e-12)
    # Powers of two, so that no point crosses a border between voxels.
    scaled = [4 * points + torch.tensor([8.0, -16.0, 32.0], dtype=torch.float64) for points in (student, teacher)]
    assert torch.allclose(structure_loss(*scaled, 16, counts), loss, atol=1e-6)


def test_clouds_apart_have_loss_one() -> None:
    far = cloud(50, 1, 0.1) + 100
    assert float(structure_loss(cloud(50, 0, 0.1), far, 64)) == pytest.approx(1)


def test_a_point_and_a_plane_have_finite_losses_and_gradients() -> None:
    one = torch.zeros(1, 3, requires_grad=True)
    loss = structure_loss(one, torch.zeros(4, 3), 128)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6) and one.grad is not None and not one.grad.any()
    plane = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 0.0])
    flat = plane.clone().requires_grad_()
    structure_loss(flat, plane.roll(1, dims=1), 16).backward()
    assert flat.grad is not None and bool(flat.grad.isfinite().all())


def test_marginals_cannot_tell_a_diagonal_from_its_mirror_image() -> None:
    """What the outer product of the authors' code overlooks, and joint counts do not."""
    line = torch.linspace(0, 1, 200, dtype=torch.float64)
    rising, falling = torch.stack([line, line, line], dim=1), torch.stack([line, 1 - line, line], dim=1)
    assert float(structure_loss(rising, falling, 32, "marginals")) == pytest.approx(0, abs=1e-9)
    assert float(structure_loss(rising, falling, 32)) > 0.9


@pytest.mark.slow
def test_gradient_steps_bring_the_clouds_together() -> None:
    teacher = cloud(400, 0)
    points = (teacher + 0.05 * cloud(400, 1)).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.005)
    first = float(structure_loss(points, teacher, 16))
    for _ in range(60):
        optimizer.zero_grad()
        structure_loss(points, teacher, 16).backward()
        optimizer.step()
    assert float(structure_loss(points, teacher, 16)) < 0.3 * first


def test_memory_does_not_grow_with_the_grid() -> None:
    """A dense histogram of 2048^3 voxels would take 64 GiB."""
    points = cloud(1000, 0).float().requires_grad_()
    structure_loss(points, cloud(1000, 1).float(), 2048).backward()
    assert points.grad is not None and bool(points.grad.isfinite().all())
