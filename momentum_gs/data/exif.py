"""EXIF metadata (version 2.3) of JPEG files: the capture time, and copying of the whole segment."""

import struct
from datetime import datetime, timezone
from pathlib import Path

from momentum_gs.data.images import jpeg_segments

_JPEG = b"\xff\xd8"
_APP1 = 0xE1
_LEAD = b"Exif\0\0"
# Tags: ExifIFD, DateTimeOriginal, and SubSecTimeOriginal before SubSecTime. Then the types ASCII and LONG.
_NOTES, _TAKEN, _FRACTIONS = 0x8769, 0x9003, (0x9291, 0x9290)
_TEXT, _NUMBER = 2, 4


def with_exif(image: bytes, source: Path) -> bytes:
    """A JPEG file with the EXIF segment of ``source``; unchanged if it is no JPEG or ``source`` has no such segment."""
    notes = _segment(source) if image.startswith(_JPEG) else None
    if notes is None:
        return image
    return _JPEG + struct.pack(">BBH", 0xFF, _APP1, len(notes) + 2) + notes + image[len(_JPEG) :]


def capture_time(path: Path) -> float | None:
    """Capture time of an image (DateTimeOriginal and its sub-seconds); None if its file has none.

    Seconds since 1970 by the camera's clock. Its time zone is ignored, so only differences have a meaning.
    """
    notes = _segment(path)
    return None if notes is None else _taken(notes[len(_LEAD) :])


def _segment(path: Path) -> bytes | None:
    """The EXIF segment, including its leading identifier."""
    try:
        with path.open("rb") as file:
            if file.read(len(_JPEG)) != _JPEG:
                return None
            segments = jpeg_segments(file)
            return next((data for marker, data in segments if marker == _APP1 and data.startswith(_LEAD)), None)
    except OSError:  # Reading the pixels reports the error.
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
    except (struct.error, KeyError, ValueError):  # Truncated, without a time, or with a time of zeros.
        return None
    digits = next((str(found[tag]) for tag in _FRACTIONS if tag in found), "")
    return taken.timestamp() + (float(f"0.{digits}") if digits.isdecimal() else 0.0)


def _directory(tiff: bytes, order: str, at: int) -> dict[int, str | int]:
    """Tag -> value for the entries of a TIFF directory that are text or 32-bit numbers."""
    found: dict[int, str | int] = {}
    (count,) = struct.unpack_from(order + "H", tiff, at)
    for i in range(count):
        tag, kind, size, value = struct.unpack_from(order + "HHII", tiff, at + 2 + 12 * i)
        if kind == _NUMBER:
            found[tag] = value
        elif kind == _TEXT:  # Up to four bytes are stored in place of the offset.
            start = value if size > 4 else at + 2 + 12 * i + 8
            if start + size <= len(tiff):
                found[tag] = tiff[start : start + size].split(b"\0")[0].decode("latin-1").strip()
    return found
