"""What a camera notes in a JPEG file beside the pixels (EXIF 2.3): when it was taken, and the notes as a whole."""

import struct
from datetime import datetime, timezone
from pathlib import Path

from momentum_gs.data.images import jpeg_segments

_JPEG = b"\xff\xd8"
_APP1 = 0xE1
_LEAD = b"Exif\0\0"
# Tags: the directory of the camera's notes; the time an image was taken; two for the fraction of its second.
_NOTES, _TAKEN, _FRACTIONS = 0x8769, 0x9003, (0x9291, 0x9290)
_TEXT, _NUMBER = 2, 4


def with_exif(image: bytes, source: Path) -> bytes:
    """A JPEG file with the notes of another one, byte for byte; as it is where it is no JPEG or the other has none."""
    notes = _segment(source) if image.startswith(_JPEG) else None
    if notes is None:
        return image
    return _JPEG + struct.pack(">BBH", 0xFF, _APP1, len(notes) + 2) + notes + image[len(_JPEG) :]


def capture_time(path: Path) -> float | None:
    """When an image was taken (DateTimeOriginal and SubSecTimeOriginal), seconds; None where its file does not say.

    Seconds since 1970 by the camera's clock, whose time zone is not asked for: differences are what they are good for.
    """
    notes = _segment(path)
    return None if notes is None else _taken(notes[len(_LEAD) :])


def _segment(path: Path) -> bytes | None:
    """The notes with the letters that they begin with."""
    try:
        with path.open("rb") as file:
            if file.read(len(_JPEG)) != _JPEG:
                return None
            segments = jpeg_segments(file)
            return next((data for marker, data in segments if marker == _APP1 and data.startswith(_LEAD)), None)
    except OSError:  # Who reads the pixels will say so.
        return None


def _taken(tiff: bytes) -> float | None:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        notes = _directory(tiff, order, first).get(_NOTES)
        found = _directory(tiff, order, notes) if isinstance(notes, int) else {}
        taken = datetime.strptime(str(found[_TAKEN]), "%Y:%m:%d %H:%M:%S").replace(tzinfo=timezone.utc)
    except (struct.error, KeyError, ValueError):  # Cut off, without a time, or one of zeros.
        return None
    digits = next((str(found[tag]) for tag in _FRACTIONS if tag in found), "")
    return taken.timestamp() + (float(f"0.{digits}") if digits.isdecimal() else 0.0)


def _directory(tiff: bytes, order: str, at: int) -> dict[int, str | int]:
    """Tag -> value of a TIFF directory's entries that are texts or numbers of 32 bits."""
    found: dict[int, str | int] = {}
    (count,) = struct.unpack_from(order + "H", tiff, at)
    for i in range(count):
        tag, kind, size, value = struct.unpack_from(order + "HHII", tiff, at + 2 + 12 * i)
        if kind == _NUMBER:
            found[tag] = value
        elif kind == _TEXT:  # Four letters and fewer stand in the place of their address.
            start = value if size > 4 else at + 2 + 12 * i + 8
            if start + size <= len(tiff):
                found[tag] = tiff[start : start + size].split(b"\0")[0].decode("latin-1").strip()
    return found
