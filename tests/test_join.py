"""Blocks with too little are joined to a neighbour."""

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


def test_starved_block_goes_where_its_views_are() -> None:
    """Of three in a row the middle one has one view, which the right one shares; the left one has fewer points."""
    made, lines = join_starved(table((3, 1, 1), [NAMES[:3], NAMES[5:], NAMES[2:]]), CAMERAS, [20, 30, 40], 2, 10)
    assert (made.joined, made.views) == ((0, 1, 1), [NAMES[:3], NAMES[2:]])
    assert lines == [
        "x 2/3, y 1/1, z 1/1: 1 training view(s) and 30 sparse point(s), expected at least 2 and 10; joined to block 1"
    ]
    assert [block_place(made, block) for block in range(2)] == ["x 1/3, y 1/1, z 1/1", "x 2/3, y 1/1, z 1/1 + 1"]


def test_between_equals_the_smaller_neighbour_takes_it() -> None:
    made, _ = join_starved(table((3, 1, 1), [NAMES[:3], [], NAMES[3:]]), CAMERAS, [20, 0, 15], 2, 10)
    assert made.joined == (0, 1, 1)


def test_empty_blocks_do_not_join_each_other() -> None:
    """The far row of a grid of 2 x 2: each cell goes to the one before it."""
    made, _ = join_starved(table((2, 2, 1), [NAMES[:3], NAMES[3:], [], []]), CAMERAS, [20, 30, 0, 0], 2, 10)
    assert made.joined == (0, 1, 0, 1)


def test_too_few_points_starve_a_block_too() -> None:
    made, lines = join_starved(table((2, 1, 1), [NAMES, NAMES]), CAMERAS, [100, 9], 2, 10)
    assert (made.n, made.views, len(lines)) == (1, [NAMES], 1)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.tuples(*[st.integers(1, 3)] * 3), st.integers(0, 4), st.integers(0, 20))
def test_what_every_joining_keeps(data: st.DataObject, dim: tuple[int, int, int], views: int, points: int) -> None:
    n = dim[0] * dim[1] * dim[2]
    chosen = data.draw(st.lists(st.sets(st.sampled_from(NAMES)), min_size=n, max_size=n))
    counts = data.draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
    before = table(dim, [[name for name in NAMES if name in names] for names in chosen])
    after, lines = join_starved(before, CAMERAS, counts, views, points)
    assert after.n == n - len(lines)
    for block in range(after.n):
        cells = after.cells(block)
        # A block has the views of its cells in the cameras' order, and enough of all; one that is left alone may not.
        assert after.views[block] == [name for name in NAMES if any(name in chosen[cell] for cell in cells)]
        assert after.n == 1 or (len(after.views[block]) >= views and sum(counts[cell] for cell in cells) >= points)
        # In one piece: all of its cells can be reached from the first without leaving it.
        reached = {cells[0]}
        for _ in cells:
            reached |= {near for cell in reached for near in after.grid.beside(cell) if near in cells}
        assert reached == set(cells)
    if not lines:
        assert after is before
