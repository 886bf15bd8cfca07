"""Writes explicit Gaussians in the format that the file's suffix names."""

import tempfile
from pathlib import Path

import torch

from momentum_gs.core.errors import UserError
from momentum_gs.formats.converter import convert, converter_for
from momentum_gs.formats.kinds import format_of
from momentum_gs.formats.packed import gsply, write_compressed_ply, write_spz
from momentum_gs.formats.splat_file import write_splat_file
from momentum_gs.model.ply import chunks
from momentum_gs.model.splat_io import save_splats
from momentum_gs.model.splats import Splats


def check_writer(path: Path) -> None:
    """Raises UserError if the package or program that writes the format of this name is missing."""
    kind = format_of(path)
    if kind == ".sog":
        converter_for(path)
    elif kind in (".compressed.ply", ".spz"):
        gsply(path)


def write_splats(path: Path, splats: Splats) -> None:
    """Writes Gaussians as ``.ply``, ``.compressed.ply``, ``.splat``, ``.spz`` or ``.sog``, atomically.

    ``.ply`` and ``.splat`` keep the order of the rows and are written in parts, so that they need little memory beside
    the Gaussians. A ``.ply`` has degree 0 or 3, which is what viewers read: degrees 1 and 2 are filled with zeros.

    Args:
        path: The file, in an existing folder; its suffix chooses the format (``FORMATS``).
        splats: At least one Gaussian, all numbers finite.

    Raises:
        UserError: the suffix is unknown, the numbers are not finite, the positions do not fit the format, or a program
            or package that the format needs is missing.
    """
    kind = format_of(path)
    _check(path, splats)
    if kind == ".ply":
        save_splats(path, with_degree(splats, 3) if splats.sh_degree in (1, 2) else splats)
    elif kind == ".splat":
        write_splat_file(path, splats)
    elif kind == ".compressed.ply":
        write_compressed_ply(path, splats)
    elif kind == ".spz":
        write_spz(path, splats)
    else:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".write.") as folder:
            plain = Path(folder) / "gaussians.ply"
            save_splats(plain, splats)
            convert(plain, path, path)


def with_degree(splats: Splats, degree: int) -> Splats:
    """The Gaussians with harmonics up to another degree: further coefficients are zero, those above are dropped."""
    wanted, found = (degree + 1) ** 2 - 1, splats.sh_rest.shape[1]
    rest = splats.sh_rest[:, :wanted]
    if wanted > found:
        rest = torch.cat([rest, rest.new_zeros(len(splats), wanted - found, 3)], dim=1)
    return Splats.from_rows({**splats.rows(), "sh_rest": rest}).as_leaves()


def _check(path: Path, splats: Splats) -> None:
    if len(splats) == 0:
        raise UserError(f"{path}: 0 Gaussians to write, expected at least one; check the model and the crop")
    for name, rows in splats.rows().items():
        if not all(bool(rows[part].detach().isfinite().all()) for part in chunks(len(splats))):
            raise UserError(
                f"{path}: {name} holds numbers that are not finite, expected finite ones; train the model again, "
                "or remove these Gaussians"
            )
