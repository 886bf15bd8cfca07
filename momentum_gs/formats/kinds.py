"""The file formats of explicit Gaussians, each chosen by the suffix of a file's name."""

from pathlib import Path

from momentum_gs.core.errors import UserError

FORMATS = {
    ".compressed.ply": "compressed PLY of PlayCanvas",
    ".ply": "PLY of 3D Gaussian Splatting",
    ".splat": "splat file of antimatter15, without view-dependent colours",
    ".spz": "SPZ of Niantic",
    ".sog": "SOG of PlayCanvas",
}
"""Suffix -> what it is. A suffix comes before those that it ends with."""


def format_of(path: Path) -> str:
    """The suffix in ``FORMATS`` that the file's name has, in lower case.

    Raises:
        UserError: it has none of them.
    """
    name = path.name.lower()
    for suffix in FORMATS:
        if name.endswith(suffix):
            return suffix
    raise UserError(
        f"{path}: a name that ends in none of the known suffixes, expected one of {', '.join(sorted(FORMATS))}; rename "
        "the file, or choose one of these formats"
    )


def is_splat_file(path: Path) -> bool:
    """Whether the name has one of the suffixes."""
    return path.name.lower().endswith(tuple(FORMATS))
