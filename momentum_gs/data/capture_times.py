"""Capture times of a scene's training images: from a table in the scene's folder, else from the image files."""

import csv
from datetime import datetime, timezone
from pathlib import Path

from momentum_gs.core.errors import UserError
from momentum_gs.data.exif import capture_time
from momentum_gs.data.scene import Scene

TIMES_FILE = "times.csv"
"""File in the scene's folder with an image name and its time per line."""


def capture_times(scene: Scene) -> dict[str, float]:
    """Image name -> capture time in seconds, for training images whose time is known; only differences have a meaning.

    Raises:
        UserError: for lines of ``times.csv`` that hold no time.
    """
    listed = _read_times(scene.path / TIMES_FILE)
    if listed:
        return {camera.name: listed[camera.name] for camera in scene.train if camera.name in listed}
    found = {camera.name: capture_time(scene.image_paths[camera.name]) for camera in scene.train}
    return {name: time for name, time in found.items() if time is not None}


def _read_times(file: Path) -> dict[str, float]:
    """Image name -> seconds; empty if there is no such file. A line ``name,time`` is a header."""
    if not file.is_file():
        return {}
    times = {}
    with file.open(encoding="utf-8", newline="") as text:
        for number, line in enumerate(csv.reader(text), 1):
            if not line or line == ["name", "time"]:
                continue
            time = _seconds(line[1]) if len(line) == 2 else None
            if time is None:
                raise UserError(
                    f"{file}: line {number} is {','.join(line)!r}, expected an image's name and its time, in "
                    "seconds or as 2024-05-31T12:00:00.5; correct it"
                )
            times[line[0]] = time
    return times


def _seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).timestamp()
