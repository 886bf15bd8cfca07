"""Which images' corrections ``appearance.smooth`` holds together, and how much (docs/appearance.md)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from statistics import median

from momentum_gs.core.errors import UserError
from momentum_gs.core.log import warn
from momentum_gs.data.capture_times import TIMES_FILE

Neighbours = Mapping[str, Sequence[tuple[str, float]]]
"""Image -> (image taken just before or after it, closeness in (0, 1])."""


def neighbours_in_time(where: Path, names: Sequence[str], times: Mapping[str, float]) -> Neighbours:
    """The training images taken just before and just after each one, by the same camera.

    Closeness is 1 up to the median time between two images in a row, and beyond it falls as one over that time: what a
    random walk, as exposures are over a flight, makes of the weight of a squared difference. Images of one folder are
    taken to come from one camera, as ``momentum-gs prepare`` takes them to.

    Args:
        where: The scene, for messages.
        names: All training images.
        times: Seconds, of the images whose time is known; the others have no neighbours.

    Raises:
        UserError: too few times are known for any image to have a neighbour.
    """
    by_folder = defaultdict(list)
    for name in sorted(names):
        if name in times:
            by_folder[PurePosixPath(name).parent].append(name)
    # Images of one second are in order of name: sorted() leaves them so.
    rows = [sorted(images, key=times.__getitem__) for images in by_folder.values()]
    gaps = {(a, b): times[b] - times[a] for row in rows for a, b in pairwise(row)}
    if not any(gaps.values()):
        raise UserError(
            f"appearance.smooth: {len(times)} of {len(names)} images in {where} carry a time (EXIF DateTimeOriginal), "
            "expected images of one folder at different times; list the times in "
            f"{where / TIMES_FILE} (lines of name,time), or set appearance.smooth=0"
        )
    if len(times) < len(names):
        warn(f"appearance.smooth: {len(names) - len(times)} of {len(names)} images carry no time and are left free")
    usual = median(gap for gap in gaps.values() if gap > 0)
    found = defaultdict(list)
    for (a, b), gap in gaps.items():
        closeness = usual / max(gap, usual)
        found[a].append((b, closeness))
        found[b].append((a, closeness))
    return found
