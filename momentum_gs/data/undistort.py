"""Undistortion of images to pinhole images, which are kept in a cache folder in the scene.

The focal length is unchanged, so the centre of the image keeps its resolution; the image is cropped to a window whose
whole border the lens sees, so it has no black parts. A window extends from the principal point by at most the
original's width or height, since the rim of a fisheye image would be stretched without limit.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import progress, warn
from momentum_gs.data.exif import with_exif
from momentum_gs.data.images import stored_pixels
from momentum_gs.data.lens import Lens, Points

# Part of every cache key; to be increased when the same input gives other pixels.
_VERSION = 1
# Samples along each border that determine the window; between them a border of 4000 pixels deviates by under 0.01.
_SAMPLES = 257
_SLACK = 0.05
"""Pixels by which a window may exceed the outermost pixel centres, for round-off and deviations between samples."""
_SHRINK = 0.98
_SMALLEST = 0.1
"""Smallest size of a window, as a share of the original's; a lens with a smaller one is an error in the model."""
# High enough that compressing a second time is invisible; COLMAP's undistorter has a loss of the same order.
_JPEG_QUALITY = 98
# Rows that are mapped at once: few enough that their float64 arrays stay in the processor's cache.
_ROWS = 16


@dataclass(frozen=True)
class Window:
    """Size and intrinsics of an undistorted image, pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


def pinhole_window(lens: Lens) -> Window:
    """Size and intrinsics of the undistorted image of a lens.

    Raises:
        UserError: for parameters that leave no image.
    """
    center, focal = np.array(lens.center), np.array(lens.focal)
    size = np.array([lens.width, lens.height], dtype=np.float64)
    along = np.linspace(0.5, size - 0.5, _SAMPLES)  # Pixel centres; interpolation needs neighbours.
    low, high = center - size, center + size
    for axis in (0, 1):
        for value, inner, bound in ((0.5, np.fmax, low), (size[axis] - 0.5, np.fmin, high)):
            reached = lens.to_rays(_with(along, axis, value)) * focal + center
            # fmax and fmin ignore NaN: the lens model may not cover corners, or even a whole border.
            bound[axis] = inner.reduce(reached[:, axis], initial=bound[axis])
    while not _all_seen(lens, low, high):
        low, high = center + (low - center) * _SHRINK, center + (high - center) * _SHRINK
        if not ((high - low) > _SMALLEST * size).all():
            raise _no_window(lens)
    # Output pixel i covers [first + i, first + i + 1]; its centre must lie between low and high.
    first = np.ceil(low - 0.5 - 1e-6)
    count = np.floor(high - 0.5 + 1e-6) - first + 1
    if not (count >= 1).all():
        raise _no_window(lens)
    cx, cy = center - first
    return Window(int(count[0]), int(count[1]), *lens.focal, float(cx), float(cy))


def _no_window(lens: Lens) -> UserError:
    return UserError(
        f"data: a {lens.model} lens of {lens.width}x{lens.height} with focal lengths {lens.focal}, principal point "
        f"{lens.center} and parameters {list(lens.extra)} cannot be undistorted, expected a mapping that is one to "
        "one in the image; calibrate again"
    )


def _all_seen(lens: Lens, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether the whole border of a window maps into the lens's image, inside the radius where the model folds back."""
    if not (low < high).all():
        return False
    along = np.linspace(low, high, _SAMPLES)
    border = np.concatenate([_with(along, axis, value) for axis in (0, 1) for value in (low[axis], high[axis])])
    rays = (border - lens.center) / lens.focal
    pixels = lens.to_pixels(rays)
    inside = (pixels >= 0.5 - _SLACK) & (pixels <= np.array([lens.width, lens.height]) - 0.5 + _SLACK)
    return bool(inside.all() and lens.unfolded(rays).all())


def _with(points: Points, axis: int, value: float) -> Points:
    points = points.copy()
    points[:, axis] = value
    return points


Places = tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]
"""Column and row in the lens's image for each pixel of a window, relative to the centre of the first pixel."""


def places_of(lens: Lens, window: Window) -> Places:
    """The positions in the lens's image of the pixels of a window."""
    columns, lines = (np.empty((window.height, window.width), np.float32) for _ in range(2))
    x = (np.arange(window.width) + 0.5 - window.cx) / window.fx
    for start in range(0, window.height, _ROWS):
        y = (np.arange(start, min(start + _ROWS, window.height)) + 0.5 - window.cy) / window.fy
        rays = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        found = (lens.to_pixels(rays) - 0.5).reshape(len(y), -1, 2)
        columns[start : start + len(y)], lines[start : start + len(y)] = found[..., 0], found[..., 1]
    return columns, lines


def undistort(pixels: np.ndarray, places: Places, nearest: bool = False) -> np.ndarray:
    """Resamples an image of the lens, [H,W] or [H,W,C] of 8 or 16 bits and of the lens's size, at ``places``.

    Cubic interpolation at positions rounded to 1/32 pixel (cv2.remap); ``nearest`` is for masks, which must not be
    blended.
    """
    interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_CUBIC
    return cv2.remap(pixels, *places, interpolation, borderMode=cv2.BORDER_REPLICATE)


@dataclass(frozen=True)
class Job:
    """One file to undistort."""

    source: Path
    lens: Lens
    """The lens at the size of the file, for a mask at the size of its image."""
    window: Window
    target: Path
    mask: bool = False


def cached_path(folder: Path, name: str, source: Path, lens: Lens, mask: bool = False) -> Path:
    """Path of the undistorted copy of a file; it contains a hash of the file's size, modification time and lens.

    A JPEG stays a JPEG; other formats and all masks become PNG. Copies of earlier versions of a file are not removed,
    since a run may be reading them; the folder may be deleted when none does.
    """
    try:
        stat = source.stat()
        stamp = (stat.st_size, stat.st_mtime_ns)
    except OSError:  # The file is missing, which bad_images=skip allows; its copy will be missing, too.
        stamp = (-1, -1)
    key = hashlib.blake2b(repr((_VERSION, stamp, lens, mask)).encode(), digest_size=8).hexdigest()
    jpeg = source.suffix.lower() in (".jpg", ".jpeg") and not mask
    return folder / f"{name}.{key}{'.jpg' if jpeg else '.png'}"


def undistort_files(jobs: Sequence[Job], skip_bad: bool) -> None:
    """Writes the copies that do not exist yet, in parallel and atomically.

    Ranks that share a folder begin with different files and skip those that others have finished.

    Raises:
        UserError: a file cannot be read (with ``skip_bad``, a warning is printed instead) or written.
    """
    jobs = [job for job in jobs if not job.target.is_file()]
    if not jobs:
        return
    start = len(jobs) * int(os.environ.get("RANK", "0")) // int(os.environ.get("WORLD_SIZE", "1"))
    # Usually many consecutive images have the same lens, and computing the positions takes most of the time.
    kept = functools.lru_cache(maxsize=2)(places_of)
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads, progress(len(jobs), "undistorting images") as bar:
        work = [threads.submit(_undistort_file, job, kept, skip_bad) for job in [*jobs[start:], *jobs[:start]]]
        try:
            for done in work:
                done.result()
                bar.update()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _undistort_file(job: Job, places: Callable[[Lens, Window], Places], skip_bad: bool) -> None:
    if job.target.is_file():
        return
    try:
        pixels = stored_pixels(job.source)
        if pixels.shape[1::-1] != (job.lens.width, job.lens.height):
            # This is a mask; the sizes of images have been checked before.
            pixels = cv2.resize(pixels, (job.lens.width, job.lens.height), interpolation=cv2.INTER_NEAREST)
        if pixels.dtype not in (np.uint8, np.uint16):
            raise UserError(f"data: image {job.source} is of type {pixels.dtype}, expected 8 or 16 bits; convert it")
        straight = undistort(pixels, places(job.lens, job.window), nearest=job.mask)
        _, encoded = cv2.imencode(job.target.suffix, straight, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        data = with_exif(encoded.tobytes(), job.source)
    except UserError as error:
        if not skip_bad:
            raise
        warn(f"{error} (skipped: scene.bad_images=skip)")
        return
    except cv2.error as error:
        raise UserError(
            f"data: image {job.source} of shape {pixels.shape} cannot be undistorted ({error.err}), expected sides "
            "below 32767 pixels; make it smaller"
        ) from error
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(job.target) as part:
            part.write_bytes(data)
    except OSError as error:
        raise UserError(
            f"{job.target.parent}: undistorted images cannot be written ({error.strerror}); set a writable folder "
            "with scene.undistort_folder"
        ) from error
