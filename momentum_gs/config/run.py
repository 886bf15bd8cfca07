"""The settings of a run: its configuration file, its folders and its coordinates."""

import os
from dataclasses import replace
from pathlib import Path

from momentum_gs.config.load import load_config
from momentum_gs.config.schema import Config, SceneConfig
from momentum_gs.core.errors import UserError

OWN_FILE = "own"
"""Name of the shipped settings for a user's own images."""
WINDOWS_FILE = "modes/windows"
"""Name of the shipped settings of several blocks that train on what they keep."""


def absolute_paths(config: Config) -> Config:
    """The settings with absolute paths, so that their copy in the output folder holds in any working directory."""
    # Files that do not exist relative to the working directory are relative to the scene.
    test_list, points = (
        _absolute(path) if path is not None and os.path.isfile(path) else path
        for path in (config.scene.test_list, config.scene.points)
    )
    return replace(
        config,
        out=_absolute(config.out),
        scene=replace(config.scene, path=_absolute(config.scene.path), test_list=test_list, points=points),
        distill=replace(config.distill, teachers=tuple(map(os.path.abspath, config.distill.teachers))),
        store=replace(config.store, folder=_absolute(config.store.folder)),
        partition=replace(
            config.partition, coarse=_absolute(config.partition.coarse), file=_absolute(config.partition.file)
        ),
    )


def load_run_config(out: str | Path) -> Config:
    """The experiment whose output folder is ``out``; its ``out`` is set to this folder, in case it was moved."""
    file = Path(out) / "config.yaml"
    if not file.is_file():
        raise UserError(f"run: {file} is missing, expected the output folder of 'momentum-gs train -m OUT'")
    return replace(load_config(file, quiet=True), out=os.path.abspath(out))


def frame_of_run(scene: SceneConfig, out: Path) -> SceneConfig:
    """The scene's settings with the coordinates that an earlier run in ``out`` determined for ``unit: auto``.

    The settings are unchanged unless both have ``unit: auto`` and the earlier run has determined its coordinates. So a
    coarse model, the partition made with it and a resumed run share coordinates, even if images were added to the scene
    or removed in between.
    """
    if scene.unit != "auto" or not (out / "config.yaml").is_file():
        return scene
    earlier = load_run_config(out).scene
    if earlier.unit == "auto" or earlier.axes is None:  # Not determined yet, or the scene's own coordinates.
        return scene
    return replace(scene, offset=earlier.offset, unit=earlier.unit, axes=earlier.axes)


def out_folder(config: Config) -> Path:
    """The output folder; UserError where none is set."""
    if config.out is None:
        raise UserError("config: out is not set, expected an output folder; give one with -m OUT")
    return Path(config.out)


def coarse_folder(config: Config) -> Path:
    """The output folder of the experiment's coarse model, whether or not it exists."""
    return Path(config.partition.coarse) if config.partition.coarse else out_folder(config) / "coarse"


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))
