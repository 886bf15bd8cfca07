"""Checks of image files: missing, not in the model, unreadable, of the wrong shape, duplicate or badly exposed."""

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from momentum_gs.core.errors import UserError
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera
from momentum_gs.data.images import image_size, read_image, stored_pixels
from momentum_gs.data.scene import same_shape
from momentum_gs.doctor.findings import Finding, Severity, some

MANY_EXTRA = 0.2
"""Share of unregistered images above which the reconstruction has probably broken apart."""
ODD_STOPS = 1.5
"""Smallest deviation from the median brightness that is reported, in stops (factors of two of light), however little
the exposures vary."""
SPREAD_STOPS = 2.0
"""Largest range of mean brightness without a warning, in stops, from the 5th to the 95th percentile. The content of the
images alone causes more than one: 1.4 for the fields, roofs and trees of Caliterra."""
GAMMA = 2.2
"""Exponent of the curve with which images are stored, accurate enough to count stops."""
BLACK = 1e-4
"""Mean linear light, as a share of white, below which an image counts as black: about 4 of 255 levels."""
_SAMPLES = 128
# Each thread decodes an image at full size into memory.
MAX_THREADS = 8


@dataclass(frozen=True)
class ImageFacts:
    """What is known about an image file."""

    name: str
    path: Path
    size: tuple[int, int] | None
    """Width and height in pixels; None if the file is unreadable."""
    trouble: str | None = None
    """Why it is unreadable; None if it is readable."""
    bits: int = 8
    """Bits per channel."""
    channels: int = 3
    light: float | None = None
    """Mean linear light in [0, 1]; None if the pixels were not read."""
    digest: str | None = None
    """Hash of the file's bytes; None if the pixels were not read."""


def inspect_images(paths: Mapping[str, Path], *, quick: bool = False) -> list[ImageFacts]:
    """Reads image files in parallel.

    Args:
        paths: Image name -> its file; all exist.
        quick: Read only the headers; then damaged pixels, duplicates and exposure are not found.

    Returns:
        The facts in the order of ``paths``.
    """
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    try:
        with progress(len(paths), "images") as bar:
            facts = []
            for fact in pool.map(lambda item: _inspect(item[0], item[1], quick), paths.items()):
                facts.append(fact)
                bar.update()
        return facts
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C would otherwise wait for thousands of decodes.


def _inspect(name: str, path: Path, quick: bool) -> ImageFacts:
    try:
        if quick:
            return ImageFacts(name, path, image_size(path))
        pixels = stored_pixels(path)
        height, width = pixels.shape[:2]
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        if pixels.dtype not in (np.uint8, np.uint16) or channels not in (1, 3, 4):
            read_image(path, width, height)  # Raises the error that explains it.
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except UserError as error:
        return ImageFacts(name, path, None, str(error))
    except OSError as error:
        return ImageFacts(name, path, None, f"data: image {path} cannot be read ({error.strerror}); restore the file")
    return ImageFacts(
        name, path, (width, height), None, 8 * pixels.dtype.itemsize, channels, _linear_light(pixels), digest
    )


def _linear_light(pixels: np.ndarray) -> float:
    """Mean linear light in [0, 1] over a grid of pixels, about 128 along the shorter side, weighted by alpha."""
    step = max(1, min(pixels.shape[:2]) // _SAMPLES)
    sample = pixels[::step, ::step].reshape(-1, 1 if pixels.ndim == 2 else pixels.shape[2])
    sample = sample.astype(np.float64) / np.iinfo(pixels.dtype).max
    weight = sample[:, 3] if sample.shape[1] == 4 else np.ones(len(sample))
    light = (sample[:, :3] ** GAMMA).mean(axis=1)
    return float((light * weight).sum() / max(weight.sum(), 1e-9))


def check_presence(
    folder: Path, missing: Sequence[str], extra: Sequence[str], total: int, *, may_skip: bool
) -> list[Finding]:
    """Findings about images that are in the model but not in the folder, and the reverse.

    Args:
        folder: The image folder, for messages.
        missing: Names in the model without a file.
        extra: Image files that the model does not name.
        total: Number of names in the model.
        may_skip: Whether ``scene.bad_images=skip`` is set: then some images may be missing, but not all.
    """
    findings = []
    if missing:
        near = near_matches(missing, extra)
        if near:
            name, file = next(iter(near.items()))
            cure = f"{len(near)} seem to exist under another folder, case or extension ({file} for {name}): use --fix"
        elif len(missing) == total:
            cure = "name the image folder with -i (scene.images)"
        else:
            cure = "restore them, remove them from the model (colmap image_deleter), or set scene.bad_images=skip"
        severity: Severity = "warning" if may_skip and len(missing) < total else "error"
        findings.append(
            Finding(severity, "image-missing", str(folder), f"missing {some(missing, total)}", "every image of the "
                    "model", cure, tuple(missing))
        )  # fmt: skip
    if extra:
        share = len(extra) / (len(extra) + total)
        found = f"{some(extra)} not in the model"
        if share > MANY_EXTRA:
            cure = "find out why they were not registered; unregistered images are not trained on"
            findings.append(Finding("warning", "image-extra", str(folder), found, "most images to be registered",
                                    cure, tuple(extra)))  # fmt: skip
        else:
            findings.append(Finding("info", "image-extra", str(folder), found + ", so not trained on",
                                    names=tuple(extra)))  # fmt: skip
    return findings


def near_matches(missing: Iterable[str], extra: Iterable[str]) -> dict[str, str]:
    """Missing name -> the only extra file whose name differs from it in nothing but case, extension or folder.

    A match in the same folder takes precedence, and no extra file is used for two names.
    """

    def plain(name: str) -> str:
        return str(PurePosixPath(name).with_suffix("")).casefold()

    def base(name: str) -> str:
        return PurePosixPath(name).stem.casefold()

    found: dict[str, str] = {}
    missing, extra = list(missing), list(extra)
    for key in (plain, base):
        wanted, there = defaultdict(list), defaultdict(list)
        for name in missing:
            if name not in found:
                wanted[key(name)].append(name)
        for name in set(extra) - set(found.values()):
            there[key(name)].append(name)
        found |= {names[0]: there[k][0] for k, names in wanted.items() if len(names) == len(there[k]) == 1}
    return found


def check_files(folder: Path, facts: Sequence[ImageFacts], *, may_skip: bool) -> list[Finding]:
    """Findings about unreadable files, one for each of the first five, and about files that are converted when read.

    Args:
        folder: The image folder, for messages.
        facts: Facts about all images.
        may_skip: Whether ``scene.bad_images=skip`` is set: then some images may be unreadable, but not all.
    """
    findings = []
    bad = [fact for fact in facts if fact.trouble is not None]
    for fact in bad[:5]:
        assert fact.trouble is not None
        error = Finding.of_error("image-unreadable", UserError(fact.trouble))
        severity: Severity = "warning" if may_skip and len(bad) < len(facts) else "error"
        cure = error.cure or "convert or replace the file"
        cure += "" if may_skip else ", or skip its view with scene.bad_images=skip"
        findings.append(Finding(severity, error.check, str(fact.path), error.found, error.expected, cure, (fact.name,)))
    if len(bad) > 5:
        findings.append(Finding(findings[0].severity, "image-unreadable", str(folder),
                                f"{some([f.name for f in bad], len(facts))} unreadable", "images that can be decoded",
                                "copy the folder again", tuple(f.name for f in bad)))  # fmt: skip
    kinds = {
        "with 16 bits per channel: rounded to 8": [f.name for f in facts if f.bits == 16],
        "grey: used for all three channels": [f.name for f in facts if f.channels == 1],
        "with alpha: composited on the background colour (-w: white)": [f.name for f in facts if f.channels == 4],
    }
    findings += [
        Finding("info", "image-kind", str(folder), f"{some(names, len(facts))} {what}", names=tuple(names))
        for what, names in kinds.items()
        if names
    ]
    return findings


def check_sizes(folder: Path, facts: Sequence[ImageFacts], cameras: Mapping[str, Camera]) -> list[Finding]:
    """Findings about images of another aspect ratio than their camera's; resized ones are an info only."""
    wrong: list[ImageFacts] = []
    turned: list[ImageFacts] = []
    scaled: list[ImageFacts] = []
    for fact in facts:
        if fact.size is None:
            continue
        camera, (width, height) = cameras[fact.name], fact.size
        if not same_shape(width, height, camera):
            (turned if same_shape(height, width, camera) else wrong).append(fact)
        elif (width, height) != (camera.width, camera.height):
            scaled.append(fact)
    findings = []
    cures = (
        (wrong, "use the images that the model was made from, or their resized copies"),
        (turned, "they are rotated by 90 degrees, as a program has applied the EXIF orientation: use the originals"),
    )
    for group, cure in cures:
        if group:
            names = tuple(fact.name for fact in group)
            camera, first = cameras[names[0]], group[0].size
            assert first is not None
            found = (f"{some(names, len(facts))} with another aspect ratio than the camera's: {first[0]}x{first[1]} "
                     f"for {camera.width}x{camera.height}")  # fmt: skip
            findings.append(
                Finding("error", "image-size", str(folder), found, "the camera's aspect ratio", cure, names)
            )
    if scaled:
        names = tuple(fact.name for fact in scaled)
        first = scaled[0].size
        assert first is not None
        findings.append(Finding("info", "image-size", str(folder), f"{some(names, len(facts))} resized to "
                                f"{first[0]}x{first[1]}: intrinsics are scaled to fit", names=names))  # fmt: skip
    return findings


def check_names(folder: Path, names: Sequence[str]) -> list[Finding]:
    """Findings about names that some file systems or programs confuse or cannot handle."""
    findings = []
    same = _groups((name.casefold(), name) for name in names)
    if same:
        both = tuple(name for group in same for name in group)
        findings.append(Finding("warning", "name-case", str(folder), f"names differ by case only: {', '.join(same[0])}",
                                "names that differ on every file system", "rename one (Windows and macOS keep only "
                                "one of the two files)", both))  # fmt: skip
    same = _groups((PurePosixPath(name).name, name) for name in names)
    if same:
        both = tuple(name for group in same for name in group)
        findings.append(Finding("info", "name-folders", str(folder), f"the same file name in several folders, e.g. "
                                f"{', '.join(same[0])}: distinguished by folder", names=both))  # fmt: skip
    odd = tuple(name for name in names if not name.isascii())
    if odd:
        findings.append(Finding("info", "name-ascii", str(folder), f"{some(odd, len(names))} not plain ASCII: fine "
                                "here, but other programs may fail", names=odd))  # fmt: skip
    return findings


def check_doubles(folder: Path, facts: Sequence[ImageFacts], test: Iterable[str]) -> list[Finding]:
    """A finding about images with the same bytes, which matters most if only some of them are held out.

    Args:
        folder: The image folder, for messages.
        facts: Facts about all images.
        test: Names of the held-out views.
    """
    held_out = set(test)
    groups = _groups((fact.digest, fact.name) for fact in facts if fact.digest is not None)
    if not groups:
        return []
    leaks = sum(0 < len(held_out & set(group)) < len(group) for group in groups)
    found = f"{', '.join(groups[0][:3])} are the same file"
    found += f", and {len(groups) - 1} more such groups" if len(groups) > 1 else ""
    found += f" (groups with both training and held-out views: {leaks})" if leaks else ""
    return [Finding("warning", "image-double", str(folder), found, "every image once", "remove the duplicates from "
                    "the model: their views count twice, and some of the poses may be wrong",
                    tuple(name for group in groups for name in group))]  # fmt: skip


def check_exposure(folder: Path, facts: Sequence[ImageFacts]) -> list[Finding]:
    """Findings about black images, images of unusual brightness, and the range of brightness of all images."""
    findings = []
    black = tuple(f.name for f in facts if f.light is not None and f.light < BLACK)
    if black:
        findings.append(Finding("warning", "exposure", str(folder), f"{some(black, len(facts))} (nearly) black",
                                "visible content", "remove them from the model", black))  # fmt: skip
    lit = [(f.name, math.log2(f.light)) for f in facts if f.light is not None and f.light >= BLACK]
    if len(lit) < 3:
        return findings
    stops = np.array([value for _, value in lit])
    middle = float(np.median(stops))
    # 4 standard deviations, estimated from the median absolute deviation, so that outliers do not raise the limit.
    limit = max(ODD_STOPS, 4 * 1.4826 * float(np.median(np.abs(stops - middle))))
    odd = tuple(name for name, value in lit if abs(value - middle) > limit)
    if odd:
        first = dict(lit)[odd[0]] - middle
        findings.append(Finding("warning", "exposure", str(folder), f"{some(odd, len(facts))} with a brightness "
                                f"{first:+.1f} stops from the median", f"within {limit:.1f} stops", "correct the "
                                "exposure, or remove them from the model", odd))  # fmt: skip
    low, high = np.percentile(stops, [5, 95])
    if high - low > SPREAD_STOPS:
        findings.append(Finding("warning", "exposure", str(folder), f"the mean brightness of images ranges over "
                                f"{high - low:.1f} stops", f"at most {SPREAD_STOPS:g}", "equalize it before training, "
                                "or set appearance.model=affine: without it the model learns one brightness, and raw "
                                "scores suffer (the cc columns of eval correct for it)"))  # fmt: skip
    return findings


def _groups(pairs: Iterable[tuple[str | None, str]]) -> list[list[str]]:
    """Groups of two or more names with the same key."""
    groups = defaultdict(list)
    for key, name in pairs:
        groups[key].append(name)
    return [names for names in groups.values() if len(names) > 1]
