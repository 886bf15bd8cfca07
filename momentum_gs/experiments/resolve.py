"""Resolves files, flags and ``key=value`` to the settings of an experiment; ``auto`` settings are chosen."""

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
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.experiments.choose import Choice, Facts, Goal, Machine, choose, measure

PROVISIONAL: dict[str, Any] = {"scene.resolution": 1.0, "model.voxel_size": 0.0, "steps": 1000}
"""Stand-ins for ``auto`` settings until they are chosen."""


def resolve(
    files: Sequence[str | Path],
    settings: Sequence[str],
    *,
    own: bool = False,
    refuse: bool = True,
    goes_on: bool = False,
    announce: bool = False,
) -> tuple[Config, list[Choice]]:
    """The settings of an experiment, with absolute paths, and the choices made for ``auto`` settings.

    ``auto`` settings are chosen from the scene and printed; a resumed run keeps the choices made when it began.

    Args:
        files: Settings files; later ones override earlier ones.
        settings: ``key=value``; they override the files.
        own: Use configs/own.yaml if no file is given.
        refuse: Raise an error if the scene does not allow a choice; otherwise the stand-ins are used.
        goes_on: The run in the output folder is continued.
        announce: First print the device.

    Raises:
        UserError: for invalid settings, and with ``refuse`` for scenes that do not load or allow no choice.
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


def _views_per_step(config: Config) -> float | None:
    """Pixels that count in a step of every block, in whole views; None before the scene is cut."""
    file = config.partition.file or (config.out and Path(config.out) / "partition.json")
    if config.stage != "blocks" or not file or not Path(file).is_file():
        return None
    return PartitionTable.load(Path(file)).views_per_step(config.blocks.windows)


def this_machine(config: Config) -> Machine:
    """The memory of this machine and of the device to train on."""
    return Machine(total_memory(), total_device_memory(pick_device(config.device)))


class Choosing:
    """Settings of which some may be ``auto``, and the choice of these."""

    def __init__(self, settings: Settings, *, blocks: bool = False, windows: bool = False) -> None:
        """
        Args:
            settings: From all sources.
            blocks: Also choose ``partition.blocks``, which otherwise stays ``auto`` until the scene is cut.
            windows: Also choose ``blocks.windows``. ``config`` leaves it to the caller to take the settings that go
                with it.
        """
        self._settings = settings
        self.provisional = self.config(())
        """The settings with stand-ins, with which the scene can be loaded."""
        open_blocks = blocks and self.provisional.partition.blocks == "auto"
        further = {"partition.blocks": open_blocks, "blocks.windows": windows}
        self.auto = (*settings.auto, *(key for key, wanted in further.items() if wanted))
        """Names of the settings to choose."""
        self.passes = settings.passes
        """Passes over the pixels of the training views, if ``steps`` is given so."""

    def choose(self, goal: Callable[[Config, Scene, Facts], Goal]) -> list[Choice]:
        """Chooses values for all ``auto`` settings.

        Args:
            goal: (Provisional settings, scene at full size, its facts) -> the quality or time asked for.

        Raises:
            UserError: for scenes that do not load or allow no choice.
        """
        config = self.provisional
        if not self.auto:
            return []
        with contextlib.redirect_stdout(io.StringIO()):  # Loading the scene for training prints the same again.
            scene = load_scene(replace(config.scene, resolution=1.0))
        facts = measure(scene)
        wanted = replace(goal(config, scene, facts), passes=self.passes, views_per_step=_views_per_step(config))
        return choose(self.auto, config, scene, facts, this_machine(config), wanted)

    def config(self, choices: Sequence[Choice]) -> Config:
        """The settings with the given choices, and with stand-ins for ``auto`` settings not among them."""
        values = PROVISIONAL | {choice.key: choice.value for choice in choices}
        config = absolute_paths(self._settings.config(values))
        if config.partition.blocks == "auto" and "partition.blocks" in values:
            return replace(config, partition=replace(config.partition, blocks=values["partition.blocks"]))
        return config
