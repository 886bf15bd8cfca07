"""The settings of a run: where they are read from, where it writes, and which coordinates it has."""

import os
from dataclasses import replace
from pathlib import Path

from momentum_gs.config.load import load_config
from momentum_gs.config.schema import Config, SceneConfig
from momentum_gs.core.errors import UserError

OWN_FILE = "own"
"""Name of the shipped settings for one's own images."""


def absolute_paths(config: Config) -> Config:
    """Settings that mean the same from any working directory, as the copy in the output folder has to."""
    # Files that are not found from here are relative to the scene.
    test_list, points = (
        _absolute(path) if path is not None and os.path.isfile(path) else path
        for path in (config.scene.test_list, config.scene.points)
    )
    return replace(
        config,
        out=_absolute(config.out),
        scene=replace(config.scene, path=_absolute(config.scene.path), test_list=test_list, points=points),
        store=replace(config.store, folder=_absolute(config.store.folder)),
        partition=replace(
            config.partition, coarse=_absolute(config.partition.coarse), file=_absolute(config.partition.file)
        ),
    )


def load_run_config(out: str | Path) -> Config:
    """The experiment whose output folder is ``out``; its own ``out`` is this folder, wherever it was moved."""
    file = Path(out) / "config.yaml"
    if not file.is_file():
        raise UserError(f"run: {file} is missing, expected the output folder of 'momentum-gs train -m OUT'")
    return replace(load_config(file, quiet=True), out=os.path.abspath(out))


def frame_of_run(scene: SceneConfig, out: Path) -> SceneConfig:
    """The settings of a scene with the coordinates of an earlier run, where both say ``unit: auto`` and it found them.

    A coarse model, the partition made with it and a run that is resumed share their coordinates, whatever images the
    scene has gained or lost in between.
    """
    if scene.unit != "auto" or not (out / "config.yaml").is_file():
        return scene
    earlier = load_run_config(out).scene
    if earlier.unit == "auto" or earlier.axes is None:  # It has none yet, or trained in the scene's own.
        return scene
    return replace(scene, offset=earlier.offset, unit=earlier.unit, axes=earlier.axes)


def out_folder(config: Config) -> Path:
    """The output folder, which a command that writes cannot do without."""
    if config.out is None:
        raise UserError("config: out is not set, expected an output folder; give one with -m OUT")
    return Path(config.out)


def coarse_folder(config: Config) -> Path:
    """Where the coarse model of the experiment is, or would be."""
    return Path(config.partition.coarse) if config.partition.coarse else out_folder(config) / "coarse"


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))
