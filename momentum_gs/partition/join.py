"""Joins blocks with too few views or points to a neighbour: trained alone, they would reconstruct nothing."""

from collections.abc import Sequence
from dataclasses import replace

from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable


def join_starved(
    table: PartitionTable, cameras: Sequence[Camera], points: Sequence[int], min_views: int, min_points: int
) -> tuple[PartitionTable, list[str]]:
    """Joins starved blocks until every block has enough views and points, or only one block is left.

    The block with the fewest views (then points) is joined first, to the adjacent block that shares most of its views.
    Ties go to a block whose adjacent cells had enough from the start, so that empty cells are not chained together,
    then to the one with the fewest points, which keeps sizes even.

    Args:
        table: The partition, with its views; no cells are joined yet.
        cameras: Training views, in the order in which the table lists them.
        points: Number of sparse points in every cell.
        min_views: Training views that a block needs.
        min_points: Sparse points that a block needs.

    Returns:
        The new partition, and a message for each block that was joined to another.
    """
    grid = table.grid
    cells = {block: [block] for block in range(grid.n)}
    views = {block: set(names) for block, names in enumerate(table.views)}
    count = dict(enumerate(points))

    def starved() -> list[int]:
        return [b for b in cells if len(views[b]) < min_views or count[b] < min_points]

    poor = set(starved())
    gone: list[tuple[list[int], str, int]] = []
    while len(cells) > 1 and (weak := starved()):
        block = min(weak, key=lambda b: (len(views[b]), count[b]))
        beside = {cell for own in cells[block] for cell in grid.beside(own)}
        touching = {b: beside & set(cells[b]) for b in cells if b != block and beside & set(cells[b])}
        shared = {b: len(views[b] & views[block]) for b in touching}
        host = min(touching, key=lambda b: (-shared[b], touching[b] <= poor, count[b]))
        found = f"{len(views[block])} training view(s) and {count[block]} sparse point(s)"
        gone.append((cells[block], found, host))
        views[host] |= views.pop(block)
        count[host] += count.pop(block)
        cells[host] += cells.pop(block)
    if not gone:
        return table, []
    groups = sorted(cells.values(), key=min)
    joined = {cell: block for block, group in enumerate(groups) for cell in group}
    table = replace(
        table,
        views=[[c.name for c in cameras if c.name in views[b]] for b in sorted(cells, key=lambda b: min(cells[b]))],
        joined=tuple(joined[cell] for cell in range(grid.n)),
    )
    needed = f"expected at least {min_views} and {min_points}"
    return table, [
        f"{' + '.join(cell_place(table, cell) for cell in group)}: {found}, {needed}; joined to block {joined[host]}"
        for group, found, host in gone
    ]


def cell_place(table: PartitionTable, cell: int) -> str:
    """Place of a cell in the grid, for messages: 'x 1/2, y 1/2, z 1/1'."""
    places = zip("xyz", table.grid.cell(cell), table.dim, strict=True)
    return ", ".join(f"{axis} {place + 1}/{count}" for axis, place, count in places)


def block_place(table: PartitionTable, block: int) -> str:
    """Place of a block's first cell, with ' + M' if M more cells are joined to it."""
    first, *more = table.cells(block)
    return cell_place(table, first) + (f" + {len(more)}" if more else "")
