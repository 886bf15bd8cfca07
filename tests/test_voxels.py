"""Sets of cells against torch.unique and against comparing all pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from momentum_gs.core.voxels import cell_centers, cells_of, free_cells, free_cells_reference, unique_cells

# Extents of an axis: one cell, a few, 2^30; with three wide axes a cell needs 90 bits and cannot be packed into an
# int64.
EXTENTS = st.tuples(*[st.sampled_from([1, 4, 2**30])] * 3)


def random_cells(n: int, extents: tuple[int, int, int], rng: torch.Generator) -> torch.Tensor:
    """Random cells in a box around the origin; every third one is a copy of another."""
    spread = torch.tensor(extents)
    cells = (torch.rand(n, 3, generator=rng, dtype=torch.float64) * spread).long() - spread // 2
    cells[::3] = cells[: len(cells[::3])].clone()
    return cells


def bounds(cells: torch.Tensor, margin: int = 0) -> tuple[list[int], list[int]]:
    if len(cells) == 0:
        return [0] * 3, [0] * 3
    return (cells.amin(0) - margin).tolist(), (cells.amax(0) + margin).tolist()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40), EXTENTS, st.integers(0, 2**16))
def test_unique_cells_are_those_of_torch(n: int, extents: tuple[int, int, int], seed: int) -> None:
    cells = random_cells(n, extents, torch.Generator().manual_seed(seed))
    if n == 0:
        assert [len(part) for part in unique_cells(cells)] == [0, 0]
        return
    expected, expected_inverse = torch.unique(cells, dim=0, return_inverse=True)
    unique, inverse = unique_cells(cells)
    assert torch.equal(unique, expected)
    assert torch.equal(inverse, expected_inverse)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 40), st.integers(0, 60), EXTENTS, st.sampled_from([0, 1, 2**30]), st.integers(0, 2**16))
def test_free_cells_are_those_of_the_reference(
    n: int, n_taken: int, extents: tuple[int, int, int], margin: int, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    cells = random_cells(n, extents, rng)
    # Some of the taken cells are among the cells, the others are in a box twice as wide.
    taken = torch.cat([cells[::5], random_cells(n_taken, tuple(2 * e for e in extents), rng)])
    free, group, distinct = free_cells(cells, taken, *bounds(cells, margin))
    is_free, expected = free_cells_reference(cells, taken)
    assert torch.equal(free.sort().values, is_free.nonzero().squeeze(1))
    assert torch.equal(distinct, expected)
    assert torch.equal(distinct[group], cells[free])
    assert torch.equal(group, group.sort().values)


def test_extremes_of_int32_coordinates_are_told_apart() -> None:
    # The limit of the official code. A model of 2 km with growth voxels of 0.1 mm needs 25 bits an axis.
    far = 2**31 - 1
    cells = torch.tensor([[far, -far, far], [far, -far, far - 1], [-far, far, 0], [far, -far, far]])
    unique, inverse = unique_cells(cells)
    assert unique.tolist() == [[-far, far, 0], [far, -far, far - 1], [far, -far, far]]
    assert inverse.tolist() == [2, 1, 0, 2]
    free, group, distinct = free_cells(cells, cells[:1], *bounds(cells))
    assert free.tolist() == [2, 1] and group.tolist() == [0, 1] and torch.equal(distinct, unique[:2])


def test_a_cell_is_the_nearest_multiple() -> None:
    points = torch.tensor([[0.24, 0.26, -0.26], [0.25, 0.75, 1.25]])
    # Halves are rounded to even, as in NumPy and torch.
    assert cells_of(points, 0.5).tolist() == [[0, 1, -1], [0, 2, 2]]
    assert torch.equal(cell_centers(cells_of(points, 0.5), 0.5, torch.float32)[0], torch.tensor([0.0, 0.5, -0.5]))


@pytest.mark.parametrize("size", [0.1, 1e-4])
def test_cells_of_centers_are_the_cells(size: float) -> None:
    cells = torch.randint(-1000, 1000, (500, 3), generator=torch.Generator().manual_seed(1))
    assert torch.equal(cells_of(cell_centers(cells, size, torch.float32), size), cells)
