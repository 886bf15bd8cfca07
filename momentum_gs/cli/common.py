"""What verbs share: the flags of the 3DGS family, and the configuration of a run."""

import argparse
import contextlib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from momentum_gs.cli.choose import Choice, Facts, Goal, Machine, choose, measure
from momentum_gs.config.load import Settings, config_to_dict, flat_settings, load_config, load_settings
from momentum_gs.config.schema import Config, SceneConfig
from momentum_gs.core.device import pick_device, say_device, total_device_memory
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import say
from momentum_gs.core.memory import total_memory
from momentum_gs.data.scene import Scene, load_scene

# Setting behind each flag of ``add_run_arguments``.
_FLAGS = {
    "source_path": "scene.path",
    "model_path": "out",
    "resolution": "scene.resolution",
    "images": "scene.images",
    "white_background": "scene.white_background",
}


OWN_FILE = "own"
"""Name of the shipped settings for one's own images."""
PROVISIONAL: dict[str, Any] = {"scene.resolution": 1.0, "model.voxel_size": 0.0, "steps": 1000}
"""Stand-ins for settings that say ``auto``, until they are chosen."""


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
    """The experiment that parsed ``add_run_arguments`` describe, with absolute paths; ``resolve_choices`` says how."""
    return resolve_choices(args, own=own, refuse=refuse, announce=announce)[0]


def resolve_choices(
    args: argparse.Namespace, *, own: bool = False, refuse: bool = True, announce: bool = False
) -> tuple[Config, list[Choice]]:
    """The experiment that parsed ``add_run_arguments`` describe, with absolute paths, and what of it was chosen now.

    What says ``auto`` is chosen from the scene and said; a run that is resumed keeps what was chosen when it began.

    Args:
        own: Whether the settings are those of configs/own.yaml where no file is given.
        refuse: Whether a scene by which nothing can be chosen is an error; else stand-ins take the place of choices.
        announce: Whether to say first what it will run on.

    Raises:
        UserError: for settings that do not hold, and with ``refuse`` for scenes that do not load.
    """
    # JSON text is YAML text, so a path keeps whatever characters it has.
    flags = [f"{key}={json.dumps(value, ensure_ascii=False)}" for name, key in _FLAGS.items()
             if (value := getattr(args, name)) is not None]
    files = [OWN_FILE] if own and not args.config else args.config
    choosing = Choosing(load_settings(files, [*flags, *args.overrides]))
    if announce:
        say_device(choosing.provisional.device)
    earlier, goes_on = choosing.provisional.out, getattr(args, "resume", False) or getattr(args, "only_blocks", ())
    if goes_on and earlier is not None and (Path(earlier) / "config.yaml").is_file():
        found = flat_settings(config_to_dict(load_run_config(earlier)))
        return choosing.config([Choice(key, found[key], "as before") for key in choosing.auto]), []
    try:
        choices = choosing.choose(lambda config, scene, facts: Goal())
    except UserError:
        if refuse:
            raise
        choices = []
    for choice in choices:
        say(f"chosen   {choice}")
    return choosing.config(choices), choices


class Choosing:
    """Settings of which some say ``auto``, on the way to an experiment."""

    def __init__(self, settings: Settings, *, blocks: bool = False) -> None:
        """``blocks``: choose ``partition.blocks``, too, which may also stay ``auto`` until the scene is cut."""
        self._settings = settings
        self.provisional = self.config(())
        """With stand-ins for what is not chosen yet, to load the scene by."""
        open_blocks = blocks and self.provisional.partition.blocks == "auto"
        self.auto = (*settings.auto, *(["partition.blocks"] if open_blocks else []))
        """Names of the settings to choose."""

    def choose(self, goal: Callable[[Config, Scene, Facts], Goal]) -> list[Choice]:
        """Values for all that says ``auto``.

        Args:
            goal: (Provisional settings, scene at full size, its facts) -> what is asked for.

        Raises:
            UserError: for scenes that do not load, and of which nothing can be told.
        """
        config = self.provisional
        if not self.auto:
            return []
        with contextlib.redirect_stdout(io.StringIO()):  # Who loads it to train says the same again.
            scene = load_scene(replace(config.scene, resolution=1.0))
        facts, device = measure(scene), pick_device(config.device)
        machine = Machine(total_memory(), total_device_memory(device))
        return choose(self.auto, config, scene, facts, machine, goal(config, scene, facts))

    def config(self, choices: Sequence[Choice]) -> Config:
        """The experiment, with stand-ins for what is not among the choices."""
        values = PROVISIONAL | {choice.key: choice.value for choice in choices}
        config = absolute_paths(self._settings.config(values))
        if config.partition.blocks == "auto" and "partition.blocks" in values:
            return replace(config, partition=replace(config.partition, blocks=values["partition.blocks"]))
        return config


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
    return replace(load_config(file), out=os.path.abspath(out))


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
    """The output folder, which a verb that writes cannot do without."""
    if config.out is None:
        raise UserError("config: out is not set, expected an output folder; give one with -m OUT")
    return Path(config.out)


def _absolute(path: str | None) -> str | None:
    return None if path is None else os.path.abspath(os.path.expanduser(path))
