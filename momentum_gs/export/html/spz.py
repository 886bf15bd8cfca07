"""Gaussians as SPZ, a compressed format of about 20 bytes per Gaussian, which the page's renderer decodes.

Source: the format's reference implementation, github.com/nianticlabs/spz, src/cc/load-spz.cc, version 3.
"""

import gzip
import math
import struct

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.model.splats import Splats

MAGIC, VERSION = 0x5053474E, 3
POSITION_BITS = 24
"""Bits of a coordinate, a signed fixed-point number."""
LARGEST_FRACTION = 20
"""Most bits behind the point: a millionth of a unit."""
COLOR_SCALE = 0.15
"""A byte of colour is 255 * (COLOR_SCALE * sh_dc + 0.5)."""
SH_SCALE = 128
"""A byte of a coefficient is SH_SCALE * (1 + value). All its bits are kept: with 5 and 4 of them, as the reference has
by default, a page of the drone scene takes 28 % fewer bytes and loses 0.8 dB more (docs/export.md)."""
COMPRESSION = 6
"""Level of gzip: 9 takes several times as long for one or two per cent."""


def spz_bytes(splats: Splats, origin: Float[Tensor, "3"]) -> bytes:
    """A file with the Gaussians of a model, positions relative to ``origin``, in the axes of the model.

    Quantization: a position by 2^-23 of the largest coordinate, or a millionth of a unit; log scales by 1/16 within
    [-10, 5.9], opacities by 1/255, colours by 1/135 of the range, harmonics by 1/128 within [-1, 1].

    Args:
        splats: Gaussians of degree 0 to 3.
        origin: World, training units.
    """
    position = (splats.position.detach().double().cpu() - origin.double().cpu()).numpy()
    largest = float(np.abs(position).max(initial=1e-9))
    fraction = min(LARGEST_FRACTION, max(0, math.floor(math.log2((2 ** (POSITION_BITS - 1) - 1) / largest))))
    header = struct.pack("<IIIBBBB", MAGIC, VERSION, len(position), splats.sh_degree, fraction, 0, 0)
    sections = [
        _positions(position, fraction),
        _bytes(splats.opacity.detach().sigmoid() * 255),
        _bytes((splats.sh_dc.detach().flatten(1) * COLOR_SCALE + 0.5) * 255),
        _bytes((splats.log_scale.detach() + 10) * 16),
        _rotations(torch.nn.functional.normalize(splats.rotation.detach().cpu().double(), dim=1).numpy()),
        _harmonics(splats),
    ]
    # mtime: the same model gives the same bytes.
    return gzip.compress(header + b"".join(sections), COMPRESSION, mtime=0)


def _bytes(values: Tensor) -> bytes:
    return values.cpu().round().clamp(0, 255).byte().numpy().tobytes()


def _positions(position: np.ndarray, fraction: int) -> bytes:
    limit = 2 ** (POSITION_BITS - 1) - 1
    fixed = np.clip(np.rint(position * 2.0**fraction), -limit, limit).astype("<i4")
    return fixed.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()  # The lower three bytes.


def _rotations(quats: np.ndarray) -> bytes:
    """The three smallest components of (x, y, z, w), sign and 9 bits each, below the index of the largest."""
    quats = quats[:, [1, 2, 3, 0]]
    rows = np.arange(len(quats))
    largest = np.abs(quats).argmax(axis=1)
    quats = quats * np.where(quats[rows, largest] < 0, -1, 1)[:, None]
    packed = largest.astype(np.uint32)
    for i in range(4):
        bits = np.minimum(np.rint(np.abs(quats[:, i]) * math.sqrt(2) * 511), 511).astype(np.uint32)
        bits |= (quats[:, i] < 0).astype(np.uint32) << 9
        packed = np.where(largest == i, packed, packed << 10 | bits)
    return packed.astype("<u4").tobytes()


def _harmonics(splats: Splats) -> bytes:
    """Coefficients by Gaussian, RGB of each together."""
    return _bytes((splats.sh_rest.detach() + 1) * SH_SCALE)
