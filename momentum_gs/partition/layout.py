"""The layout of the grid: its frame, core box, number of cells and cuts, from cameras and points.

The *grid frame* is the world rotated so that z is up and x runs along the longer side of the ground that the cameras
cover: ``grid = rotation @ world``. It depends only on distances and principal axes, so a rotated scene gets the same
blocks, rotated with it.

The grid lies in contracted space, where the core box fills [0.25, 0.75] of every axis. ``partition.balance`` decides
what the cells of an axis get equal shares of: the ground, the cameras or the points. With ``contracted``, as in the
original, the grid is uniform in contracted space: 2 cells of an axis meet in the middle of the box, and of 4 cells the
outer two hold only what lies outside the box. In this case the box is chosen so that the cells hold similar numbers of
points, not as the bounds of the scene.
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
"""Size of the sample of points, which gives a cell's share to within 1 %, whatever the size of the scene."""
MAX_CAMERAS = 500
"""Size of the sample of cameras for distances between points and cameras."""
MIN_POINTS = 10
"""Fewer points determine neither the ground plane nor balanced cells."""
SNAP_DEGREES = 5.0
"""A fitted axis this close to an axis of the world is replaced by it: the fit errs by about a degree, and coordinates
along the world's axes are easier to read."""
SPAN = 0.005
"""Share of points ignored at either end of an axis: outliers of structure from motion."""
GAP = 1e-6
"""Positions closer than this, in contracted space, count as equal: rounding errors would decide on a cut between
them."""
THIN = 1e-3
"""Smallest half side of the core box, as a share of its largest side: keeps the contraction defined for flat scenes."""


@dataclass(frozen=True)
class Layout:
    """The grid that cuts a scene into cells."""

    aabb: Box
    """Core box in the grid's frame, training units: xmin, ymin, zmin, xmax, ymax, zmax."""
    dim: Dim
    """Cells along x, y, z of the grid's frame."""
    rotation: Float[Tensor, "3 3"]
    """World to grid frame, float64."""
    cuts: Cuts | None = None
    """Positions of the cuts along each axis in contracted space; None: cells of equal size there."""

    def table(self) -> PartitionTable:
        """The partition with these cells, still without views."""
        dx, dy, dz = self.dim
        return PartitionTable(self.aabb, self.dim, self.rotation, [[] for _ in range(dx * dy * dz)], cuts=self.cuts)


def automatic_layout(cameras: Sequence[Camera], points: Float[Tensor, "n 3"], config: PartitionConfig) -> Layout:
    """The layout for the settings; what they leave open is found from the scene.

    Args:
        cameras: Training cameras, at least one.
        points: Sparse points in the world, float64.
        config: ``aabb`` (if given, the grid's frame is the world's), ``dim``, ``blocks`` (a number, used without
            ``dim``) and ``balance``.

    Raises:
        UserError: if the points are too few or all in one place, or the cameras or points to balance lie in fewer
            places than there are cells.
        ValueError: if ``blocks`` is needed and ``auto``.
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
        raise ValueError("automatic_layout: partition.blocks is auto, expected a number (with_block_count finds it)")
    return config.blocks


def _dim_over(aabb: Box, up: Float[Tensor, "3"], blocks: int) -> Dim:
    """Number of cells along each axis of the world: one layer along the axis closest to ``up``."""
    x, y = (axis for axis in range(3) if axis != int(up.abs().argmax()))
    dim = [1, 1, 1]
    dim[x], dim[y] = fit_dim(blocks, aabb[x + 3] - aabb[x], aabb[y + 3] - aabb[y])
    return dim[0], dim[1], dim[2]


def even_cuts(places: Float[Tensor, "n"], cells: int, what: str) -> tuple[float, ...]:
    """Cuts that divide the places into cells with numbers as equal as possible.

    Args:
        places: Coordinates along one axis, in contracted space.
        cells: Number of cells, at least 1.
        what: Names places and axis in the error.

    Returns:
        ``cells - 1`` ascending coordinates.

    Raises:
        UserError: if there are fewer different places than cells.
    """
    ordered = places.sort().values
    gaps = (ordered.diff() > GAP).nonzero()[:, 0]
    if len(gaps) < cells - 1:
        raise UserError(
            f"partition: the {what} are in {len(gaps) + 1} place(s), expected at least {cells}, one for each cell; set "
            "partition.balance=area, or another partition.dim"
        )
    middles = (ordered[gaps] + ordered[gaps + 1]) / 2
    # Of two equally good gaps, the one closer to the middle of the box is taken, so a flipped axis gets the same cuts.
    tie = (middles - 0.5).abs() / cells
    cuts: list[float] = []
    first = 0
    for i in range(1, cells):
        last = len(gaps) - (cells - 1 - i)  # leaves a gap for each of the remaining cuts
        off = (gaps[first:last] + 1 - len(ordered) * i / cells).abs() + tie[first:last]
        first += int(off.argmin()) + 1
        cuts.append(float(middles[first - 1]))
    return tuple(cuts)


def fit_dim(blocks: int, width: float, depth: float) -> tuple[int, int]:
    """Numbers of cells along two sides, with product ``blocks``, such that the cells are as square as possible."""

    def stretch(cells: int) -> float:
        a, b = width / cells, depth / (blocks // cells)
        return max(a, b) / max(min(a, b), 1e-12)  # a line of points has no depth

    across = min((cells for cells in range(1, blocks + 1) if blocks % cells == 0), key=stretch)
    return across, blocks // across


def up_axis(cameras: Sequence[Camera], near: Float[Tensor, "n 3"], snap: bool = True) -> Float[Tensor, "3"]:
    """Unit vector of the world that points up: the normal of the ground plane, fitted to the points.

    The fit is repeated on the points close to the last plane, so that towers and trees do not tilt it. The sign follows
    from the cameras, which are held upright and look at the horizon or below it.

    Args:
        cameras: Training cameras.
        near: ``points_near``.
        snap: Return an axis of the world instead if one is within SNAP_DEGREES.
    """
    kept = near
    for _ in range(5):  # converges after two or three iterations
        center = kept.mean(dim=0)
        axes = torch.linalg.eigh((kept - center).T @ (kept - center)).eigenvectors
        residual = ((near - center) @ axes[:, 0]).abs()
        kept = near[residual <= 3 * residual.median()]  # never empty: half of the points are within the median
    held = -torch.stack([camera.rotation[1] + camera.rotation[2] for camera in cameras]).mean(dim=0)
    held = held / held.norm().clamp_min(1e-12)
    agreement = axes.T @ held
    # Between facades the fitted plane may be vertical. If its normal is more than 60 degrees (cosine 0.5) from the
    # cameras' up direction, the principal axis closest to that direction is taken.
    best = 0 if agreement[0].abs() >= 0.5 else int(agreement.abs().argmax())
    up = axes[:, best] * (1.0 if agreement[best] >= 0 else -1.0)
    return _snapped(up) if snap else up


def ground_frame(cameras: Sequence[Camera], up: Float[Tensor, "3"]) -> Float[Tensor, "3 3"]:
    """World to grid frame: z is ``up``, x runs along the longer side of the smallest rectangle around the cameras.

    The rectangle leaves out 2 % of the cameras on every side. Its direction is searched in steps of one degree from the
    cameras' principal axis, which alone is arbitrary for cameras that fill a square.
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
    x = x * x[x.abs().argmax()].sign()  # of the two directions along the line, the one whose largest part is positive
    # Snap x only if it remains perpendicular to up.
    snapped = _snapped(x)
    x = snapped if snapped @ up == 0 else x
    return torch.stack([x, torch.linalg.cross(up, x), up])


def balanced_box(near: Float[Tensor, "n 3"], centers: Float[Tensor, "m 3"], dim: Dim) -> Box:
    """Core box whose largest cell holds as few of the points as possible.

    Axes that are not cut are those of ``spanning_box``. The others are searched one after another over middles and
    widths of the box, by counting the points in the resulting cells. Among equal boxes the widest is taken, because the
    contraction does not distort its inside.

    Args:
        near: Points in the grid's frame.
        centers: Of the cameras, in the grid's frame.
        dim: Number of cells along each axis.
    """
    low, high = spanning_box(near, centers)
    thin = THIN * (high - low).max()
    center, half = (low + high) / 2, (high - low) / 2
    for _ in range(2):  # the second pass sees the results for the other axes
        for axis in (axis for axis in range(3) if dim[axis] > 1):
            middles, widths = _candidates(near[:, axis], dim[axis], thin)
            centers_tried, halves_tried = center.repeat(len(middles), 1), half.repeat(len(middles), 1)
            centers_tried[:, axis], halves_tried[:, axis] = middles, widths
            share = _largest_share(near, centers_tried, halves_tried, dim)
            # Differences of less than a thousandth are noise of the sample.
            equal = (share <= share.min() + 1e-3).nonzero()[:, 0]
            best = equal[widths[equal].argmax()]
            center, half = centers_tried[best], halves_tried[best]
    return _box(center - half, center + half)


def spanning_box(
    near: Float[Tensor, "n 3"], centers: Float[Tensor, "m 3"]
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Low and high corner of the box around the points without outliers (``SPAN``) and all cameras.

    Cameras are included because outside the box the contraction also squeezes the other axes: a camera high above the
    box would be assigned to a cell in the middle wherever it is.

    Raises:
        UserError: if all points are in one place.
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
    """Middles and half widths of the box to try along one axis, starting with the median as middle."""
    # Quantiles 0.3 to 0.7, in steps of 0.02 for 2 cells; otherwise 0.04, as each is combined with every width.
    shifts = [0.0, *(sign * step / 50 for step in range(1, 11, 1 if cells == 2 else 2) for sign in (1, -1))]
    middles = torch.quantile(values, 0.5 + torch.tensor(shifts, dtype=values.dtype))
    low, high = _span(values)
    if cells == 2:  # the only cut is in the middle, so the width hardly matters
        return middles, torch.maximum(middles - low, high - middles).clamp_min(thin)
    shares = torch.linspace(0.05, 0.5 - SPAN, 10, dtype=values.dtype)
    halves = (torch.quantile(values, 0.5 + shares) - torch.quantile(values, 0.5 - shares)) / 2
    return middles.repeat_interleave(len(halves)), halves.clamp_min(thin).repeat(len(middles))


def _largest_share(
    near: Float[Tensor, "n 3"], center: Float[Tensor, "c 3"], half: Float[Tensor, "c 3"], dim: Dim
) -> Float[Tensor, "c"]:
    """Share of the points that is in the fullest cell, for each of c boxes with the given centers and half sides."""
    grid = BlockGrid((-1, -1, -1, 1, 1, 1), dim)  # the grid of every box, in coordinates relative to the box
    measured = (near - center[:, None]) / half[:, None]
    cells = grid.cell_of(measured.reshape(-1, 3)).reshape(len(center), -1)
    cells += grid.n * torch.arange(len(center))[:, None]
    counts = torch.bincount(cells.flatten(), minlength=grid.n * len(center)).reshape(-1, grid.n)
    return counts.amax(dim=1).double() / len(near)


def _span(points: Float[Tensor, "n *axes"]) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """Lowest and highest coordinates of the points along each axis, outliers (``SPAN``) left out."""
    low, high = torch.quantile(points, torch.tensor([SPAN, 1 - SPAN], dtype=points.dtype), dim=0)
    return low, high


def points_near(cameras: Sequence[Camera], points: Float[Tensor, "n 3"]) -> Float[Tensor, "m 3"]:
    """A sample of the points near the cameras: those up to twice as far from the nearest camera as the median point.

    Raises:
        UserError: if there are fewer than ``MIN_POINTS`` points.
    """
    if len(points) < MIN_POINTS:
        raise UserError(
            f"partition: the scene has {len(points)} sparse points, expected at least {MIN_POINTS} to find the ground; "
            "set partition.aabb and partition.dim, or triangulate the points again"
        )
    sample = points[:: -(-len(points) // MAX_POINTS)].double()
    centers = torch.stack([camera.center for camera in cameras[:: -(-len(cameras) // MAX_CAMERAS)]])
    distance = torch.cdist(sample, centers, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)
    return sample[distance <= 2 * distance.median()]


def _snapped(axis: Float[Tensor, "3"]) -> Float[Tensor, "3"]:
    """The axis of the world within SNAP_DEGREES of ``axis``, or ``axis`` itself, normalized."""
    largest = int(axis.abs().argmax())
    if axis[largest].abs() < torch.cos(torch.deg2rad(torch.tensor(SNAP_DEGREES))):
        return axis / axis.norm()
    return torch.eye(3, dtype=axis.dtype)[largest] * axis[largest].sign()
