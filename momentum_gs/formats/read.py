"""Reads explicit Gaussians from a file of any known format."""

import tempfile
from pathlib import Path

from momentum_gs.core.errors import UserError
from momentum_gs.formats.converter import INSTALL, convert, find_converter
from momentum_gs.formats.kinds import FORMATS, format_of
from momentum_gs.formats.packed import needs_zstandard, read_compressed_ply, read_spz
from momentum_gs.formats.sog import check_sog, read_sog, reads_sog
from momentum_gs.formats.splat_file import read_splat_file
from momentum_gs.model.splat_io import load_splats
from momentum_gs.model.splats import Splats

_STARTS = {b"ply\n": "a PLY", b"ply\r": "a PLY", b"PK\x03\x04": "a zip archive, such as .sog",
           b"\x1f\x8b": "a gzip file, such as .spz", b"NGSP": "an SPZ file (.spz)"}  # fmt: skip
_FITTING: dict[str, tuple[str, ...]] = {
    ".ply": ("a PLY",), ".compressed.ply": ("a PLY",), ".sog": ("a zip archive",), ".spz": ("a gzip", "an SPZ"),
    ".splat": (),
}  # fmt: skip
"""Format -> how what its files begin with is called in ``_STARTS``; nothing: they begin with numbers."""


def read_splats(path: Path) -> Splats:
    """The Gaussians of a ``.ply``, ``.compressed.ply``, ``.splat``, ``.spz`` or ``.sog`` file, as leaves on the CPU.

    Raises:
        UserError: the file is missing, truncated or of another format than its suffix says, or a package or program
            that the format needs is missing.
    """
    kind = format_of(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected a {FORMATS[kind]}; check the path")
    _check_start(path, kind)
    if kind == ".ply":
        _check_uncompressed(path)
        return load_splats(path)
    if kind == ".splat":
        return read_splat_file(path)
    if kind == ".compressed.ply":
        return read_compressed_ply(path)
    if kind == ".spz":
        return _converted(path) if needs_zstandard(path) else read_spz(path)
    if reads_sog():
        return read_sog(path)
    check_sog(path)
    return _converted(path)


def _converted(path: Path) -> Splats:
    """The Gaussians of a file that no installed package reads, through the external converter."""
    if find_converter() is None:
        raise UserError(
            f"{path}: nothing that is installed reads it, expected gsply with its packages or splat-transform; pip "
            f"install 'gsply[sogs,spz]==0.4.6', or {INSTALL}"
        )
    with tempfile.TemporaryDirectory(prefix="momentum_gs.") as folder:
        plain = Path(folder) / "gaussians.ply"
        convert(path, plain, path)
        return load_splats(plain)


def _check_start(path: Path, kind: str) -> None:
    """Raises UserError if the file begins like one of another format."""
    with path.open("rb") as file:
        start = file.read(4)
    found = next((name for begin, name in _STARTS.items() if start.startswith(begin)), None)
    fitting = _FITTING[kind]
    if (found is None and not fitting) or (found is not None and fitting and found.startswith(fitting)):
        return
    raise UserError(
        f"{path}: {found or 'a file of unknown content'}, expected a {FORMATS[kind]} ({kind}); correct the suffix, or "
        "copy the file again"
    )


def _check_uncompressed(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(1 << 16).partition(b"end_header")[0]
    if b" packed_position" in header:
        raise UserError(
            f"{path}: a compressed PLY, expected a {FORMATS['.ply']}; rename it so that it ends in .compressed.ply"
        )
