"""The SOG format of PlayCanvas: a zip archive of textures (WebP) with their description (meta.json).

It is written by the format's own converter (``converter.py``), and read by the package gsply where that can decode
WebP, otherwise by the converter. Archives are checked first, as neither is made for hostile files.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

from momentum_gs.core.errors import UserError
from momentum_gs.formats.packed import splats_of
from momentum_gs.model.splats import Splats

_META, _MOST_META = "meta.json", 1 << 20
_CODEBOOK = 256
_TEXTURES = {"means": 2, "scales": 1, "quats": 1, "sh0": 1, "shN": 2}
"""Attribute -> number of its textures."""
_SPARE = 1 << 22
"""Pixels that a texture may have beyond four per Gaussian: the palette of harmonics is of the order of 64k x 15."""


def reads_sog() -> bool:
    """Whether gsply and the package with which it decodes WebP are installed."""
    try:
        import gsply.sog_reader
    except ImportError:
        return False
    return gsply.sog_reader.imagecodecs is not None


def read_sog(path: Path) -> Splats:
    """Reads Gaussians with gsply (``reads_sog``).

    Raises:
        UserError: the archive is damaged or not a SOG file.
    """
    check_sog(path)
    from gsply.sog_reader import sogread

    try:
        return splats_of(sogread(path.read_bytes()))
    except Exception as error:  # Of gsply, numpy and imagecodecs, which have no common base class.
        raise _unreadable(path, str(error)) from error


def check_sog(path: Path) -> None:
    """Checks the archive's names, sizes and description.

    Raises:
        UserError: it is damaged, of another version, or refers to files outside of itself.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = _wrong(archive, path.stat().st_size)
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, RuntimeError, NotImplementedError,
            EOFError, RecursionError) as error:  # fmt: skip
        raise _unreadable(path, str(error)) from error
    except Exception as error:  # zlib.error is a subclass of none of them.
        raise _unreadable(path, str(error)) from error
    if wrong:
        raise _unreadable(path, wrong)


def _unreadable(path: Path, wrong: str) -> UserError:
    reason = (wrong.splitlines() or ["damaged"])[0][:200]
    return UserError(
        f"{path}: {reason}, expected a complete SOG archive (version 2); copy or export the file again"
    )


def _wrong(archive: zipfile.ZipFile, size: int) -> str:
    """What is wrong with the archive; empty: nothing. Raises what a damaged archive or description raises."""
    entries = {entry.filename: entry for entry in archive.infolist()}
    for name in entries:
        if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
            return f"the entry {name!r} is in a folder"
    if _META not in entries or entries[_META].file_size > _MOST_META:
        return f"no {_META} of at most {_MOST_META} bytes"
    # Textures are compressed already, so archives hold them as they are.
    if sum(entry.file_size for entry in entries.values()) > 4 * size + _MOST_META:
        return "entries that unpack to more than four times the archive"
    meta = json.loads(archive.read(_META))
    if meta["version"] != 2:
        return f"version {meta['version']!r}"
    count = meta["count"]
    if not isinstance(count, int) or count < 1:
        return f"count {count!r}"
    for key, files in _TEXTURES.items():
        if key in meta:
            wrong = _wrong_attribute(archive, key, meta[key], files, count)
            if wrong:
                return wrong
        elif key != "shN":
            return f"no {key} in {_META}"
    return ""


def _wrong_attribute(archive: zipfile.ZipFile, key: str, about: dict[str, Any], files: int, count: int) -> str:
    names = about["files"]
    if len(names) != files or not all(name in archive.namelist() for name in names):
        return f"{key} names files {names!r} that are not in the archive"
    if key in ("scales", "sh0", "shN") and len(about["codebook"]) != _CODEBOOK:
        return f"a codebook of {len(about['codebook'])} numbers for {key}"
    if key == "shN" and about["bands"] not in (1, 2, 3):
        return f"{about['bands']!r} bands of harmonics"
    if key == "means" and not len(about["mins"]) == len(about["maxs"]) == 3:
        return "bounds of the positions that are not three numbers"
    for name in names:
        with archive.open(name) as texture:
            width, height = _webp_size(texture.read(30))
        if width * height > 4 * count + _SPARE:
            return f"{name} of {width} x {height} pixels for {count} Gaussians"
    return ""


def _webp_size(start: bytes) -> tuple[int, int]:
    """Width and height of a lossless WebP image, from its header. Raises ValueError for any other image.

    Source: WebP lossless bitstream specification, section 3.
    """
    if start[:4] != b"RIFF" or start[8:16] != b"WEBPVP8L" or len(start) < 25 or start[20] != 0x2F:
        raise ValueError("a texture that is no lossless WebP image")
    bits = int.from_bytes(start[21:25], "little")
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
