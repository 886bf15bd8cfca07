"""``doctor --fix``: writes links and lists into ``SCENE/doctor``; no other file is changed.

Removing that folder and the settings that refer to it undoes all fixes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.data.scene import find_test_list
from momentum_gs.data.splits import read_list
from momentum_gs.doctor.images import near_matches
from momentum_gs.doctor.scene import Examination, Source

FOLDER = "doctor"
_IMAGES = f"{FOLDER}/images"


@dataclass(frozen=True)
class Fix:
    """A fix that was applied, and the setting with which a run uses it."""

    done: str
    setting: str
    """As ``key=value``."""


def apply_fixes(config: Config, examination: Examination) -> tuple[list[Fix], Config]:
    """Applies the fixes that are possible for the findings.

    * Images that exist under another case, extension or folder: a folder of links with the model's names.
    * A test list with unknown names: a list without them.
    * Missing or unreadable images: nothing is written; the setting that skips them is returned.

    Returns:
        The fixes, and the settings with which a run uses them.

    Raises:
        UserError: if the scene's folder is not writable.
    """
    # A list that cannot be read names nothing.
    checks = {finding.check for finding in examination.findings if finding.severity == "error" and finding.names}
    scene, sources, fixes = config.scene, examination.sources, []
    root = Path(scene.path or "")
    missing = sum(len(source.missing) for source in sources)
    found = [near_matches(source.missing, source.extra) for source in sources]
    try:
        if any(found) and scene.images != _IMAGES:
            for source, near in zip(sources, found, strict=True):
                _link_images(source, near)
            linked = sum(map(len, found))
            missing -= linked
            scene = replace(scene, images=_IMAGES)
            fixes.append(Fix(f"links to all images, {linked} of them renamed as in the model, in "
                             f"{', '.join(str(source.folder / _IMAGES) for source in sources)}",
                             f"scene.images={_IMAGES}"))  # fmt: skip
        if "test-list" in checks and (kept := _write_list(root, sources[0], config)) is not None:
            scene = replace(scene, test_list=f"{FOLDER}/test_list.txt")
            fixes.append(Fix(f"list of the {kept} held-out images that exist, in {root / str(scene.test_list)}",
                             f"scene.test_list={scene.test_list}"))  # fmt: skip
    except OSError as error:
        raise UserError(
            f"{root / FOLDER}: cannot be written ({error.strerror}), expected a writable folder for links and lists; "
            "copy the scene to where you may write, or omit --fix"
        ) from error
    some = "image-unreadable" in checks or 0 < missing < sum(len(source.paths) for source in sources)
    if some and scene.bad_images != "skip":
        scene = replace(scene, bad_images="skip")
        fixes.append(Fix("missing and unreadable images are left out of training", "scene.bad_images=skip"))
    return fixes, replace(config, scene=scene)


def _link_images(source: Source, near: Mapping[str, str]) -> None:
    """Makes a link with the model's name to every image of a COLMAP scene that exists, if under another name
    (``near_matches``)."""
    assert source.images is not None, "only image folders have extra files"
    for name in sorted(source.paths.keys() - set(source.missing) | near.keys()):
        link = source.folder / _IMAGES / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():  # From an earlier --fix.
            link.unlink()
        link.symlink_to(os.path.relpath(source.images / near.get(name, name), link.parent))


def _write_list(root: Path, source: Source, config: Config) -> int | None:
    model = source.model
    listed = find_test_list(root, model if model is not None and model.is_dir() else root, config.scene)
    if listed is None or not listed.is_file():
        return None
    kept = [name for name in read_list(listed) if name in source.paths]
    (root / FOLDER).mkdir(exist_ok=True)
    (root / FOLDER / "test_list.txt").write_text("".join(f"{name}\n" for name in kept), encoding="utf-8")
    return len(kept)
