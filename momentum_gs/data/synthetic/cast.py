"""Ray casting into the procedural city: a walk over a uniform grid of cells, all rays side by side.

Invariant of the walk: when a ray leaves a cell, everything it could hit before the cell's far side has been tested, so
a ray stops as soon as its nearest hit lies before the next cell.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.data.synthetic.city import City

GROUND = -1
SKY = -2

_CELL = 7.0
"""Edge of a grid cell, metres: an eighth of a city block, for which steps and tests cost about the same."""
_TINY = 1e-9
"""Stands for a direction component of 0, so that no division needs a special case."""
_INF = float("inf")

_Test = Callable[[Tensor, Tensor], Tensor]
"""Where rays [6,m] (origin, direction) enter solids [c,m], coordinates as rows -> [m], infinite if nowhere."""


@dataclass(frozen=True)
class Hits:
    """What rays meet first."""

    distance: Float[Tensor, "n"]
    """In lengths of the direction vector; infinite for the sky."""
    solid: Int[Tensor, "n"]
    """Number of the solid in the city, GROUND or SKY."""


@dataclass(frozen=True)
class _Bin:
    """The solids of one shape, listed by the cells they stand in."""

    test: _Test
    table: Float[Tensor, "c s"]
    first_number: int
    start: Int[Tensor, "cells"]
    count: Int[Tensor, "cells"]
    rows: Int[Tensor, "entries"]
    most: int


class Caster:
    """Finds the first surface along rays."""

    def __init__(self, city: City) -> None:
        boxes, roofs, trees = city.boxes, city.roofs, city.trees
        crown = torch.cat([trees[:, :2] - trees[:, 3:4], trees[:, :2] + trees[:, 3:4]], dim=1)
        bounds = torch.cat([boxes[:, :4], roofs[:, :4], crown])
        tops = torch.cat([boxes[:, 4], roofs[:, [5, 7]].amin(1), trees[:, 2] + trees[:, 4]])
        # A centimetre of slack keeps solids that touch a cell's edge in both cells.
        self._low = bounds[:, :2].amin(0) - 0.01
        self._shape = ((bounds[:, 2:].amax(0) + 0.01 - self._low) / _CELL).ceil().long().tolist()
        self._tallest = float(tops.max())
        self._top = torch.zeros(self._shape[0] * self._shape[1])
        self._bins: list[_Bin] = []
        first = 0
        for test, table in ((_enter_box, boxes), (_enter_roof, roofs), (_enter_crown, trees)):
            members = slice(first, first + len(table))
            self._bins.append(self._bin(test, table, first, bounds[members], tops[members]))
            first += len(table)

    def cast(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> Hits:
        """First hit of every ray with a solid or the ground.

        Args:
            origins: float32, outside of every solid.
            directions: float32, of any positive length.
        """
        ox, oy, oz, dx, dy, dz = torch.cat([origins, torch.where(directions.abs() < _TINY, _TINY, directions)], dim=1).T
        best = torch.where(dz < 0, -oz / dz, _INF)
        solid = torch.where(dz < 0, GROUND, SKY)

        enter, leave = self._clip(ox, oy, oz, dx, dy, dz)
        leave = torch.minimum(leave, best)
        alive = (enter < leave).nonzero().squeeze(1)
        near, number = self._walk(torch.stack([ox, oy, oz, dx, dy, dz, enter, leave])[:, alive])
        closer = near < best[alive]
        best[alive[closer]] = near[closer]
        solid[alive[closer]] = number[closer]
        return Hits(best, solid)

    def _walk(self, start: Float[Tensor, "8 m"]) -> tuple[Float[Tensor, "m"], Int[Tensor, "m"]]:
        """Distance and number of the first solid on each ray, infinite if there is none.

        Args:
            start: Origin, direction, and where the ray enters and leaves the grid.
        """
        rays, t, leave = start[:6], start[6], start[7]
        near = torch.full_like(t, _INF)
        number = torch.full((len(t),), GROUND)
        cell_x, next_x, step_x, stride_x = self._axis(0, rays[0], rays[3], t)
        cell_y, next_y, step_y, stride_y = self._axis(1, rays[1], rays[4], t)
        ids = torch.arange(len(t))
        while len(ids):
            out = torch.minimum(next_x, next_y)
            up = rays[5]
            lowest = rays[2] + up * torch.where(up < 0, torch.minimum(out, leave), t)
            cell = cell_x * self._shape[1] + cell_y
            wanted = (lowest < self._top[cell]).nonzero().squeeze(1)
            self._visit(cell[wanted], ids[wanted], rays[:, wanted], near, number)
            go_x = next_x <= next_y
            cell_x, cell_y = cell_x + step_x * go_x, cell_y + step_y * ~go_x
            next_x, next_y = next_x + stride_x * go_x, next_y + stride_y * ~go_x
            t = out
            # Round-off may put ``leave`` a hair beyond the last cell.
            inside = (cell_x >= 0) & (cell_x < self._shape[0]) & (cell_y >= 0) & (cell_y < self._shape[1])
            keep = ((t < torch.minimum(near[ids], leave)) & inside).nonzero().squeeze(1)
            rays = rays[:, keep]
            t, leave, next_x, next_y, stride_x, stride_y = (
                c[keep] for c in (t, leave, next_x, next_y, stride_x, stride_y)
            )
            ids, cell_x, cell_y, step_x, step_y = (c[keep] for c in (ids, cell_x, cell_y, step_x, step_y))
        return near, number

    def _visit(
        self, cell: Int[Tensor, "m"], ids: Int[Tensor, "m"], rays: Float[Tensor, "6 m"], near: Tensor, number: Tensor
    ) -> None:
        """Test the solids of each ray's cell; ``near`` and ``number`` are updated at ``ids``."""
        for shape in self._bins:
            count = shape.count[cell]
            who = torch.arange(len(cell))
            for entry in range(shape.most):
                who = who[count[who] > entry]
                if len(who) == 0:
                    break
                rows = shape.rows[shape.start[cell[who]] + entry]
                # Solids enter as columns, beside the rays.
                t = shape.test(shape.table[:, rows], rays[:, who])
                ray = ids[who]
                closer = (t < near[ray]).nonzero().squeeze(1)
                ray = ray[closer]
                near[ray] = t[closer]
                number[ray] = rows[closer] + shape.first_number

    def _clip(self, ox: Tensor, oy: Tensor, oz: Tensor, dx: Tensor, dy: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
        """Part of each ray inside the grid, below the highest top."""
        enter, leave = torch.zeros_like(ox), torch.full_like(ox, _INF)
        for axis, o, d in ((0, ox, dx), (1, oy, dy)):
            low = float(self._low[axis])
            a, b = (low - o) / d, (low + self._shape[axis] * _CELL - o) / d
            enter, leave = torch.maximum(enter, torch.minimum(a, b)), torch.minimum(leave, torch.maximum(a, b))
        a = (self._tallest - oz) / dz
        enter = torch.where(dz < 0, torch.maximum(enter, a), enter)
        leave = torch.where(dz > 0, torch.minimum(leave, a), leave)
        return enter, leave

    def _axis(self, axis: int, o: Tensor, d: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """First cell along an axis, distance at which the ray leaves it, step of the cell, distance between steps."""
        low = float(self._low[axis])
        cell = ((o + t * d - low) / _CELL).floor().long().clamp(0, self._shape[axis] - 1)
        up = d > 0
        return cell, ((cell + up.long()) * _CELL + low - o) / d, torch.where(up, 1, -1), _CELL / d.abs()

    def _bin(self, test: _Test, table: Tensor, first: int, bounds: Tensor, tops: Tensor) -> _Bin:
        low = ((bounds[:, :2] - 0.01 - self._low) / _CELL).long().clamp_min(0)
        high = ((bounds[:, 2:] + 0.01 - self._low) / _CELL).long()
        high = torch.minimum(high, torch.tensor(self._shape) - 1)
        span = high - low + 1
        copies = span.prod(1)
        rows = torch.arange(len(table)).repeat_interleave(copies)
        within = torch.arange(len(rows)) - (copies.cumsum(0) - copies)[rows]
        cells = (low[rows, 0] + within // span[rows, 1]) * self._shape[1] + low[rows, 1] + within % span[rows, 1]
        self._top.scatter_reduce_(0, cells, tops[rows], "amax")
        count = torch.bincount(cells, minlength=len(self._top))
        order = cells.argsort(stable=True)
        return _Bin(test, table.T.contiguous(), first, count.cumsum(0) - count, count, rows[order], int(count.max()))


def _slab(low: Tensor, high: Tensor, o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    a, b = (low - o) / d, (high - o) / d
    return torch.minimum(a, b), torch.maximum(a, b)


def _below(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Interval of t where o + t d <= 0. A ray parallel to the plane (d = 0) gives an infinity of the right sign."""
    t = -o / torch.where(d == 0, _TINY, d)
    return torch.where(d < 0, t, -_INF), torch.where(d < 0, _INF, t)


def _first(enter: Tensor, leave: Tensor) -> Tensor:
    """Where a ray that starts outside enters, infinite if it never does."""
    return torch.where((enter < leave) & (enter > 0), enter, _INF)


def _enter_box(table: Tensor, rays: Tensor) -> Tensor:
    x0, y0, x1, y1, top = table
    ox, oy, oz, dx, dy, dz = rays
    ax, bx = _slab(x0, x1, ox, dx)
    ay, by = _slab(y0, y1, oy, dy)
    az, bz = _below(oz - top, dz)
    return _first(torch.maximum(torch.maximum(ax, ay), az), torch.minimum(torch.minimum(bx, by), bz))


def _enter_roof(table: Tensor, rays: Tensor) -> Tensor:
    x0, y0, x1, y1, slope_x, height_x, slope_y, height_y = table
    ox, oy, oz, dx, dy, dz = rays
    enter, leave = _slab(x0, x1, ox, dx)
    planes = [_slab(y0, y1, oy, dy)]
    mx, my = ox - (x0 + x1) / 2, oy - (y0 + y1) / 2
    for slope, height, o, d in ((slope_x, height_x, mx, dx), (slope_y, height_y, my, dy)):
        planes += [_below(oz - height + slope * o, dz + slope * d), _below(oz - height - slope * o, dz - slope * d)]
    for a, b in planes:
        enter, leave = torch.maximum(enter, a), torch.minimum(leave, b)
    return _first(enter, leave)


def _enter_crown(table: Tensor, rays: Tensor) -> Tensor:
    x, y, z, radius, half = table
    ox, oy, oz, dx, dy, dz = rays
    ux, uy, uz = dx / radius, dy / radius, dz / half
    vx, vy, vz = (ox - x) / radius, (oy - y) / radius, (oz - z) / half
    a = ux * ux + uy * uy + uz * uz
    b = ux * vx + uy * vy + uz * vz
    # Perpendicular distance to the centre instead of b^2 - a c: c is huge where the camera is far, and would cancel.
    nearest = -b / a
    px, py, pz = vx + nearest * ux, vy + nearest * uy, vz + nearest * uz
    chord = (1 - (px * px + py * py + pz * pz)).clamp_min(0)
    reach = (chord / a).sqrt()
    return _first(nearest - reach, nearest + reach)
