"""What commands share: the flags of 3DGS codebases, and the configuration of a run."""

import argparse
import json

from momentum_gs.config.schema import Config
from momentum_gs.experiments.choose import Choice
from momentum_gs.experiments.resolve import resolve

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
    add("-c", "--config", metavar="FILE", action="append", help="settings: a shipped file by its name below configs "
        "(demo, rubble, modes/full) or your own YAML file; default: own, of bench and sweep base. Of several, such as "
        "a scene's and a mode, the later win")
    add("-m", "--model_path", metavar="OUT", help="output folder (out)")
    add("-r", "--resolution", type=float, metavar="R", help="1, 2, 4, 8 divide the image size, another number is the "
        "width, -1 caps the width at 1600 (scene.resolution)")
    add("-i", "--images", metavar="NAME", help="name of the image folder (scene.images)")
    add("-w", "--white_background", action="store_true", default=None,
        help="composite on white instead of black (scene.white_background)")
    add("overrides", nargs="*", metavar="key=value",
        help="any setting, e.g. growth.interval=50; stronger than flags, which are stronger than FILE")


def resolve_config(
    args: argparse.Namespace, *, own: bool = False, refuse: bool = True, announce: bool = False
) -> Config:
    """The experiment that parsed ``add_run_arguments`` describe, with absolute paths; ``resolve`` says how."""
    return resolve_choices(args, own=own, refuse=refuse, announce=announce)[0]


def resolve_choices(
    args: argparse.Namespace, *, own: bool = False, refuse: bool = True, announce: bool = False
) -> tuple[Config, list[Choice]]:
    """The same, and what of it was chosen now."""
    goes_on = getattr(args, "resume", False) or bool(getattr(args, "only_blocks", ()))
    return resolve(
        args.config or (), settings_of(args), own=own, refuse=refuse, goes_on=goes_on, announce=announce
    )


def settings_of(args: argparse.Namespace) -> list[str]:
    """``key=value`` of the flags, then of the overrides, which are stronger."""
    # JSON text is YAML text, so a path keeps whatever characters it has.
    flags = [f"{key}={json.dumps(value, ensure_ascii=False)}" for name, key in _FLAGS.items()
             if (value := getattr(args, name)) is not None]  # fmt: skip
    return [*flags, *args.overrides]
