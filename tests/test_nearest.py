"""Nearest points: as by all pairs."""

import pytest
import torch

from momentum_gs.core.nearest import PointTree


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (7, 3), (500, 2), (3000, 3)])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_they_are_those_of_all_pairs(shape: tuple[int, int], shift: float) -> None:
    """Also where single precision would not tell the points apart without taking their mean off."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(*shape, generator=generator, dtype=torch.float64) + shift
    at = torch.rand(100, shape[1], generator=generator, dtype=torch.float64) + shift
    distance, rows = PointTree(points).nearest(at, 5)
    every = torch.cdist(at, points, compute_mode="donot_use_mm_for_euclid_dist")
    expected = every.topk(min(5, len(points)), dim=1, largest=False)
    torch.testing.assert_close(distance, expected.values, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(every.gather(1, rows), expected.values, rtol=1e-5, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in rows.tolist()), "none is found twice"


def test_equal_points_are_told_apart_by_their_rows() -> None:
    distance, rows = PointTree(torch.zeros(30, 3)).nearest(torch.zeros(2, 3), 12)
    assert not distance.any() and all(len(set(row)) == 12 for row in rows.tolist())


def test_no_place_has_no_neighbours() -> None:
    distance, rows = PointTree(torch.zeros(4, 3)).nearest(torch.zeros(0, 3), 12)
    assert distance.shape == rows.shape == (0, 4)
