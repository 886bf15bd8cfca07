"""Scores of a mesh against a reference cloud, such as a laser scan: precision, recall, F1 and mean distances.

Precision is the share of the mesh's points within a threshold of the reference, recall the share of the reference's
points within it of the mesh's, F1 their harmonic mean. Accuracy is the mean distance from the mesh to the reference,
completeness that from the reference to the mesh, and Chamfer the mean of both. Source: Knapitsch et al. 2017 (Tanks and
Temples). Meshes are scored where they lie: they are in the scene's coordinates, so nothing is registered.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_view
from momentum_gs.core.types import Camera
from momentum_gs.core.voxels import cells_of, unique_cells
from momentum_gs.mesh.mesh import Mesh, extra
from momentum_gs.partition.coverage import SEEN_BY

Points = Float[np.ndarray, "_ 3"]


@dataclass(frozen=True)
class Protocol:
    """How a benchmark scores meshes."""

    threshold: float | Literal["reference"] | None
    """Distance that counts as correct, in the unit of the reference; ``reference``: a multiple of the mean distance of
    a reference point to the nearest other; None: the user gives it."""
    points: Literal["even", "vertices"]
    """Points of the mesh: spread evenly over its surface, or its vertices and the middles of its triangles."""
    source: str
    """Where that is from."""


FARTHEST = 20.0
"""Thresholds beyond which a distance counts as this in the means: an outlier is wrong, however far away it is."""
_MOST = 5_000_000
"""Random points of a mesh at most: with what is computed of them, a gigabyte."""
OF_SPACING = 1.5
"""Threshold in mean distances between neighbouring points of the reference (GauU-Scene in CityGaussianV2)."""
TANKS = {
    "barn": 0.01, "caterpillar": 0.005, "church": 0.025, "courthouse": 0.025, "ignatius": 0.003, "meetingroom": 0.01,
    "truck": 0.005,
}  # fmt: skip
"""Scene of Tanks and Temples -> threshold in metres."""
PROTOCOLS = {
    "own": Protocol(None, "even", "this program; the threshold is given"),
    "gauu": Protocol("reference", "even", "CityGaussianV2, tools/eval_tnt/run_gauu.py"),
    "matrixcity": Protocol(None, "vertices", "CityGaussianV2, tools/eval_tnt/run_mc.py"),
    **{f"tnt-{name}": Protocol(tau, "vertices", "Tanks and Temples") for name, tau in TANKS.items()},
}
"""Name -> protocol. All of them thin both clouds to one point per voxel of half the threshold, as the originals do."""


@dataclass(frozen=True)
class MeshScores:
    """Scores; distances are in the unit of the reference."""

    threshold: float
    precision: float
    recall: float
    f1: float
    accuracy: float
    """Mean distance from the mesh to the reference."""
    completeness: float
    """Mean distance from the reference to the mesh."""
    chamfer: float
    """Mean of both."""
    points: int
    """Points of the mesh that were compared."""
    reference: int
    """Points of the reference that were compared."""

    def record(self) -> dict[str, float]:
        """As JSON values."""
        return asdict(self)


def score_points(points: Points, reference: Points, threshold: float, farthest: float = math.inf) -> MeshScores:
    """Scores points of a mesh as they are.

    Args:
        points: Of the mesh.
        reference: The true surface.
        threshold: Distance that counts as correct.
        farthest: Distances count at most as this in the means, so that a few far points do not decide them.

    Raises:
        UserError: one of the clouds is empty, or scipy is not installed.
    """
    if not len(points) or not len(reference):
        raise UserError(
            f"eval-mesh: {len(points)} points of the mesh and {len(reference)} of the reference are left to compare, "
            "expected some of both; check that both are in the same coordinates, or leave out --crop"
        )
    tree = extra("scipy.spatial", "eval-mesh").cKDTree
    there, back = tree(reference).query(points)[0], tree(points).query(reference)[0]
    precision, recall = float((there <= threshold).mean()), float((back <= threshold).mean())
    accuracy, completeness = (float(np.minimum(d, farthest).mean()) for d in (there, back))
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    chamfer = (accuracy + completeness) / 2
    sizes = len(points), len(reference)
    return MeshScores(threshold, precision, recall, f1, accuracy, completeness, chamfer, *sizes)


def surface_points(mesh: Mesh, kind: Literal["even", "vertices"], spacing: float) -> Points:
    """Points of a mesh.

    Args:
        mesh: The mesh.
        kind: ``vertices``: these and the middles of the triangles; ``even``: random points, as many as put one into
            every square of a quarter of ``spacing``'s area, the same in every call.
        spacing: Distance to which the points will be thinned.
    """
    corners = mesh.vertices[mesh.faces]
    if kind == "vertices":
        return np.concatenate([mesh.vertices, corners.mean(axis=1)])
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    count = min(int(4 * area.sum() / spacing**2) + 1, _MOST)
    rng = np.random.default_rng(0)
    of = np.searchsorted(area.cumsum() / area.sum(), rng.random(count)).clip(0, len(area) - 1)
    a, b = np.sort(rng.random((2, count)), axis=0)
    first, second, third = corners[of].transpose(1, 0, 2)
    return a[:, None] * first + (b - a)[:, None] * second + (1 - b)[:, None] * third


def thinned(points: Points, spacing: float) -> Points:
    """The mean of the points in every voxel of edge ``spacing``."""
    distinct, of = unique_cells(cells_of(torch.from_numpy(points), spacing))
    count = np.bincount(of, minlength=len(distinct))
    sums = np.stack([np.bincount(of, points[:, axis], len(distinct)) for axis in range(3)], axis=1)
    return sums / count[:, None]


def mean_spacing(points: Points) -> float:
    """Mean distance of a point to the nearest other."""
    spatial = extra("scipy.spatial", "eval-mesh")
    return float(spatial.cKDTree(points).query(points, k=2)[0][:, 1].mean())


def in_views(points: Points, cameras: Sequence[Camera], least: int = SEEN_BY) -> Bool[np.ndarray, "_"]:
    """Which points fall into the images of at least ``least`` cameras, whatever is in front of them."""
    places = torch.from_numpy(points)
    counts = torch.zeros(len(places), dtype=torch.int64)
    for camera in cameras:
        counts += in_view(places, camera, near=0.0)
    return (counts >= least).numpy()


def score_mesh(
    mesh: Mesh, reference: Points, protocol: Protocol, threshold: float | None, cameras: Sequence[Camera] = ()
) -> MeshScores:
    """Scores a mesh by a protocol.

    Args:
        mesh: In the coordinates of the reference.
        reference: The true surface.
        protocol: How.
        threshold: In place of the protocol's; needed where it has none.
        cameras: Both clouds are cropped to what three of these have in view; none: they are not cropped.

    Raises:
        UserError: without a threshold, or if nothing is left to compare.
    """
    found = threshold if threshold is not None else protocol.threshold
    if found == "reference":
        found = OF_SPACING * mean_spacing(reference)
    if found is None:
        raise UserError("eval-mesh: no threshold, and the protocol has none; give --threshold, in the scene's unit")
    assert not isinstance(found, str)
    spacing = found / 2
    points = thinned(surface_points(mesh, protocol.points, spacing), spacing)
    reference = thinned(reference, spacing)
    if cameras:
        points, reference = points[in_views(points, cameras)], reference[in_views(reference, cameras)]
    return score_points(points, reference, found, FARTHEST * found)
