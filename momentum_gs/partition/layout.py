"""Where to cut: the grid's frame, its core box and its number of cells, from cameras and points.

The *grid frame* is the world turned so that z is up and x runs along the longer side of the ground that the cameras
cover: ``grid = rotation @ world``. Nothing but distances and principal axes decides on it, so a turned scene gets the
same blocks, turned with it.

The grid lies in contracted space, where the core box fills [0.25, 0.75] of every axis. What each cut shares out equally
is ``partition.balance``: the ground, the cameras or the points. The original's grid is uniform in contracted space
(``contracted``): 2 cells of an axis meet in the middle of the box, and of 4 cells the outer two hold only what lies
outside it. For that one the box is chosen for the cells that it makes, not as the bounds of the scene.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.config.schema import PartitionConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import contract
from momentum_gs.core.types import Camera
from momentum_gs.data.blocks import BlockGrid, Cuts
from momentum_gs.data.partition_table import PartitionTable

Dim = tuple[int, int, int]
Box = tuple[float, float, float, float, float, float]

MAX_POINTS = 8_000
"""Sample that the layout looks at: a cell's share is known to within 1 %, whatever the size of the scene."""
MAX_CAMERAS = 500
"""The same for distances to cameras."""
MIN_POINTS = 10
"""Fewer say nothing about a plane or a balance."""
SNAP_DEGREES = 5.0
"""An axis this close to one of the world's is meant to be it: the fit errs by about a degree, and upright scenes are
easier to read than almost upright ones."""
SPAN = 0.005
"""Share of points cut off at either end of an axis: stray SfM points."""
GAP = 1e-6
"""Places closer than this, in contracted space, are one place: a cut between them would fall to round-off."""
THIN = 1e-3
"""A flat scene has no height of its own; this share of its width keeps the contraction defined."""


@dataclass(frozen=True)
class Layout:
    """How a scene is cut."""

    aabb: Box
    """Core box in the grid's frame, training units: xmin, ymin, zmin, xmax, ymax, zmax."""
    dim: Dim
    """Cells along x, y, z of the grid's frame."""
    rotation: Float[Tensor, "3 3"]
    """World to grid frame, float64."""
    cuts: Cuts | None = None
    """Where the axes are cut in contracted space; None: into equal cells there."""

    def table(self) -> PartitionTable:
        """The partition so far: cells without views."""
        dx, dy, dz = self.dim
        return PartitionTable(self.aabb, self.dim, self.rotation, [[] for _ in range(dx * dy * dz)], cuts=self.cuts)


def automatic_layout(cameras: Sequence[Camera], points: Float[Tensor, "n 3"], config: PartitionConfig) -> Layout:
    """The layout that the settings ask for, with what they leave open found from the scene.

    Args:
        cameras: At least one.
        points: Sparse points in the world, float64.
        config: ``aabb`` (with it the frame is the world's), ``dim``, ``blocks`` (a number) where there is no ``dim``,
            and ``balance``.

    Raises:
        UserError: where the points are too few, or all in one place, to say anything, or what is to be shared out lies
            in fewer places than there are cells.
    """
    balance = config.balance_used
    if config.aabb is not None and config.dim is not None and balance == "contracted":
        return Layout(config.aabb, config.dim, torch.eye(3, dtype=torch.float64))
    near = points_near(cameras, points)
    centers = torch.stack([camera.center for camera in cameras])
    up = up_axis(cameras, near)
    if config.aabb is not None:
        rotation, aabb = torch.eye(3, dtype=torch.float64), config.aabb
        dim = config.dim or _dim_over(aabb, up, _count(config))
    else:
        rotation = ground_frame(cameras, up)
        near, centers = near @ rotation.T, centers @ rotation.T
        low, high = _span(near)
        dim = config.dim or (*fit_dim(_count(config), float(high[0] - low[0]), float(high[1] - low[1])), 1)
        aabb = balanced_box(near, centers, dim) if balance == "contracted" else _box(*spanning_box(near, centers))
    if balance == "contracted":
        return Layout(aabb, dim, rotation)
    if balance == "area":
        shares = [tuple(0.25 + 0.5 * i / count for i in range(1, count)) for count in dim]
    else:
        unit = contract(centers if balance == "cameras" else near, aabb)
        shares = [even_cuts(unit[:, axis], count, f"{balance} along {'xyz'[axis]}") for axis, count in enumerate(dim)]
    return Layout(aabb, dim, rotation, (shares[0], shares[1], shares[2]))


def _count(config: PartitionConfig) -> int:
    if config.blocks == "auto":
        raise ValueError("automatic_layout: partition.blocks is auto, expected the number that it comes to")
    return config.blocks


def _dim_over(aabb: Box, up: Float[Tensor, "3"], blocks: int) -> Dim:
    """Cells along the axes of the world, one layer high."""
    x, y = (axis for axis in range(3) if axis != int(up.abs().argmax()))
    dim = [1, 1, 1]
    dim[x], dim[y] = fit_dim(blocks, aabb[x + 3] - aabb[x], aabb[y + 3] - aabb[y])
    return dim[0], dim[1], dim[2]


def even_cuts(places: Float[Tensor, "n"], cells: int, what: str) -> tuple[float, ...]:
    """Cuts between the places with as equal numbers of them in the cells as the gaps allow.

    Args:
        places: Contracted coordinates.
        cells: At least 1.
        what: The places and their axis, for the error.

    Raises:
        UserError: where there are fewer different places than cells.
    """
    ordered = places.sort().values
    gaps = (ordered.diff() > GAP).nonzero()[:, 0]
    if len(gaps) < cells - 1:
        raise UserError(
            f"partition: the {what} are in {len(gaps) + 1} place(s), expected at least {cells} to cut between; set "
            "partition.balance=area, or another partition.dim"
        )
    middles = (ordered[gaps] + ordered[gaps + 1]) / 2
    # Of two gaps as far from the wanted share the one closer to the middle of the box, whichever way the axis points.
    tie = (middles - 0.5).abs() / cells
    cuts: list[float] = []
    first = 0
    for i in range(1, cells):
        last = len(gaps) - (cells - 1 - i)  # leaves a gap to every cut that is still to come
        off = (gaps[first:last] + 1 - len(ordered) * i / cells).abs() + tie[first:last]
        first += int(off.argmin()) + 1
        cuts.append(float(middles[first - 1]))
    return tuple(cuts)


def fit_dim(blocks: int, width: float, depth: float) -> tuple[int, int]:
    """Numbers of cells along the two sides whose product is ``blocks`` and whose cells come closest to squares."""

    def stretch(cells: int) -> float:
        a, b = width / cells, depth / (blocks // cells)
        return max(a, b) / max(min(a, b), 1e-12)  # a line of points has no depth

    across = min((cells for cells in range(1, blocks + 1) if blocks % cells == 0), key=stretch)
    return across, blocks // across


def up_axis(cameras: Sequence[Camera], near: Float[Tensor, "n 3"], snap: bool = True) -> Float[Tensor, "3"]:
    """Unit vector of the world that points up: normal of the plane that the points lie along.

    The fit is repeated on the points that the last plane explains, so that towers and trees do not tilt it. Which way
    is up, the cameras tell: they are held upright and look at the horizon or below it. With ``snap`` an axis of the
    world within SNAP_DEGREES is returned in its place.
    """
    kept = near
    for _ in range(5):  # settles after two or three
        center = kept.mean(dim=0)
        axes = torch.linalg.eigh((kept - center).T @ (kept - center)).eigenvectors
        residual = ((near - center) @ axes[:, 0]).abs()
        kept = near[residual <= 3 * residual.median()]  # a median holds half of the points, so never empty
    held = -torch.stack([camera.rotation[1] + camera.rotation[2] for camera in cameras]).mean(dim=0)
    held = held / held.norm().clamp_min(1e-12)
    agreement = axes.T @ held
    # Between facades the plane fit may find the street's side. 0.5: further than 60 degrees from what the cameras say.
    best = 0 if agreement[0].abs() >= 0.5 else int(agreement.abs().argmax())
    up = axes[:, best] * (1.0 if agreement[best] >= 0 else -1.0)
    return _snapped(up) if snap else up


def ground_frame(cameras: Sequence[Camera], up: Float[Tensor, "3"]) -> Float[Tensor, "3 3"]:
    """World to grid frame: z is ``up``, x the longer side of the smallest rectangle around the cameras.

    The rectangle leaves out 2 % of the cameras on every side, and is sought in steps of one degree from the cameras'
    principal axis, which alone says nothing where they fill a square.
    """
    helper = torch.eye(3, dtype=up.dtype)[int(up.abs().argmin())]
    first = torch.linalg.cross(up, helper)
    plane = torch.stack([first / first.norm(), torch.linalg.cross(up, first / first.norm())])
    centers = torch.stack([camera.center for camera in cameras])
    ground = (centers - centers.mean(dim=0)) @ plane.T
    principal = torch.linalg.eigh(ground.T @ ground).eigenvectors[:, 1]
    angles = torch.atan2(principal[1], principal[0]) + torch.deg2rad(torch.arange(90, dtype=up.dtype))
    along = torch.stack([angles.cos(), angles.sin()], dim=1)
    across = torch.stack([-angles.sin(), angles.cos()], dim=1)
    low, high = torch.quantile(ground @ torch.cat([along, across]).T, torch.tensor([0.02, 0.98], dtype=up.dtype), dim=0)
    sides = (high - low).reshape(2, -1)
    best = int(sides.prod(dim=0).argmin())
    x = (along if sides[0, best] >= sides[1, best] else across)[best] @ plane
    x = x * x[x.abs().argmax()].sign()  # of the two ways along a line, the one closer to the world's
    # Only where it stays on the ground: beside a tilted up axis a snapped x would tilt too.
    snapped = _snapped(x)
    x = snapped if snapped @ up == 0 else x
    return torch.stack([x, torch.linalg.cross(up, x), up])


def balanced_box(near: Float[Tensor, "n 3"], centers: Float[Tensor, "m 3"], dim: Dim) -> Box:
    """Core box whose largest cell holds as few of the points as possible.

    Axes that are not cut are those of ``spanning_box``. A search of each cut axis in turn, over places of its middle
    and widths, by the cells that really come out. Between equals the wider box wins: what lies inside is not distorted.

    Args:
        near: Points in the grid's frame.
        centers: Of the cameras, likewise.
        dim: Cells of each axis.
    """
    low, high = spanning_box(near, centers)
    thin = THIN * (high - low).max()
    center, half = (low + high) / 2, (high - low) / 2
    for _ in range(2):  # the second turn sees the other axes' final boxes
        for axis in (axis for axis in range(3) if dim[axis] > 1):
            middles, widths = _candidates(near[:, axis], dim[axis], thin)
            centers_tried, halves_tried = center.repeat(len(middles), 1), half.repeat(len(middles), 1)
            centers_tried[:, axis], halves_tried[:, axis] = middles, widths
            share = _largest_share(near, centers_tried, halves_tried, dim)
            # Shares that differ by less than a thousandth differ by the noise of the sample.
            equal = (share <= share.min() + 1e-3).nonzero()[:, 0]
            best = equal[widths[equal].argmax()]
            center, half = centers_tried[best], halves_tried[best]
    return _box(center - half, center + half)


def spanning_box(
    near: Float[Tensor, "n 3"], centers: Float[Tensor, "m 3"]
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Low and high corner of the box around the points, strays left out, and the cameras.

    The cameras, since outside of the box the contraction squeezes the other axes too: one high above it would stand in
    a cell of the middle wherever it flies.
    """
    low, high = _span(near)
    low, high = torch.minimum(low, centers.amin(dim=0)), torch.maximum(high, centers.amax(dim=0))
    if not bool((near.amax(dim=0) > near.amin(dim=0)).any()):
        raise UserError(f"partition: all {len(near)} points near the cameras are in one place; check sparse/0")
    center, half = (low + high) / 2, ((high - low) / 2).clamp_min(THIN * (high - low).max())
    return center - half, center + half


def _box(low: Float[Tensor, "3"], high: Float[Tensor, "3"]) -> Box:
    x0, y0, z0 = low.tolist()
    x1, y1, z1 = high.tolist()
    return x0, y0, z0, x1, y1, z1


def _candidates(
    values: Float[Tensor, "n"], cells: int, thin: Float[Tensor, ""]
) -> tuple[Float[Tensor, "c"], Float[Tensor, "c"]]:
    """Middles and half widths to try on one axis, the median first among the middles."""
    # Quantiles 0.3 to 0.7; half as fine where every one is tried with every width.
    shifts = [0.0, *(sign * step / 50 for step in range(1, 11, 1 if cells == 2 else 2) for sign in (1, -1))]
    middles = torch.quantile(values, 0.5 + torch.tensor(shifts, dtype=values.dtype))
    low, high = _span(values)
    if cells == 2:  # the only cut is in the middle
        return middles, torch.maximum(middles - low, high - middles).clamp_min(thin)
    shares = torch.linspace(0.05, 0.5 - SPAN, 10, dtype=values.dtype)
    halves = (torch.quantile(values, 0.5 + shares) - torch.quantile(values, 0.5 - shares)) / 2
    return middles.repeat_interleave(len(halves)), halves.clamp_min(thin).repeat(len(middles))


def _largest_share(
    near: Float[Tensor, "n 3"], center: Float[Tensor, "c 3"], half: Float[Tensor, "c 3"], dim: Dim
) -> Float[Tensor, "c"]:
    """Share of the points in the fullest cell, for each of c boxes, all at once."""
    grid = BlockGrid((-1, -1, -1, 1, 1, 1), dim)  # a box is this one for points measured in its half edges
    measured = (near - center[:, None]) / half[:, None]
    cells = grid.cell_of(measured.reshape(-1, 3)).reshape(len(center), -1)
    cells += grid.n * torch.arange(len(center))[:, None]
    counts = torch.bincount(cells.flatten(), minlength=grid.n * len(center)).reshape(-1, grid.n)
    return counts.amax(dim=1).double() / len(near)


def _span(points: Float[Tensor, "n *axes"]) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """Lowest and highest place of the points, strays left out."""
    low, high = torch.quantile(points, torch.tensor([SPAN, 1 - SPAN], dtype=points.dtype), dim=0)
    return low, high


def points_near(cameras: Sequence[Camera], points: Float[Tensor, "n 3"]) -> Float[Tensor, "m 3"]:
    """A sample of the points that the cameras were flown for: no further from one than twice the median distance."""
    if len(points) < MIN_POINTS:
        raise UserError(
            f"partition: the scene has {len(points)} sparse points, expected at least {MIN_POINTS} to find the ground; "
            "give partition.aabb and partition.dim, or triangulate the points again"
        )
    sample = points[:: -(-len(points) // MAX_POINTS)].double()
    centers = torch.stack([camera.center for camera in cameras[:: -(-len(cameras) // MAX_CAMERAS)]])
    distance = torch.cdist(sample, centers, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
    return sample[distance <= 2 * distance.median()]


def _snapped(axis: Float[Tensor, "3"]) -> Float[Tensor, "3"]:
    """The axis of the world within SNAP_DEGREES, or the axis itself."""
    largest = int(axis.abs().argmax())
    if axis[largest].abs() < torch.cos(torch.deg2rad(torch.tensor(SNAP_DEGREES))):
        return axis / axis.norm()
    return torch.eye(3, dtype=axis.dtype)[largest] * axis[largest].sign()
