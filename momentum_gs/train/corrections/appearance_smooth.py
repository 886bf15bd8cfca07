"""The pairs of images whose colour corrections ``appearance.smooth`` keeps similar (docs/appearance.md)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from statistics import median

from momentum_gs.core.errors import UserError
from momentum_gs.core.log import warn
from momentum_gs.data.capture_times import TIMES_FILE

Neighbours = Mapping[str, Sequence[tuple[str, float]]]
"""Image -> [(image taken just before or after it, closeness in (0, 1])]."""


def neighbours_in_time(where: Path, names: Sequence[str], times: Mapping[str, float]) -> Neighbours:
    """The training images taken just before and just after each one, by the same camera.

    Closeness is 1 up to the median time between consecutive images and beyond it inversely proportional to the time
    between them: the weight of a squared difference if exposure follows a random walk over a flight. Images of one
    folder are assumed to come from one camera, as in ``momentum-gs prepare``.

    Args:
        where: The scene's folder, for messages.
        names: All training images.
        times: Image -> capture time in seconds, if known; the other images have no neighbours.

    Raises:
        UserError: if no folder has two images with different times.
    """
    by_folder = defaultdict(list)
    for name in sorted(names):
        if name in times:
            by_folder[PurePosixPath(name).parent].append(name)
    # Images of the same second remain in the order of their names, as sorted() is stable.
    rows = [sorted(images, key=times.__getitem__) for images in by_folder.values()]
    gaps = {(a, b): times[b] - times[a] for row in rows for a, b in pairwise(row)}
    if not any(gaps.values()):
        raise UserError(
            f"appearance.smooth: {len(times)} of {len(names)} images in {where} carry a time (EXIF DateTimeOriginal), "
            "expected images of one folder at different times; list the times in "
            f"{where / TIMES_FILE} (lines of name,time), or set appearance.smooth=0"
        )
    if len(times) < len(names):
        warn(
            f"appearance.smooth: {len(names) - len(times)} of {len(names)} images carry no time; their corrections are "
            "not smoothed"
        )
    usual = median(gap for gap in gaps.values() if gap > 0)
    found = defaultdict(list)
    for (a, b), gap in gaps.items():
        closeness = usual / max(gap, usual)
        found[a].append((b, closeness))
        found[b].append((a, closeness))
    return found
