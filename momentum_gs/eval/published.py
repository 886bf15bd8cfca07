"""Published scores for the scenes that several papers use (``published.yaml``), grouped by protocol."""

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

GROUPS = ("raw", "corrected", "unstated")
"""Whether colours were corrected before scoring. Scores of different groups are not comparable."""


@dataclass(frozen=True)
class PublishedRow:
    """One method on one scene."""

    method: str
    source: str
    """The paper that reports it."""
    notes: tuple[str, ...]
    """Reasons why it is not fully comparable."""
    psnr: float | None
    """dB."""
    ssim: float | None
    lpips: float | None


@dataclass(frozen=True)
class PublishedScene:
    """The published scores of one scene."""

    title: str
    setting: str
    """Image size and held-out views in the papers."""
    groups: dict[str, list[PublishedRow]]
    """Each of ``GROUPS`` -> its rows."""


def published_scene(key: str) -> PublishedScene:
    """The published scores of the scene ``key``, one of :func:`scene_keys`."""
    data = _data()
    about = data["scenes"][key]
    groups: dict[str, list[PublishedRow]] = {group: [] for group in GROUPS}
    for row in data["rows"]:
        if key in row:
            notes = tuple(data["notes"][note] for note in row["notes"])
            groups[row["group"]].append(PublishedRow(row["method"], row["source"], notes, *row[key]))
    return PublishedScene(about["title"], about["setting"], groups)


def scene_keys() -> list[str]:
    """Keys of the scenes with published scores."""
    return list(_data()["scenes"])


def guess_scene(path: str) -> str | None:
    """The scene that a path names, the innermost folder first: '.../building-pixsfm/train' is 'building'; None if no
    folder has the name of a scene."""
    names = {name: key for key, about in _data()["scenes"].items() for name in about["names"]}
    for part in reversed(PurePath(path).parts):
        plain = "".join(letter for letter in part.lower() if letter.isalnum()).removesuffix("pixsfm")
        if plain in names:
            return names[plain]
    return None


def _data() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    return data
