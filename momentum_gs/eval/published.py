"""The numbers that papers print for the scenes they share (``published.yaml``), kept apart by protocol."""

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

GROUPS = ("raw", "corrected", "unstated")
"""By what happened to the colours before scoring. Numbers of different groups do not rank."""


@dataclass(frozen=True)
class PublishedRow:
    """One method on one scene."""

    method: str
    source: str
    """The paper that prints it."""
    notes: tuple[str, ...]
    """What keeps it from being compared."""
    psnr: float | None
    """dB."""
    ssim: float | None
    lpips: float | None


@dataclass(frozen=True)
class PublishedScene:
    """What is known of one scene."""

    title: str
    setting: str
    """Size and held-out views of the papers."""
    groups: dict[str, list[PublishedRow]]
    """Group of ``GROUPS`` -> rows."""


def published_scene(key: str) -> PublishedScene:
    """The rows of a scene of :func:`scene_keys`."""
    data = _data()
    about = data["scenes"][key]
    groups: dict[str, list[PublishedRow]] = {group: [] for group in GROUPS}
    for row in data["rows"]:
        if key in row:
            notes = tuple(data["notes"][note] for note in row["notes"])
            groups[row["group"]].append(PublishedRow(row["method"], row["source"], notes, *row[key]))
    return PublishedScene(about["title"], about["setting"], groups)


def scene_keys() -> list[str]:
    """Names of the scenes that papers share."""
    return list(_data()["scenes"])


def guess_scene(path: str) -> str | None:
    """The shared scene that a folder's path speaks of, the innermost folder first: '.../building-pixsfm/train' is
    'building'. None where no folder has such a name."""
    names = {name: key for key, about in _data()["scenes"].items() for name in about["names"]}
    for part in reversed(PurePath(path).parts):
        plain = "".join(letter for letter in part.lower() if letter.isalnum()).removesuffix("pixsfm")
        if plain in names:
            return names[plain]
    return None


def _data() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    return data
