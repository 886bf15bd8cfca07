"""Blocks with too few views or points are joined to a neighbour."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_files import camera

from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.partition.join import block_place, join_starved

AABB = (-1.0, -2.0, -3.0, 1.0, 2.0, 3.0)
NAMES = [f"{i}.jpg" for i in range(6)]
CAMERAS = [camera(name) for name in NAMES]


def table(dim: tuple[int, int, int], views: list[list[str]]) -> PartitionTable:
    return PartitionTable(AABB, dim, torch.eye(3, dtype=torch.float64), views)


def test_blocks_that_have_enough_stay() -> None:
    made = table((2, 1, 1), [NAMES[:3], NAMES[2:]])
    assert join_starved(made, CAMERAS, [10, 10], 3, 10) == (made, [])
    assert join_starved(table((2, 1, 1), [[], []]), CAMERAS, [0, 0], 0, 0)[1] == []  # not asked for


def test_a_starved_block_joins_the_neighbour_that_shares_its_views() -> None:
    """Of three in a row the middle one has one view, which the right one has too; the left one has fewer points."""
    made, lines = join_starved(table((3, 1, 1), [NAMES[:3], NAMES[5:], NAMES[2:]]), CAMERAS, [20, 30, 40], 2, 10)
    assert (made.joined, made.views) == ((0, 1, 1), [NAMES[:3], NAMES[2:]])
    assert lines == [
        "x 2/3, y 1/1, z 1/1: 1 training view(s) and 30 sparse point(s), expected at least 2 and 10; joined to block 1"
    ]
    assert [block_place(made, block) for block in range(2)] == ["x 1/3, y 1/1, z 1/1", "x 2/3, y 1/1, z 1/1 + 1"]


def test_between_equal_neighbours_it_joins_the_smaller() -> None:
    made, _ = join_starved(table((3, 1, 1), [NAMES[:3], [], NAMES[3:]]), CAMERAS, [20, 0, 15], 2, 10)
    assert made.joined == (0, 1, 1)


def test_empty_blocks_do_not_join_each_other() -> None:
    """In a grid of 2 x 2 the second row is empty: each of its cells joins the one beside it in the first row."""
    made, _ = join_starved(table((2, 2, 1), [NAMES[:3], NAMES[3:], [], []]), CAMERAS, [20, 30, 0, 0], 2, 10)
    assert made.joined == (0, 1, 0, 1)


def test_too_few_points_starve_a_block_too() -> None:
    made, lines = join_starved(table((2, 1, 1), [NAMES, NAMES]), CAMERAS, [100, 9], 2, 10)
    assert (made.n, made.views, len(lines)) == (1, [NAMES], 1)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.tuples(*[st.integers(1, 3)] * 3), st.integers(0, 4), st.integers(0, 20))
def test_facts_about_any_result(data: st.DataObject, dim: tuple[int, int, int], views: int, points: int) -> None:
    n = dim[0] * dim[1] * dim[2]
    chosen = data.draw(st.lists(st.sets(st.sampled_from(NAMES)), min_size=n, max_size=n))
    counts = data.draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
    before = table(dim, [[name for name in NAMES if name in names] for names in chosen])
    after, lines = join_starved(before, CAMERAS, counts, views, points)
    assert after.n == n - len(lines)
    for block in range(after.n):
        cells = after.cells(block)
        # A block has the views of its cells in the order of cameras, and enough views and points unless it is the only
        # one.
        assert after.views[block] == [name for name in NAMES if any(name in chosen[cell] for cell in cells)]
        assert after.n == 1 or (len(after.views[block]) >= views and sum(counts[cell] for cell in cells) >= points)
        # It is connected: all of its cells can be reached from the first without leaving it.
        reached = {cells[0]}
        for _ in cells:
            reached |= {near for cell in reached for near in after.grid.beside(cell) if near in cells}
        assert reached == set(cells)
    if not lines:
        assert after is before
