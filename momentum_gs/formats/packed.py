"""The compressed PLY of PlayCanvas and Niantic's SPZ, through the package gsply."""

import gzip
import math
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from plyfile import PlyData, PlyElement, PlyParseError
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.voxels import morton
from momentum_gs.model.splats import Splats

_CHUNK = 256
"""Gaussians of a compressed PLY that share bounds."""
_TINY = 1e-6
"""A number that the compressed PLY rounds to the step above zero, or below."""
_MAGIC, _GZIP = b"NGSP", b"\x1f\x8b"
_POSITION_BITS = 24
"""SPZ stores positions as signed fixed-point numbers of this length."""
_MOST_FRACTION = 20
"""Fraction bits beyond which SPZ gains nothing: float32 itself has no more for positions of some units."""
_LEAST_FRACTION = 5
"""Fewest fraction bits of an SPZ file that is written: with fewer, positions would be off by more than 1/64 unit."""
SPZ_LARGEST = 255 / 16 - 10
"""Logarithm of the largest size that SPZ stores: 380 units."""
_SH_BYTES = {0: 0, 1: 9, 2: 24, 3: 45}
_SLACK = 1 << 20
"""Bytes that may follow the Gaussians in an SPZ file (extensions)."""
_MOST_RATIO = 1032
"""Highest ratio to which deflate compresses (zlib's technical notes)."""


def gsply(path: Path) -> ModuleType:
    """The package gsply. Raises UserError if it is not installed."""
    try:
        import gsply
    except ImportError as error:
        raise UserError(
            f"{path}: the package gsply is not installed, expected it for this format; pip install "
            "'momentum-gs[export]', or choose .ply or .splat"
        ) from error
    return gsply


def write_compressed_ply(path: Path, splats: Splats) -> None:
    """Writes Gaussians in Morton order, as 256 neighbours in the file share the bounds of their quantization."""
    package = gsply(path)
    order = morton(splats.position.detach(), torch.zeros(3)).argsort()
    splats = splats.subset(order)
    data = _packed(package, Splats.from_rows({**splats.rows(), "sh_rest": _signed(splats.sh_rest)}))
    with replacing(path) as temporary:
        temporary.write_bytes(package.compress_to_bytes(data))


@torch.no_grad()
def _signed(values: Tensor) -> Tensor:
    """Harmonics with zeros of either sign, at random: the format has no zero, but 1/64 and -1/64. If all were read as
    1/64, Gaussians without view-dependent colours would all be too bright in the same directions."""
    zero = values == 0
    up = torch.rand(int(zero.sum()), generator=torch.Generator().manual_seed(0)) < 0.5
    signed = values.detach().clone()
    signed[zero] = torch.where(up, _TINY, -_TINY).to(values)
    return signed


def read_compressed_ply(path: Path) -> Splats:
    """Raises UserError if the file is damaged or another kind of PLY, or gsply is missing."""
    wrong = _wrong_compressed_ply(path)
    if wrong:
        raise UserError(
            f"{path}: {wrong}, expected a compressed PLY of PlayCanvas; rename it to .ply if it is an ordinary one, "
            "otherwise export it again"
        )
    return _splats(path, gsply(path).plyread(path))


def write_spz(path: Path, splats: Splats) -> None:
    """Writes SPZ version 3 (gzip), which all readers of the format know.

    Positions have as many fraction bits as their largest coordinate leaves.

    Raises:
        UserError: gsply is missing, or the Gaussians are too far from the origin.
    """
    largest = float(splats.position.detach().abs().max())
    bits = min(_POSITION_BITS - 1 - max(math.ceil(math.log2(max(largest, 1.0) * (1 + 2**-20))), 0), _MOST_FRACTION)
    if bits < _LEAST_FRACTION:
        raise UserError(
            f"{path}: a position {largest:.6g} units from the origin, expected at most "
            f"{2 ** (_POSITION_BITS - 1 - _LEAST_FRACTION)} for the 24 bits of an .spz; shift the model (scene.offset) "
            "or choose another format"
        )
    package = gsply(path)
    with replacing(path) as temporary:
        package.write_spz(temporary, _packed(package, splats), version=3, fractional_bits=bits)


def read_spz(path: Path) -> Splats:
    """Reads SPZ of versions 1 to 3, and version 4 if the package zstandard is installed.

    Raises:
        UserError: the file is damaged or no SPZ, or a package is missing.
    """
    wrong = _wrong_spz(path)
    if wrong:
        raise UserError(f"{path}: {wrong}, expected a complete SPZ file; copy or export it again")
    package = gsply(path)
    try:
        return _splats(path, package.read_spz(path))
    except Exception as error:  # Of zlib, zstandard and gsply, which have no common base class.
        raise UserError(f"{path}: not readable as SPZ ({_line(error)}); copy or export the file again") from error


def needs_zstandard(path: Path) -> bool:
    """Whether this is an SPZ of version 4, which is compressed with Zstandard, and the package for it is missing."""
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            return False
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return True
    return False


def splats_of(data: Any) -> Splats:
    """The Gaussians of a gsply container whose numbers are those of a PLY."""
    count = len(data.means)
    rest = np.zeros((count, 0, 3), np.float32) if data.shN is None else data.shN

    def tensor(values: np.ndarray, *shape: int) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=np.float32, order="C")).reshape(count, *shape)

    return Splats(
        position=tensor(data.means, 3),
        sh_dc=tensor(data.sh0, 1, 3),
        sh_rest=tensor(rest, rest.shape[1], 3),
        log_scale=tensor(data.scales, 3),
        rotation=tensor(data.quats, 4),
        opacity=tensor(data.opacities, 1),
    ).as_leaves()


def _splats(path: Path, data: Any) -> Splats:
    splats = splats_of(data)
    if not all(bool(rows.isfinite().all()) for rows in splats.rows().values()):
        raise UserError(f"{path}: holds numbers that are not finite, expected Gaussians; export the file again")
    return splats


def _packed(package: ModuleType, splats: Splats) -> Any:
    rows = {name: tensor.detach().cpu().float().numpy() for name, tensor in splats.rows().items()}
    # Without the format, gsply guesses from the values whether scales and opacities are logarithmic.
    return package.GSData.from_arrays(
        rows["position"], rows["log_scale"], _unit(rows["rotation"]), rows["opacity"][:, 0], rows["sh_dc"][:, 0],
        rows["sh_rest"], format="ply",
    )  # fmt: skip


def _unit(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternions; gsply's kernels expect them."""
    length: np.ndarray = np.linalg.norm(rotation, axis=1, keepdims=True)
    return (rotation / length).astype(np.float32)


def _wrong_compressed_ply(path: Path) -> str:
    """What is wrong with the file, checked here because gsply's kernels do not check bounds; empty: nothing."""
    try:
        elements = {element.name: element for element in PlyData.read(str(path)).elements}
    except (PlyParseError, ValueError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        return f"not a readable PLY ({_line(error)})"
    if "chunk" not in elements or "vertex" not in elements:
        return f"elements {', '.join(elements) or 'none'} and no chunks"
    chunk, vertex, sh = elements["chunk"], elements["vertex"], elements.get("sh")
    if _types(chunk) != ["<f4"] * 18:
        return f"{len(chunk.properties)} numbers in a chunk instead of the 18 floats of the current format"
    if _types(vertex) != ["<u4"] * 4:
        return "vertices other than four packed numbers"
    if chunk.count != -(-vertex.count // _CHUNK):
        return f"{chunk.count} chunks of {_CHUNK} for {vertex.count} Gaussians"
    if vertex.count == 0:
        return "0 Gaussians"
    if sh is not None and (sh.count != vertex.count or len(sh.properties) not in _SH_BYTES.values()):
        return f"{sh.count} x {len(sh.properties)} harmonics for {vertex.count} Gaussians"
    if sh is not None and _types(sh) != ["|u1"] * len(sh.properties):
        return "harmonics of more than one byte"
    return ""


def _types(element: PlyElement) -> list[str]:
    dtype = element.data.dtype
    return [dtype[name].str for name in dtype.names or ()]


def _wrong_spz(path: Path) -> str:
    """What is wrong with the file, as far as its header and its size tell; empty: nothing.

    A forged count or a bomb must not make gsply allocate more than the file can hold.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(32)
    try:
        if start[:2] == _GZIP:
            with gzip.open(path, "rb") as stream:
                return _wrong_gzip(stream, size)
        if start[:4] == _MAGIC and len(start) == 32:
            _, version, count, degree = struct.unpack_from("<IIIB", start)
            if version != 4 or degree not in _SH_BYTES:
                return f"version {version} and degree {degree}"
            if not 0 < count * (20 + _SH_BYTES[degree]) <= size * _MOST_RATIO:
                return f"{count} Gaussians in {size} bytes"
            return ""
    except (OSError, EOFError, ValueError) as error:  # gzip.BadGzipFile is an OSError.
        return f"damaged compression ({_line(error)})"
    except Exception as error:  # zlib.error, which is not a subclass of the above.
        return f"damaged compression ({_line(error)})"
    return "neither gzip nor NGSP at its start"


def _wrong_gzip(stream: gzip.GzipFile, size: int) -> str:
    header = stream.read(16)
    if len(header) < 16 or header[:4] != _MAGIC:
        return "no SPZ header in the gzip stream"
    version, count, degree = struct.unpack_from("<IIB", header, 4)
    if version not in (1, 2, 3) or degree not in _SH_BYTES:
        return f"version {version} and degree {degree}"
    wanted = count * (16 + (4 if version == 3 else 3) + _SH_BYTES[degree])
    if not 0 < wanted <= size * _MOST_RATIO:
        return f"{count} Gaussians in {size} bytes"
    found = 0
    while part := stream.read(1 << 20):
        found += len(part)
        if found > wanted + _SLACK:
            return f"more than the {wanted} bytes of {count} Gaussians"
    return "" if found >= wanted else f"{found} of the {wanted} bytes of {count} Gaussians"


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
