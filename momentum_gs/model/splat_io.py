"""Splats as files, in the layout of 3D Gaussian Splatting that its viewers open.

Source: save_ply and load_ply of 3DGS, scene/gaussian_model.py.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.lib.recfunctions import structured_to_unstructured
from plyfile import PlyData, PlyElement, PlyParseError

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.model.splats import Splats

_DEGREES = {3 * (degree + 1) ** 2 - 3: degree for degree in range(4)}
"""Number of f_rest columns -> degree."""


def save_splats(path: str | Path, splats: Splats) -> None:
    """Write splats as float32, one vertex each: position, zero normals, degree 0 of R, G, B, the higher degrees (all of
    R, all of G, all of B), opacity logit, log scales, rotation."""
    table = torch.cat(
        [
            splats.position,
            torch.zeros_like(splats.position),
            splats.sh_dc.flatten(1),
            splats.sh_rest.transpose(1, 2).flatten(1),
            splats.opacity,
            splats.log_scale,
            splats.rotation,
        ],
        dim=1,
    )
    layout = np.dtype([(name, "<f4") for name in _property_names(3 * splats.sh_rest.shape[1])])
    vertices = np.ascontiguousarray(table.detach().cpu().numpy(), dtype="<f4").view(layout).reshape(-1)
    with replacing(Path(path)) as temporary:
        PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(temporary))


def load_splats(path: str | Path) -> Splats:
    """Read what ``save_splats`` or a 3DGS program wrote, as leaves on the CPU.

    Raises:
        UserError: the file is missing, damaged, or its vertices are not Gaussians.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a PLY of Gaussians; train and merge first")
    try:
        vertices = PlyData.read(str(path))["vertex"].data
    except (PlyParseError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable PLY of Gaussians ({error}); write it again") from error
    found = {name for name in vertices.dtype.names or () if vertices.dtype[name].kind in "fiu"}
    n_rest = sum(name.startswith("f_rest_") for name in found)
    names = [name for name in _property_names(n_rest) if name not in ("nx", "ny", "nz")]
    missing = [name for name in names if name not in found]
    if missing or n_rest not in _DEGREES:
        wrong = f"no property '{missing[0]}'" if missing else f"{n_rest} f_rest numbers, expected one of {[*_DEGREES]}"
        raise UserError(f"{path}: {wrong}, so its vertices are not Gaussians; give a PLY of a 3DGS style model")
    table = torch.from_numpy(structured_to_unstructured(vertices[names], dtype=np.float32, copy=True))
    position, dc, rest, opacity, log_scale, rotation = (
        part.contiguous() for part in table.split((3, 3, n_rest, 1, 3, 4), dim=1)
    )
    rest = rest.unflatten(1, (3, n_rest // 3)).transpose(1, 2).contiguous()
    return Splats(position, dc.unsqueeze(1), rest, log_scale, rotation, opacity).as_leaves()


def _property_names(n_rest: int) -> list[str]:
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(n_rest)),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]
