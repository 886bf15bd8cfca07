"""Explicit Gaussians as few bytes: quantized, sorted along a space-filling curve, and compressed.

Logarithmic scales have steps of 1/16, rotations are their smallest three components in 10 bits, and opacities have 8
bits, as in SPZ (Niantic). Its harmonics, in steps of 1/16 and 1/8, cost too much quality (docs/aggregation.md).
Positions are whole numbers of a grid, sorted along the Morton curve and stored as the differences of their places on
it. All numbers are split into planes of bytes, so that the upper bytes, which are mostly zero, compress to nothing.

A file is one .xz stream with its SHA-256: a truncated or changed file cannot be read.
"""

import json
import lzma
import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.voxels import deinterleave, interleave
from momentum_gs.model.splats import Splats

_MAGIC = "momentum-gs gaussians 1"
_GRID_BITS = 16
"""The grid has 2^16 steps along the longest side of the box that holds the middle 98 % of the Gaussians."""
_MOST_BITS = 21
"""Per axis; three of them fit into the 63 bits of a place on the curve. Outliers widen the grid's step if need be."""
_MOST_RATIO = 1000
"""Of the content to the file, beyond which the count is forged. Trained Gaussians come to about 10."""
SCALE_STEP, HARMONIC_STEP = 1 / 16, 1 / 64
"""Of logarithmic scales and of harmonics. Of degree 3, harmonics take half of the file; in steps of 1/32 the file is a
fifth smaller, and on the drone scene 0.2 dB worse instead of 0.02 (docs/aggregation.md)."""
_ROTATION_LEVELS = 511
_ALPHA_LEVELS = 256
_HALF = math.sqrt(0.5)


def encode(splats: Splats) -> bytes:
    """The file's content. Gaussians are written in the order of their places on the curve.

    Encoding what was decoded moves nothing but rotations with two largest components of the same size, by a step.

    Args:
        splats: At least one Gaussian, all numbers finite.

    Raises:
        UserError: there are none, or numbers are not finite.
    """
    rows = {name: row.detach().cpu() for name, row in splats.rows().items()}
    if len(splats) == 0 or not all(bool(row.isfinite().all()) for row in rows.values()):
        raise UserError("compress: no Gaussians, or some that are not finite, expected a trained model; train it again")
    position = rows["position"].double()
    step = _grid_step(position)
    cells = (position / step).round().long()
    low = cells.amin(dim=0)
    places = interleave(cells - low)
    order = places.argsort(stable=True)
    places = places[order]
    largest, parts = _smallest_three(rows["rotation"][order])
    harmonics = _decorrelated(_harmonic_levels(rows, order))
    planes = [
        _planes(torch.diff(places, prepend=places.new_zeros(1)).numpy().astype("<u8")),
        _planes(_zigzag((rows["log_scale"][order] / SCALE_STEP).round())),
        _planes(largest.numpy().astype("u1")),
        _planes(_zigzag(parts)),
        _planes(_alpha_levels(rows["opacity"][order]).numpy().astype("u1")),
        _planes(_zigzag(harmonics)),
    ]
    header = {
        "format": _MAGIC, "count": len(splats), "sh_degree": splats.sh_degree, "step": step, "low": low.tolist()
    }  # fmt: skip
    content = json.dumps(header).encode() + b"\n" + b"".join(planes)
    return lzma.compress(content, check=lzma.CHECK_SHA256)


def decode(data: bytes, where: Path | str) -> Splats:
    """The Gaussians of a file of ``encode``, as leaves on the CPU; ``where`` names it in errors.

    Raises:
        UserError: the content is truncated, changed, or another format.
    """
    again = "expected a complete file of 'momentum-gs compress'; send it again"
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        start = unpacker.decompress(data, max_length=4096)
        line, _, begun = start.partition(b"\n")
        header = json.loads(line)
        n, degree = int(header["count"]), int(header["sh_degree"])
        step, low = float(header["step"]), torch.tensor([int(value) for value in header["low"]])
        widths = _widths(degree)
        wanted = n * sum(widths)
        if header["format"] != _MAGIC or len(low) != 3 or not 0 < step < math.inf:
            raise ValueError("another format")
        if not 0 < wanted <= len(data) * _MOST_RATIO:
            raise ValueError(f"{n} Gaussians in {len(data)} bytes")
        content = begun + unpacker.decompress(b"", max_length=wanted - len(begun) + 1)
        while not unpacker.eof and len(content) <= wanted and not unpacker.needs_input:
            content += unpacker.decompress(b"", max_length=wanted - len(content) + 1)
        if len(content) != wanted or not unpacker.eof or unpacker.unused_data:
            raise ValueError(f"{len(content)} of {wanted} bytes")
    except (lzma.LZMAError, ValueError, KeyError, TypeError, EOFError, OverflowError) as error:
        raise UserError(f"{where}: truncated or changed ({error}), {again}") from error
    return _splats(content, n, step, low, widths)


def _splats(content: bytes, n: int, step: float, low: Tensor, widths: tuple[int, ...]) -> Splats:
    ends = np.cumsum([n * width for width in widths])
    parts = [content[end - n * width : end] for end, width in zip(ends, widths, strict=True)]
    places = torch.from_numpy(_joined(parts[0], n, 8).view("<i8")[:, 0].copy()).cumsum(0)
    position = (deinterleave(places) + low).double() * step
    largest = torch.from_numpy(_joined(parts[2], n, 1)[:, 0].astype(np.int64))
    alpha = torch.from_numpy(_joined(parts[4], n, 1).astype(np.float32))
    harmonics = _correlated(_unzigzag(parts[5], n).view(n, -1, 3)).float() * HARMONIC_STEP
    return Splats(
        position=position.float(),
        sh_dc=harmonics[:, :1].contiguous(),
        sh_rest=harmonics[:, 1:].contiguous(),
        log_scale=_unzigzag(parts[1], n).float() * SCALE_STEP,
        rotation=_quaternions(largest, _unzigzag(parts[3], n)),
        opacity=((alpha + 0.5) / _ALPHA_LEVELS).logit(),
    ).as_leaves()


def _widths(degree: int) -> tuple[int, ...]:
    """Bytes per Gaussian of each part of the content."""
    if not 0 <= degree <= 3:
        raise ValueError(f"degree {degree}")
    return 8, 6, 1, 6, 1, 6 * (degree + 1) ** 2


def _grid_step(position: Float[Tensor, "n 3"]) -> float:
    """A power of two, so that positions on the grid are exact in float32 and stay where they are."""
    sample = position[:: max(1, len(position) // 100_000)]
    low, high = torch.quantile(sample, position.new_tensor([0.01, 0.99]), dim=0)
    side = max(float((high - low).max()), float(position.abs().max()) * 2**-_MOST_BITS, 2.0**-60)
    exponent = math.floor(math.log2(side)) - _GRID_BITS
    extent = float((position.amax(dim=0) - position.amin(dim=0)).max())
    while extent / 2.0**exponent >= 2**_MOST_BITS - 2:
        exponent += 1
    return float(2.0**exponent)


def _harmonic_levels(rows: dict[str, Tensor], order: Tensor) -> Float[Tensor, "n k 3"]:
    harmonics = torch.cat([rows["sh_dc"], rows["sh_rest"]], dim=1)[order]
    return (harmonics / HARMONIC_STEP).round().clamp(-8000, 8000)


def _decorrelated(levels: Float[Tensor, "n k 3"]) -> Float[Tensor, "n k3"]:
    """Green, and how red and blue differ from it: smaller numbers."""
    red, green, blue = levels.unbind(dim=2)
    return torch.stack([green, red - green, blue - green], dim=2).flatten(1)


def _correlated(levels: Int[Tensor, "n k 3"]) -> Int[Tensor, "n k 3"]:
    green, red, blue = levels.unbind(dim=2)
    return torch.stack([red + green, green, blue + green], dim=2)


def _alpha_levels(opacity: Float[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
    return (opacity.double().sigmoid() * _ALPHA_LEVELS).floor().clamp(0, _ALPHA_LEVELS - 1)


def _smallest_three(rotation: Float[Tensor, "n 4"]) -> tuple[Int[Tensor, "n 1"], Float[Tensor, "n 3"]]:
    """Which component is largest, and the levels of the others, its sign taken to be positive."""
    unit = torch.nn.functional.normalize(rotation.double(), dim=1)
    largest = unit.abs().argmax(dim=1, keepdim=True)
    unit = unit * torch.where(unit.gather(1, largest) < 0, -1.0, 1.0)
    others = unit[torch.arange(4) != largest].view(-1, 3)
    return largest, (others / _HALF * _ROTATION_LEVELS).round()


def _quaternions(largest: Int[Tensor, "n"], levels: Int[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
    others = levels.double() * (_HALF / _ROTATION_LEVELS)
    first = (1 - others.square().sum(dim=1)).clamp_min(0).sqrt()
    unit = torch.empty(len(levels), 4, dtype=torch.float64)
    unit[torch.arange(4) != largest[:, None]] = others.flatten()
    unit[torch.arange(len(levels)), largest] = first
    return unit.float()


def _zigzag(levels: Tensor) -> np.ndarray:
    """Small numbers of either sign as small unsigned ones."""
    whole = levels.numpy().astype(np.int16)
    return ((whole << 1) ^ (whole >> 15)).astype("<u2")


def _unzigzag(part: bytes, n: int) -> Int[Tensor, "n k"]:
    whole = _joined(part, n, 2).view("<u2").astype(np.int32)
    return torch.from_numpy((whole >> 1) ^ -(whole & 1)).long()


def _planes(table: np.ndarray) -> bytes:
    """First the lowest bytes of the first column, then its next ones, and so on."""
    columns = table.reshape(len(table), -1)
    return columns.view("u1").reshape(len(table), -1).T.tobytes()


def _joined(part: bytes, n: int, width: int) -> np.ndarray:
    """The inverse of ``_planes``: [n, bytes], of which ``width`` in a row make a number."""
    table = np.frombuffer(part, "u1").reshape(-1, n).T
    return np.ascontiguousarray(table).reshape(n, -1) if width else table
