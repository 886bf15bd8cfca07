"""Image files: size from the header, decoding to 8-bit RGB, area resampling, writing.

Pixels are used as they are stored: EXIF orientation is ignored, as in COLMAP, so that image and intrinsics agree.
16-bit images are rounded to 8 bits, grey ones repeated over the channels, transparent ones composited.
"""

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.image import to_uint8

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
"""Suffixes of image files, in lower case."""
# With -r -1, images wider than this are scaled down to it (3DGS utils/camera_utils.py::loadCam).
MAX_WIDTH = 1600
# Smaller widths are probably a mistyped divisor (-r 3); SSIM's window alone is 11 pixels wide.
MIN_WIDTH = 16

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = b"\xff\xd9"
# JPEG markers that carry the size: SOF0 to SOF15 without DHT, JPG and DAC, which share their range.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file, pixels; JPEG and PNG from the header alone, other formats by decoding.

    Raises:
        UserError: the file cannot be read or is no image.
    """
    try:
        with path.open("rb") as file:
            head = file.read(24)
            if head.startswith(_PNG) and head[12:16] == b"IHDR" and len(head) == 24:
                width, height = struct.unpack(">II", head[16:])
                if width and height:
                    return width, height
            if head.startswith(_JPEG):
                for marker, segment in jpeg_segments(file):
                    if marker in _FRAMES and len(segment) >= 5:
                        height, width = struct.unpack(">HH", segment[1:5])
                        if width and height:  # Height 0: it follows the first scan, so decode.
                            return width, height
    except OSError as error:
        raise _unreadable(path, error) from error
    height, width = stored_pixels(path).shape[:2]
    return width, height


def target_size(width: int, height: int, resolution: float | int) -> tuple[int, int]:
    """Training size of an image, the ``-r`` of 3DGS codebases (3DGS utils/camera_utils.py::loadCam).

    1, 2, 4 and 8 divide both sides, rounded; any other positive number is the width; -1 limits the width to 1600. A
    given width is met exactly (3DGS loses a pixel for some sizes), and the height is rounded down.

    Raises:
        UserError: for a width below 16 pixels.
    """
    if resolution in (1, 2, 4, 8):
        return max(1, round(width / resolution)), max(1, round(height / resolution))
    if resolution == -1 and width <= MAX_WIDTH:
        return width, height
    wanted = MAX_WIDTH if resolution == -1 else int(resolution)
    if wanted < MIN_WIDTH:
        raise UserError(
            f"scene.resolution: {resolution:g} means images {wanted} pixels wide, expected 1, 2, 4 or 8 (divisors of "
            f"the size), a width of at least {MIN_WIDTH}, or -1; change it (-r)"
        )
    return wanted, max(1, height * wanted // width)


def same_aspect(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) differ by one scale, up to rounding of each side to whole pixels.

    E.g. images_4 of 4000x3003 is 1000x751.
    """
    smallest = max((side - 1) / of for side, of in zip(a, b, strict=True))
    largest = min((side + 1) / of for side, of in zip(a, b, strict=True))
    return smallest < largest


def read_image(path: Path, width: int, height: int, white_background: bool = False) -> UInt8[Tensor, "3 h w"]:
    """Decodes an image file to RGB at a given size.

    Uses area resampling (cv2.INTER_AREA) to shrink an image, cubic interpolation to enlarge it. Transparent pixels are
    composited onto black or white, as renders are.

    Raises:
        UserError: the file is missing, damaged, truncated or of an unsupported pixel type.
    """
    pixels = stored_pixels(path)
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=1 / 257)  # 65535 -> 255
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if pixels.dtype != np.uint8 or channels not in (1, 3, 4):
        raise UserError(
            f"data: image {path} has {channels} channels of type {pixels.dtype}, expected grey, RGB or RGBA of 8 or 16 "
            "bits; convert it"
        )
    if channels == 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    elif channels == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    else:
        pixels = _composite(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA), 255 if white_background else 0)
    if pixels.shape[:2] != (height, width):
        shrinks = width <= pixels.shape[1] and height <= pixels.shape[0]
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def write_png(path: Path, image: Float[Tensor, "3 h w"]) -> None:
    """Writes an RGB image in [0, 1] as an 8-bit PNG and creates its folder; values outside are clamped."""
    rgb = to_uint8(image.detach()).cpu().numpy().transpose(1, 2, 0)
    _, data = cv2.imencode(".png", cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2BGR))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def _composite(rgba: np.ndarray, background: int) -> np.ndarray:
    """RGBA pixels [H,W,4] composited onto a grey level, [H,W,3]."""
    if rgba[..., 3].min() == 255:
        return rgba[..., :3]
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return (rgba[..., :3] * alpha + background * (1 - alpha)).round().astype(np.uint8)


def stored_pixels(path: Path) -> np.ndarray:
    """Pixels as they are stored, [H,W] or [H,W,C] in OpenCV's channel order, without EXIF rotation.

    Raises:
        UserError: the file is missing, damaged or truncated.
    """
    return decode_image(path, cv2.IMREAD_UNCHANGED)


def decode_image(path: Path, flags: int) -> np.ndarray:
    """Decodes an image file. Unlike ``cv2.imread`` it refuses truncated files and opens every path that Python can.

    Args:
        path: The file.
        flags: Those of ``cv2.imread``.

    Raises:
        UserError: the file is missing, damaged or truncated.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    pixels = None
    if data and not _is_cut_off(data):
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:
            raise UserError(f"data: image {path} cannot be decoded ({error.err}); replace the file") from error
    if pixels is None:
        raise UserError(f"data: image {path} ({len(data)} bytes) is truncated or no image; copy the file again")
    return pixels


def _is_cut_off(data: bytes) -> bool:
    """Whether a JPEG lacks its end. OpenCV 4 fills the missing part with grey and only warns."""
    if not data.startswith(_JPEG):
        return False
    file = io.BytesIO(data)
    for marker, _ in jpeg_segments(file):
        if marker == _START_OF_SCAN:
            # In compressed pixel data a zero follows every 0xFF, so the end marker cannot occur inside it.
            return data.find(_END_OF_IMAGE, file.tell()) < 0
    return True


def jpeg_segments(file: io.BufferedReader | io.BytesIO) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment of a JPEG's header, up to and including the start of the first scan."""
    file.seek(len(_JPEG))
    while True:
        lead, code = file.read(1), file.read(1)
        while code == b"\xff":  # fill bytes
            code = file.read(1)
        length = file.read(2)
        if lead != b"\xff" or not code or len(length) < 2:
            return
        segment = file.read(max(0, int.from_bytes(length, "big") - 2))
        yield code[0], segment
        if code[0] == _START_OF_SCAN:
            return


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"data: image {path} cannot be read ({error.strerror}); restore the file")
