"""Reading and writing of explicit Gaussians, in the PLY layout of 3D Gaussian Splatting, which its viewers open.

Source: save_ply and load_ply of 3DGS, scene/gaussian_model.py.
"""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.model.ply import chunks, columns, number_names, read_vertices, write_vertices
from momentum_gs.model.splats import Splats

_DEGREES = {3 * (degree + 1) ** 2 - 3: degree for degree in range(4)}
"""Number of f_rest columns -> degree."""


def save_splats(path: str | Path, splats: Splats) -> None:
    """Write Gaussians as float32, one vertex per Gaussian: position, zero normals, degree 0 of R, G, B, the higher
    degrees (all of R, all of G, all of B), opacity logit, log scales, rotation."""
    names = _property_names(3 * splats.sh_rest.shape[1])
    write_vertices(Path(path), names, (_table(splats, part) for part in chunks(len(splats))), len(splats))


def load_splats(path: str | Path) -> Splats:
    """Read a PLY of ``save_splats`` or of a 3DGS program, as leaves on the CPU.

    Raises:
        UserError: the file is missing, damaged, or its vertices are not Gaussians.
    """
    path = Path(path)
    vertices = read_vertices(path, "Gaussians")
    found = number_names(vertices)
    n_rest = sum(name.startswith("f_rest_") for name in found)
    names = [name for name in _property_names(n_rest) if name not in ("nx", "ny", "nz")]
    missing = [name for name in names if name not in found]
    if missing or n_rest not in _DEGREES:
        wrong = f"no property '{missing[0]}'" if missing else f"{n_rest} f_rest numbers, expected one of {[*_DEGREES]}"
        raise UserError(f"{path}: {wrong}, so its vertices are not Gaussians; give a PLY of a 3DGS style model")
    table = columns(vertices, names)
    position, dc, rest, opacity, log_scale, rotation = (
        part.contiguous() for part in table.split((3, 3, n_rest, 1, 3, 4), dim=1)
    )
    rest = rest.unflatten(1, (3, n_rest // 3)).transpose(1, 2).contiguous()
    return Splats(position, dc.unsqueeze(1), rest, log_scale, rotation, opacity).as_leaves()


def _table(splats: Splats, part: slice) -> Float[Tensor, "n p"]:
    """The rows of a part of the file."""
    position = splats.position[part]
    return torch.cat(
        [
            position,
            torch.zeros_like(position),
            splats.sh_dc[part].flatten(1),
            splats.sh_rest[part].transpose(1, 2).flatten(1),
            splats.opacity[part],
            splats.log_scale[part],
            splats.rotation[part],
        ],
        dim=1,
    )


def _property_names(n_rest: int) -> list[str]:
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(n_rest)),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]
