"""Signed distances to triangles, and what is done to the whole mesh: stitching, small pieces, fewer triangles."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from momentum_gs.mesh.fusion import BLOCK, CELL, Fused, Index
from momentum_gs.mesh.mesh import Mesh, extra

_WELD = 1e-3
"""Distance in voxels within which vertices of neighbouring cells are one: they differ by rounding, some 1e-5."""


def triangles_of(fused: Fused, cell: Index) -> Mesh:
    """Triangles where the distance is 0, with vertices in voxels of the infinite grid; cubes with a sample that no view
    saw have none.

    Raises:
        UserError: scikit-image is not installed.
    """
    measure = extra("skimage.measure", "mesh")
    empty = Mesh(np.empty((0, 3)), np.empty((0, 3), dtype=np.int64), np.empty((0, 3), dtype=np.uint8))
    distance, known = fused.distance.cpu(), fused.known.cpu()
    # A cube is named by its last corner. It has triangles if all of its eight are known.
    whole = 1 - F.max_pool3d(1 - known[None, None].float(), 2, 1)[0, 0]
    mask = F.pad(whole, (1, 0, 1, 0, 1, 0)) > 0
    values = distance[known]
    if not mask.any() or not (float(values.min()) < 0 < float(values.max())):
        return empty
    try:
        vertices, faces, _, _ = measure.marching_cubes(distance.numpy(), 0.0, mask=mask.numpy(), allow_degenerate=False)
    except RuntimeError:  # No surface in the cubes that count.
        return empty
    grid = torch.from_numpy(vertices.copy())
    # grid_sample's last axis comes first.
    at = (2 * grid / (BLOCK * CELL) - 1).flip(1)[None, None, None]
    stack = torch.cat([fused.color, fused.weight[None]]).cpu()[None]
    rgb = F.grid_sample(stack, at, align_corners=True)[0, :, 0, 0]
    colors = (255 * rgb[:3] / rgb[3].clamp_min(1e-12)).round().clamp(0, 255).T.to(torch.uint8).numpy()
    return Mesh(vertices.astype(np.float64) + np.array(cell) * (BLOCK * CELL), faces.astype(np.int64), colors)


def stitch(pieces: Sequence[Mesh]) -> Mesh:
    """One mesh of the cells' meshes, in which vertices on the planes between cells are shared."""
    spatial, csgraph = extra("scipy.spatial", "mesh"), extra("scipy.sparse.csgraph", "mesh")
    sparse = extra("scipy.sparse", "mesh")
    starts = np.cumsum([0, *(len(piece.vertices) for piece in pieces)])
    vertices = np.concatenate([piece.vertices for piece in pieces])
    faces = np.concatenate([piece.faces + start for piece, start in zip(pieces, starts, strict=False)])
    colors = np.concatenate([piece.colors for piece in pieces])
    side = BLOCK * CELL
    border = np.flatnonzero((np.abs(vertices - side * np.round(vertices / side)) < _WELD).any(axis=1))
    pairs = np.empty((0, 2), dtype=np.int64)
    if len(border):
        pairs = border[spatial.cKDTree(vertices[border]).query_pairs(_WELD, output_type="ndarray")]
    if len(pairs):
        ones = np.ones(len(pairs), dtype=np.int8)
        graph = sparse.coo_matrix((ones, pairs.T), shape=(len(vertices), len(vertices)))
        count, of = csgraph.connected_components(graph, directed=False)
        first = np.full(count, len(vertices))
        np.minimum.at(first, of, np.arange(len(vertices)))
        faces = first[of][faces]
    a, b, c = faces.T
    return Mesh(vertices, faces, colors).keep(faces[(a != b) & (b != c) & (c != a)])


def without_small_pieces(mesh: Mesh, least: int) -> Mesh:
    """The mesh without connected pieces of fewer than ``least`` triangles."""
    csgraph, sparse = extra("scipy.sparse.csgraph", "mesh"), extra("scipy.sparse", "mesh")
    a, b = np.concatenate([mesh.faces[:, :2], mesh.faces[:, 1:]]).T
    size = len(mesh.vertices)
    graph = sparse.coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(size, size))
    piece = csgraph.connected_components(graph, directed=False)[1][mesh.faces[:, 0]]
    return mesh.keep(mesh.faces[np.bincount(piece, minlength=1)[piece] >= least])


def simplified(mesh: Mesh, faces: int) -> Mesh:
    """The mesh with about ``faces`` triangles, or as it is if it has fewer; colours are those of the nearest vertices.

    Raises:
        UserError: fast-simplification is not installed.
    """
    if len(mesh.faces) <= faces:
        return mesh
    simplifier, spatial = extra("fast_simplification", "mesh --triangles"), extra("scipy.spatial", "mesh")
    middle = mesh.vertices.mean(axis=0)  # It computes in float32.
    points, corners = simplifier.simplify(
        (mesh.vertices - middle).astype(np.float32), mesh.faces.astype(np.int32), target_count=faces
    )
    vertices = points.astype(np.float64) + middle
    nearest = spatial.cKDTree(mesh.vertices).query(vertices)[1]
    return Mesh(vertices, corners.astype(np.int64), mesh.colors[nearest])
