"""The mesh of a finished run: depth maps of all training views, fused cell by cell.

Everything that is expensive is kept in ``OUT/mesh`` until the mesh is written, so an interrupted build continues where
it was: the maps one file a view, the cells one file each. Memory holds one cell, one map and, at the end, the mesh.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import info, progress
from momentum_gs.core.types import Camera
from momentum_gs.data.frame import Frame
from momentum_gs.mesh.fusion import DepthMap, Index, cells_of, fuse, surface_blocks
from momentum_gs.mesh.mesh import Mesh
from momentum_gs.mesh.triangles import simplified, stitch, triangles_of, without_small_pieces
from momentum_gs.model.io import load_model
from momentum_gs.render.rasterize import median_depth
from momentum_gs.render.surface import expected_depth
from momentum_gs.render.view import render_view

SOLID = 0.5
"""Accumulated opacity from which a pixel shows a surface for a mesh: what is behind it counts less than it does."""
COARSEST = 4.0
"""Voxels that a pixel may cover: what is farther away is left to nearer views, or out of the mesh."""


Depth = Literal["median", "planar", "expected"]


@dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """How a mesh is made."""

    voxel: float | None = None
    """Edge of a voxel, scene units; None: what a pixel covers on the surface, the median over all views' pixels."""
    depth: Depth = "median"
    """Depth of a pixel: camera z of the Gaussian at which half of its light is gone; where its ray meets the blended
    plane of the Gaussians; or the mean camera z of those that it shows."""
    triangles: int | None = None
    """Number of triangles to simplify the mesh to; None: it stays as it is."""
    small: int = 300
    """Connected pieces of fewer triangles are removed: those of a surface of about 12 x 12 voxels."""


def build_mesh(
    folder: Path,
    ply: Path,
    cameras: Sequence[Camera],
    frame: Frame,
    background: Tensor,
    settings: MeshSettings,
) -> Mesh:
    """Makes the mesh, or the rest of it after an interruption.

    Args:
        folder: ``OUT/mesh``; its maps and cells are removed at the end.
        ply: The model.
        cameras: The views to fuse, training coordinates.
        frame: Training coordinates to those of the scene, in which the mesh is.
        background: [3] in [0, 1], on the device that computes.
        settings: How.

    Raises:
        UserError: the views show no surface, or a package of the extra ``mesh`` is missing.
    """
    maps, cells = folder / "maps", folder / "cells"
    _begin(folder, ply, cameras, settings)
    _render_maps(maps, ply, cameras, background, settings)
    device = background.device
    voxel = _median_pixel(maps, cameras) if settings.voxel is None else settings.voxel / frame.unit

    def read(number: int) -> DepthMap:
        return _read_map(maps, number, cameras[number], voxel, device)

    views = ((camera, read(i)) for i, camera in enumerate(cameras))
    found = cells_of(surface_blocks(views, voxel))
    info(f"mesh: voxels of {voxel * frame.unit:.4g} scene units, {len(found)} cells")
    for cell, blocks in progress(found.items(), "cells"):
        path = cells / ("_".join(map(str, cell)) + ".npz")
        if not path.exists():
            piece = triangles_of(fuse(cell, blocks, voxel, cameras, read, device), cell)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez(file, vertices=piece.vertices, faces=piece.faces, colors=piece.colors)
    pieces = list(_pieces(cells, found))
    if not any(len(piece.faces) for piece in pieces):
        raise UserError(
            f"mesh: the {len(cameras)} views show no surface at voxels of {voxel * frame.unit:.4g} scene units, "
            "expected one; look at the renders, or give another --voxel"
        )
    mesh = without_small_pieces(stitch(pieces), settings.small)
    if settings.triangles is not None:
        mesh = simplified(mesh, settings.triangles)
    return Mesh(frame.scene_points(torch.from_numpy(mesh.vertices * voxel)).numpy(), mesh.faces, mesh.colors)


def clear(folder: Path) -> None:
    """Removes what an interrupted build would need."""
    for part in ("maps", "cells"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "job.json").unlink(missing_ok=True)


def _begin(folder: Path, ply: Path, cameras: Sequence[Camera], settings: MeshSettings) -> None:
    """Keeps the maps and cells of an interrupted build of the same mesh, and no others."""
    stat = ply.stat()
    views = hashlib.sha256("".join(f"{c.name}{c.world_view.tolist()}{c.width}" for c in cameras).encode()).hexdigest()
    # What is done after the cells does not change them.
    job = asdict(settings) | {"triangles": None, "small": None, "views": views}
    job |= {"model": [str(ply), stat.st_size, stat.st_mtime_ns]}
    text = json.dumps(job, indent=2) + "\n"
    record = folder / "job.json"
    if not record.exists() or record.read_text() != text:
        clear(folder)
    for part in ("maps", "cells"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    record.write_text(text)


@torch.no_grad()
def _render_maps(
    maps: Path, ply: Path, cameras: Sequence[Camera], background: Tensor, settings: MeshSettings
) -> None:
    """Renders the views whose maps are missing."""
    missing = [i for i in range(len(cameras)) if not _map_path(maps, i).exists()]
    if not missing:
        return
    model, decoder = load_model(ply)
    model, decoder = model.to(background.device), decoder.to(background.device).eval()
    for i in progress(missing, "depth maps"):
        view = render_view(model, decoder, cameras[i], background, surface=settings.depth == "planar")
        if view.surface is not None:
            depth = view.surface.depth
        elif settings.depth == "expected":
            depth = expected_depth(view.output)
        else:
            depth = median_depth(view.decoded.gaussians, cameras[i])
        depth = torch.where(view.output.alpha >= SOLID, depth, 0.0)
        color = (255 * view.output.image.clamp(0, 1)).round().to(torch.uint8)
        with replacing(_map_path(maps, i)) as temporary:
            save_file({"depth": depth.cpu().contiguous(), "color": color.cpu().contiguous()}, temporary)


def _map_path(maps: Path, number: int) -> Path:
    return maps / f"{number:06d}.safetensors"


def _read_map(maps: Path, number: int, camera: Camera, voxel: float, device: torch.device) -> DepthMap:
    found = load_file(_map_path(maps, number))
    depth = found["depth"].to(device)
    depth = torch.where(depth <= COARSEST * voxel * camera.fx, depth, 0.0)
    return DepthMap(depth, found["color"].to(device).float() / 255)


def _median_pixel(maps: Path, cameras: Sequence[Camera]) -> float:
    """What a pixel covers: depth / focal length, the median of the views' medians, training units."""
    medians = []
    for i, camera in enumerate(cameras):
        depth = load_file(_map_path(maps, i))["depth"]
        if bool((depth > 0).any()):
            medians.append(float(depth[depth > 0].median()) / camera.fx)
    if not medians:
        raise UserError(f"mesh: none of {len(cameras)} views shows a surface; look at the renders, and train again")
    return float(np.median(medians))


def _pieces(cells: Path, found: dict[Index, Tensor]) -> Iterator[Mesh]:
    for cell in found:
        with np.load(cells / ("_".join(map(str, cell)) + ".npz")) as stored:
            yield Mesh(stored["vertices"], stored["faces"], stored["colors"])
