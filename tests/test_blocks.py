"""Facts about the block grid."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import contract, uncontract
from momentum_gs.data.blocks import BlockGrid

PARITY = Path(__file__).parent / "fixtures" / "parity" / "partition.npz"
AABB = (-50.0, -100.0, -135.0, 50.0, 300.0, -5.0)


def test_members_are_exactly_those_of_the_original() -> None:
    with np.load(PARITY) as figures:
        grid = BlockGrid(figures["aabb"], figures["block_dim"])
        points, wanted = torch.from_numpy(figures["points"]), torch.from_numpy(figures["cell_mask"])
    assert points.dtype == torch.float32 and grid.n == wanted.shape[1] == 8
    for block in range(grid.n):
        assert torch.equal(grid.members(points, block), wanted[:, block])
    assert torch.equal(grid.cell_of(points), wanted.int().argmax(dim=1))


def test_box_and_grid_may_be_any_sequences() -> None:
    wanted = BlockGrid(AABB, (2, 1, 4))
    for aabb, dim in (
        (list(AABB), [2, 1, 4]),
        (torch.tensor(AABB), torch.tensor([2, 1, 4])),
        (np.array(AABB), (2, 1, 4)),
    ):
        assert BlockGrid(aabb, dim) == wanted


@pytest.mark.parametrize("dim", [(1, 1, 1), (2, 1, 4), (3, 5, 2)])
def test_ids_and_cells_are_inverse(dim: tuple[int, int, int]) -> None:
    grid = BlockGrid(AABB, dim)
    dx, dy, dz = dim
    cells = [grid.cell(block) for block in range(grid.n)]
    assert cells == [(x, y, z) for z in range(dz) for y in range(dy) for x in range(dx)]
    centres = torch.tensor(cells, dtype=torch.float64).add(0.5) / torch.tensor(dim)
    assert grid.cell_of(uncontract(centres, AABB)).tolist() == list(range(grid.n))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 3), min_size=1, max_size=30),
    st.tuples(*[st.lists(st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.9]), unique=True, max_size=2)] * 3),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_every_point_is_in_exactly_one_cell(
    rows: list[tuple[float, float, float]], cuts: tuple[list[float], ...], equal: bool, dtype: torch.dtype
) -> None:
    dim = [len(axis) + 1 for axis in cuts]
    x, y, z = (tuple(sorted(axis)) for axis in cuts)
    grid, points = BlockGrid(AABB, dim, None if equal else (x, y, z)), torch.tensor(rows, dtype=dtype)
    member = torch.stack([grid.members(points, block) for block in range(grid.n)])
    assert (member.sum(dim=0) == 1).all()
    # The bounds of that cell contain its contracted coordinates, up to round-off.
    unit = contract(points, AABB).double()
    for point, block in zip(unit, grid.cell_of(points).tolist(), strict=True):
        low, high = grid.cell_bounds(block).split(3)
        assert (point >= low - 1e-6).all() and (point <= high + 1e-6).all()


CUTS = ((0.3,), (), (0.1, 0.5, 0.8))


def test_cuts_are_where_they_are_given() -> None:
    grid = BlockGrid(AABB, (2, 1, 4), CUTS)
    for axis, axis_cuts in enumerate(CUTS):
        for place, cut in enumerate(axis_cuts):
            # 1e-9 on either side, as uncontracting and contracting in float64 has an error of about 1e-16.
            sides = torch.full((2, 3), 0.45, dtype=torch.float64)
            sides[:, axis] += torch.tensor([-1e-9, 1e-9]).double() + cut - 0.45
            cells = [grid.cell(block)[axis] for block in grid.cell_of(uncontract(sides, AABB)).tolist()]
            assert cells == [place, place + 1]


def test_equal_cuts_are_no_cuts() -> None:
    equal, cut = BlockGrid(AABB, (2, 1, 4)), BlockGrid(AABB, (2, 1, 4), ((0.5,), (), (0.25, 0.5, 0.75)))
    far = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) * 300
    assert equal.cell_of(far).equal(cut.cell_of(far)) and len(cut.cell_of(far).unique()) == 8
    assert all(equal.cell_bounds(block).equal(cut.cell_bounds(block)) for block in range(8))


def test_neighbours_share_a_face() -> None:
    """In their bounds two axes are equal, and on the third the end of one is the start of the other."""
    grid = BlockGrid(AABB, (2, 3, 4), ((0.3,), (0.4, 0.6), (0.1, 0.5, 0.8)))
    bounds = [grid.cell_bounds(block).view(2, 3) for block in range(grid.n)]
    for a in range(grid.n):
        touch = [
            b
            for b in range(grid.n)
            if sum(bool((bounds[a][:, i] == bounds[b][:, i]).all()) for i in range(3)) == 2
            and bool((bounds[a][0] == bounds[b][1]).any() | (bounds[a][1] == bounds[b][0]).any())
        ]
        assert sorted(grid.beside(a)) == touch
    assert grid.column(9, 1) == [7, 9, 11] and grid.column(9, 0) == [8, 9] and grid.column(9, 2) == [3, 9, 15, 21]


@pytest.mark.parametrize("cuts", [((), (), ()), ((0.5,), (), (0.2, 0.1, 0.3)), ((1.0,), (), (0.1, 0.2, 0.3))])
def test_cuts_that_do_not_fit_are_refused(cuts: tuple) -> None:
    with pytest.raises(ValueError, match="BlockGrid: cuts are"):
        BlockGrid(AABB, (2, 1, 4), cuts)


def test_cells_are_half_open() -> None:
    """A grid of 2x2x2 is cut in the middle of the box; a point on the cut belongs to the upper cell."""
    grid = BlockGrid((-1, -1, -1, 1, 1, 1), (2, 2, 2))
    below = torch.nextafter(torch.tensor(-0.0), torch.tensor(-1.0)).item()
    points = torch.tensor([[0.0, 0, 0], [-0.1, 0, 0], [0, -0.1, -0.1], [-0.1, -0.1, -0.1], [below, 0, 0]])
    # The smallest number below the cut rounds onto it when it is contracted.
    assert grid.cell_of(points).tolist() == [7, 6, 1, 0, 7]


def test_the_far_end_belongs_to_the_last_cell() -> None:
    grid = BlockGrid(AABB, (2, 1, 4))
    far = torch.tensor([[1e30, 100, -70], [-1e30, 100, -70], [0, 100, 1e30], [0, 100, -1e30]])
    # In float32 a coordinate of 1e30 contracts to exactly 1 or 0; the others are in the middle of the box.
    assert contract(far, AABB).tolist() == [[1, 0.5, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 1], [0.5, 0.5, 0]]
    assert grid.cell_of(far).tolist() == [5, 4, 7, 1]


def test_bounds_of_the_cells_tile_the_unit_cube() -> None:
    grid = BlockGrid(AABB, (2, 1, 4))
    bounds = torch.stack([grid.cell_bounds(block) for block in range(grid.n)])
    assert float((bounds[:, 3:] - bounds[:, :3]).prod(dim=1).sum()) == 1.0
    assert bounds[0].tolist() == [0, 0, 0, 0.5, 1, 0.25] and bounds[7].tolist() == [0.5, 0, 0.75, 1, 1, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_point_that_is_not_finite_is_refused(value: float) -> None:
    points = torch.zeros(5, 3)
    points[2, 1] = value
    with pytest.raises(UserError, match="1 of 5 points are NaN or infinite"):
        BlockGrid(AABB, (2, 1, 4)).cell_of(points)


def test_no_points_are_in_no_cell() -> None:
    assert BlockGrid(AABB, (2, 1, 4)).cell_of(torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize("block", [-1, 8])
def test_an_id_outside_the_grid_is_refused(block: int) -> None:
    grid = BlockGrid(AABB, (2, 1, 4))
    for ask in (grid.cell, grid.cell_bounds, lambda b: grid.members(torch.zeros(1, 3), b)):
        with pytest.raises(ValueError, match=rf"block is {block}, expected 0\.\.7"):
            ask(block)


@pytest.mark.parametrize(
    ("aabb", "dim", "message"),
    [
        ((0, 0, 0, 1, 1), (1, 1, 1), "aabb"),
        ((0, 0, 0, 1, 0, 1), (1, 1, 1), "aabb"),
        ((0, 0, float("nan"), 1, 1, 1), (1, 1, 1), "aabb"),
        ((0, 0, 0, 1, 1, 1), (1, 0, 1), "dim"),
        ((0, 0, 0, 1, 1, 1), (1, 1), "dim"),
    ],
)
def test_an_impossible_grid_is_refused(aabb: tuple, dim: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=f"BlockGrid: {message} is"):
        BlockGrid(aabb, dim)
