"""From files, flags and ``key=value`` to the settings of an experiment; what says ``auto`` is chosen from the scene."""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from momentum_gs.config.load import Settings, config_to_dict, flat_settings, load_settings
from momentum_gs.config.run import OWN_FILE, absolute_paths, load_run_config
from momentum_gs.config.schema import Config
from momentum_gs.core.device import pick_device, print_device, total_device_memory
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.core.memory import total_memory
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.experiments.choose import Choice, Facts, Goal, Machine, choose, measure

PROVISIONAL: dict[str, Any] = {"scene.resolution": 1.0, "model.voxel_size": 0.0, "steps": 1000}
"""Stand-ins for settings that say ``auto``, until they are chosen."""


def resolve(
    files: Sequence[str | Path],
    settings: Sequence[str],
    *,
    own: bool = False,
    refuse: bool = True,
    goes_on: bool = False,
    announce: bool = False,
) -> tuple[Config, list[Choice]]:
    """An experiment with absolute paths, and what of it was chosen now.

    What says ``auto`` is chosen from the scene and printed; a run that is resumed keeps what was chosen when it began.

    Args:
        files: Settings files; the later win.
        settings: ``key=value``, stronger than the files.
        own: Whether the settings are those of configs/own.yaml where no file is given.
        refuse: Whether a scene by which nothing can be chosen is an error; else stand-ins take the place of choices.
        goes_on: Whether a run in the output folder is continued.
        announce: Whether to print first on what it will run.

    Raises:
        UserError: for settings that do not hold, and with ``refuse`` for scenes that do not load.
    """
    choosing = Choosing(load_settings(files or ([OWN_FILE] if own else []), settings))
    if announce:
        print_device(choosing.provisional.device)
    earlier = choosing.provisional.out
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
        info(f"chosen   {choice}")
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
