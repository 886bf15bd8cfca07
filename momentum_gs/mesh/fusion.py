"""Depth maps to a truncated signed distance, cell by cell.

Samples lie on one infinite grid: sample (i, j, k) is at ``voxel * (i, j, k)``. Samples within a few voxels of a surface
are found from the depth maps as blocks of ``BLOCK`` samples; a cell is ``CELL`` blocks along each side. Cells share the
samples of the planes between them, where each computes the same values, so that their triangles meet.
Source of the method: Curless and Levoy 1996; blocks as in Niessner et al. 2013.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from momentum_gs.core.geometry import Sight
from momentum_gs.core.types import Camera
from momentum_gs.core.voxels import unique_cells
from momentum_gs.render.surface import pixel_rays

BLOCK = 8
"""Samples along the side of a block."""
CELL = 16
"""Blocks along the side of a cell: 129^3 samples and what is computed for them take some 200 MB."""
TRUNCATION = 4.0
"""Distance in voxels at which the signed distance is cut off: wide enough for the noise of depth maps of a pixel a
voxel, narrow enough for two sides of a wall; the usual value for such maps."""

_CORNERS = [(x * BLOCK + y) * BLOCK + z for x in (0, BLOCK - 1) for y in (0, BLOCK - 1) for z in (0, BLOCK - 1)]
"""Samples of a block at its corners."""

Index = tuple[int, int, int]


@dataclass(frozen=True)
class DepthMap:
    """What one view shows."""

    depth: Float[Tensor, "h w"]
    """Camera z; 0 where no surface is known."""
    color: Float[Tensor, "3 h w"]
    """RGB in [0, 1]."""


@dataclass(frozen=True)
class Fused:
    """The samples of a cell, [129,129,129] each."""

    distance: Float[Tensor, "x y z"]
    """Signed distance in truncations, positive outside."""
    known: Bool[Tensor, "x y z"]
    """Samples that some view saw."""
    color: Float[Tensor, "3 x y z"]
    """Sum of weighted RGB."""
    weight: Float[Tensor, "x y z"]
    """Sum of the colours' weights."""


def surface_blocks(views: Iterable[tuple[Camera, DepthMap]], voxel: float) -> Int64[Tensor, "b 3"]:
    """Blocks within a truncation of a surface along a view's rays; sorted, without doubles.

    Every other pixel is looked at along both axes: a block is ``BLOCK`` voxels wide, and a pixel covers at most four
    (``build.COARSEST``).
    """
    found = torch.empty(0, 3, dtype=torch.int64)
    reach = torch.tensor([-1.0, 0.0, 1.0]) * TRUNCATION * voxel
    for camera, seen in views:
        depth = seen.depth[::2, ::2].flatten()
        rays = pixel_rays(camera, depth)[:, ::2, ::2].flatten(1)[:, depth > 0]
        ways = (depth[depth > 0] + reach.to(depth)[:, None])[:, None] * rays
        places = ways.transpose(1, 2).flatten(0, 1).cpu().double() + camera.center
        found = unique_cells(torch.cat([found, (places / (voxel * BLOCK)).floor().long()]))[0]
    return found


def cells_of(blocks: Int64[Tensor, "b 3"]) -> dict[Index, Int64[Tensor, "k 3"]]:
    """Cell -> its blocks and those of its neighbours that share samples with it, relative to the cell's first block.

    Cells that only share samples with a block have no cube inside and are left out.
    """
    home = blocks.div(CELL, rounding_mode="floor")
    cells: dict[Index, Tensor] = {}
    for cell in home.unique(dim=0):
        inside = ((blocks >= cell * CELL) & (blocks <= (cell + 1) * CELL)).all(dim=1)
        x, y, z = cell.tolist()
        cells[x, y, z] = blocks[inside] - cell * CELL
    return cells


def fuse(
    cell: Index,
    blocks: Int64[Tensor, "k 3"],
    voxel: float,
    cameras: Sequence[Camera],
    read: Callable[[int], DepthMap],
    device: torch.device,
) -> Fused:
    """Fuses the depth maps of all views that see a cell.

    A view counts by 1 / z^2, as the error of its depth grows with the size of its pixels.

    Args:
        cell: The cell.
        blocks: Its entry of ``cells_of``.
        voxel: Distance between samples.
        cameras: All views.
        read: Number of a view -> its depth map, on the device.
        device: Computes.
    """
    first = torch.tensor(cell) * (BLOCK * CELL)
    box = torch.cat([first.double(), first.double() + BLOCK * CELL]) * voxel
    local = torch.cartesian_prod(*[torch.arange(BLOCK)] * 3)
    sums = torch.zeros(6, len(blocks), len(local), device=device)
    shows = Sight(cameras).may_show(box[None])[0].tolist()
    for number, camera in enumerate(cameras):
        if shows[number]:
            # Pixels times depth, and depth, of sample i: turn @ i + start, in float64 but for the last sum.
            lens = torch.tensor([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]], dtype=torch.float64)
            turn = lens @ camera.rotation * voxel
            start = lens @ camera.rotation @ (first * voxel - camera.center)
            corner = (turn @ (blocks.double() * BLOCK).T + start[:, None]).float().to(device)
            inner = (turn @ local.double().T).float().to(device)
            _add_view(sums, corner, inner, camera, read(number), TRUNCATION * voxel)
    n = BLOCK * CELL + 1
    index = (blocks[:, None] * BLOCK + local).view(-1, 3).to(device)
    used = (index < n).all(dim=1).nonzero()[:, 0]
    dense = torch.zeros(6, n, n, n, device=device)
    x, y, z = index[used].unbind(1)
    dense[:, x, y, z] = sums.flatten(1)[:, used]
    known = dense[1] > 0
    return Fused(dense[0] / torch.where(known, dense[1], 1.0), known, dense[2:5], dense[5])


def _add_view(
    sums: Float[Tensor, "6 b 512"],
    corner: Float[Tensor, "3 b"],
    inner: Float[Tensor, "3 512"],
    camera: Camera,
    seen: DepthMap,
    limit: float,
) -> None:
    """Adds what one view says of the samples of all blocks.

    Args:
        sums: Weighted distance, weight, weighted RGB and its weight; updated.
        corner: Pixels times depth, and depth, of the first sample of each block.
        inner: The same of the samples of a block, relative to its first.
        camera: The view.
        seen: What it shows.
        limit: Distance at which the signed distance is cut off.
    """
    # Blocks with a corner ahead of the camera and inside of the image; the others have no sample there.
    ends = corner[:, :, None] + inner[:, None, _CORNERS]
    high = torch.tensor([camera.width, camera.height], device=corner.device)[:, None, None] * ends[2]
    beside = (ends[:2] < 0).all(dim=2) | (ends[:2] >= high).all(dim=2)
    near = ((ends[2] > 0).any(dim=1) & ~beside.any(dim=0)).nonzero()[:, 0]
    u, v, z = (corner[:, near, None] + inner[:, None]).flatten(1)
    u, v = u / z, v / z
    rows = ((z > 0) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)).nonzero()[:, 0]
    u, v, z = u[rows], v[rows], z[rows]
    nearest = seen.depth.flatten()[v.long() * camera.width + u.long()]
    kept = ((nearest > 0) & (nearest - z >= -1.5 * limit)).nonzero()[:, 0]
    rows, u, v, z, nearest = rows[kept], u[kept], v[kept], z[kept], nearest[kept]
    grid = torch.stack([2 * u / camera.width - 1, 2 * v / camera.height - 1], dim=1)[None, None]
    stack = torch.cat([seen.depth[None], seen.color])[None]
    sampled = F.grid_sample(stack, grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0]
    # At a step between two surfaces, or beside a pixel without depth, a mean of both is on neither.
    depth = torch.where((sampled[0] - nearest).abs() < 0.5 * limit, sampled[0], nearest)
    gap = (depth - z) / limit
    weight = z.square().reciprocal() * (gap >= -1)
    colored = weight * (gap < 1)
    added = torch.stack([weight * gap.clamp(-1, 1), weight, *(colored * sampled[1:]), colored])
    places = near[rows // inner.shape[1]] * inner.shape[1] + rows % inner.shape[1]
    sums.flatten(1).index_add_(1, places, added)
