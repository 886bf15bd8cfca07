"""Shared by the commands: the flags of 3DGS codebases, and the settings of a run."""

import argparse
import json

from momentum_gs.config.schema import Config
from momentum_gs.experiments.choose import Choice
from momentum_gs.experiments.resolve import resolve

# Flag of ``add_run_arguments`` -> the setting that it sets.
_FLAGS = {
    "source_path": "scene.path",
    "model_path": "out",
    "resolution": "scene.resolution",
    "images": "scene.images",
    "white_background": "scene.white_background",
}


def add_run_arguments(parser: argparse.ArgumentParser, *, scene_first: bool = False) -> None:
    """Adds the flags that describe an experiment.

    Args:
        parser: Gets the flags.
        scene_first: The scene is the first positional argument instead of ``-s``.
    """
    add = parser.add_argument
    if scene_first:
        add("source_path", metavar="SCENE", help="scene folder: images/ and sparse/0, or train/ and val/")
    else:
        add("-s", "--source_path", metavar="SCENE", help="scene folder (scene.path)")
    add("-c", "--config", metavar="FILE", action="append", help="settings file: a shipped one by its name (demo, "
        "rubble, modes/full) or the path of your own YAML file; default: own (bench and sweep: base). May be repeated, "
        "e.g. for a scene and a mode; later files override earlier ones")
    add("-m", "--model_path", metavar="OUT", help="output folder (out)")
    add("-r", "--resolution", type=float, metavar="R", help="1, 2, 4, 8 divide the image size, any other number is the "
        "width in pixels, -1 caps the width at 1600 (scene.resolution)")
    add("-i", "--images", metavar="NAME", help="name of the image folder (scene.images)")
    add("-w", "--white_background", action="store_true", default=None,
        help="composite on white instead of black (scene.white_background)")
    add("overrides", nargs="*", metavar="key=value",
        help="any setting, e.g. growth.interval=50; overrides flags, which override FILE")


def resolve_config(
    args: argparse.Namespace, *, own: bool = False, refuse: bool = True, announce: bool = False
) -> Config:
    """The settings of the experiment that the parsed ``add_run_arguments`` describe, with absolute paths.

    Arguments and errors are those of ``experiments.resolve.resolve``.
    """
    return resolve_choices(args, own=own, refuse=refuse, announce=announce)[0]


def resolve_choices(
    args: argparse.Namespace, *, own: bool = False, refuse: bool = True, announce: bool = False
) -> tuple[Config, list[Choice]]:
    """As ``resolve_config``, with the choices made for ``auto`` settings; none if a run is continued."""
    goes_on = getattr(args, "resume", False) or bool(getattr(args, "only_blocks", ()))
    return resolve(
        args.config or (), settings_of(args), own=own, refuse=refuse, goes_on=goes_on, announce=announce
    )


def settings_of(args: argparse.Namespace) -> list[str]:
    """The flags as ``key=value``, followed by the ``key=value`` arguments, which override them."""
    # JSON is valid YAML, so a path may contain any characters.
    flags = [f"{key}={json.dumps(value, ensure_ascii=False)}" for name, key in _FLAGS.items()
             if (value := getattr(args, name)) is not None]  # fmt: skip
    return [*flags, *args.overrides]
