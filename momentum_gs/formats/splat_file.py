"""The ``.splat`` format: 32 bytes per Gaussian, without a header and without view-dependent colours.

A record is the position and the scales (float32 x 3 each, not logarithmic), red, green, blue and opacity (uint8 each),
and the rotation quaternion (w, x, y, z; uint8 each, 128 + 128 times the component).
Source: process_ply_to_splat of antimatter15/splat, convert.py.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.model.ply import chunks
from momentum_gs.model.splats import SH_CONSTANT, Splats

_RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])
_LEAST = 0.5 / 255
"""Opacities of 0 and 255 are read as half a step from 0 and 1, so that their logits are finite."""
_SMALLEST = float(np.finfo(np.float32).tiny)


def write_splat_file(path: Path, splats: Splats) -> None:
    """Writes Gaussians in their order. Coefficients above degree 0 are left out, and colours are clamped to [0, 1]."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        for part in chunks(len(splats)):
            file.write(_records(splats, part).data)


def read_splat_file(path: Path) -> Splats:
    """Reads Gaussians of degree 0.

    Raises:
        UserError: the file is not a whole number of records, or holds numbers that are no Gaussians.
    """
    size = path.stat().st_size
    if size == 0 or size % _RECORD.itemsize:
        raise UserError(
            f"{path}: {size} bytes, expected a multiple of the {_RECORD.itemsize} bytes of one Gaussian; copy or "
            "export the file again"
        )
    records = np.memmap(path, _RECORD, mode="r")
    position, scale = (torch.from_numpy(np.array(records[name])) for name in ("position", "scale"))
    rgba, rotation = (torch.from_numpy(np.array(records[name])).float() for name in ("rgba", "rotation"))
    if not (position.isfinite().all() and scale.isfinite().all()) or bool((scale < 0).any()):
        raise UserError(
            f"{path}: positions or scales that are not finite, expected records of 32 bytes (position, scales, "
            "colour, rotation); this is another format, or a damaged file"
        )
    opacity = (rgba[:, 3:] / 255).clamp(_LEAST, 1 - _LEAST)
    rotation = (rotation - 128) / 128
    rotation[~(rotation != 0).any(dim=1)] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # Four times 128 is no rotation.
    return Splats(
        position=position,
        sh_dc=((rgba[:, :3] / 255 - 0.5) / SH_CONSTANT).unsqueeze(1),
        sh_rest=position.new_zeros(len(position), 0, 3),
        log_scale=scale.clamp_min(_SMALLEST).log(),
        rotation=rotation,
        opacity=opacity.logit(),
    ).as_leaves()


def _records(splats: Splats, part: slice) -> np.ndarray:
    rows = {name: tensor[part].detach().cpu() for name, tensor in splats.rows().items()}
    records = np.empty(len(rows["position"]), _RECORD)
    records["position"], records["scale"] = rows["position"].numpy(), rows["log_scale"].exp().numpy()
    rgba = torch.cat([rows["sh_dc"][:, 0] * SH_CONSTANT + 0.5, rows["opacity"].sigmoid()], dim=1)
    records["rgba"] = _bytes(rgba * 255)
    records["rotation"] = _bytes(torch.nn.functional.normalize(rows["rotation"], dim=1) * 128 + 128)
    return records


def _bytes(values: Float[Tensor, "n 4"]) -> np.ndarray:
    return values.round().clamp(0, 255).to(torch.uint8).numpy()
