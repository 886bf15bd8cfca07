"""What verbs share: the flags of the 3DGS family, and the configuration of a run."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from momentum_gs.config.load import load_config
from momentum_gs.config.schema import Config, SceneConfig
from momentum_gs.core.errors import UserError

# Setting behind each flag of ``add_run_arguments``.
_FLAGS = {
    "source_path": "scene.path",
    "model_path": "out",
    "resolution": "scene.resolution",
    "images": "scene.images",
    "white_background": "scene.white_background",
}


def add_run_arguments(parser: argparse.ArgumentParser, *, scene_first: bool = False) -> None:
    """The flags that describe an experiment; ``scene_first``: the scene is the first word instead of ``-s``."""
    add = parser.add_argument
    if scene_first:
        add("source_path", metavar="SCENE", help="scene folder: images/ and sparse/0, or train/ and val/")
    else:
        add("-s", "--source_path", metavar="SCENE", help="scene folder (scene.path)")
    add("-c", "--config", metavar="FILE", action="append", help="YAML file of settings; default: the settings of "
        "configs/base.yaml. Of several, such as a scene's and one of configs/modes, the later win")
    add("-m", "--model_path", metavar="OUT", help="output folder (out)")
    add("-r", "--resolution", type=float, metavar="R", help="1, 2, 4, 8 divide the image size, another number is the "
        "width, -1 caps the width at 1600 (scene.resolution)")
    add("-i", "--images", metavar="NAME", help="name of the image folder (scene.images)")
    add("-w", "--white_background", action="store_true", default=None,
        help="composite on white instead of black (scene.white_background)")
    add("overrides", nargs="*", metavar="key=value",
        help="any setting, e.g. growth.interval=50; stronger than flags, which are stronger than FILE")


def resolve_config(args: argparse.Namespace) -> Config:
    """The experiment that parsed ``add_run_arguments`` describe, with absolute paths.

    Paths are absolute so that the copy kept in the output folder means the same from any working directory.
    """
    # JSON text is YAML text, so a path keeps whatever characters it has.
    flags = [f"{key}={json.dumps(value, ensure_ascii=False)}" for name, key in _FLAGS.items()
             if (value := getattr(args, name)) is not None]
    config = load_config(args.config, [*flags, *args.overrides])
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
    return replace(load_config(file), out=os.path.abspath(out))


def frame_of_run(scene: SceneConfig, out: Path) -> SceneConfig:
    """The settings of a scene with the coordinates of an earlier run, where they say ``unit: auto`` and it found them.

    A coarse model, the partition made with it and a run that is resumed share their coordinates, whatever images the
    scene has gained or lost in between.
    """
    if scene.unit != "auto" or not (out / "config.yaml").is_file():
        return scene
    earlier = load_run_config(out).scene
    return scene if earlier.unit == "auto" else replace(
        scene, offset=earlier.offset, unit=earlier.unit, axes=earlier.axes
    )


def out_folder(config: Config) -> Path:
    """The output folder, which a verb that writes cannot do without."""
    if config.out is None:
        raise UserError("config: out is not set, expected an output folder; give one with -m OUT")
    return Path(config.out)


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))
