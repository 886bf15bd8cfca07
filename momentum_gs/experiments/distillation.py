"""``momentum-gs distill``: from finished runs to a small student, in stages that can be resumed."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from momentum_gs.config.load import load_settings
from momentum_gs.config.run import absolute_paths, load_run_config
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import launched
from momentum_gs.core.device import pick_device
from momentum_gs.core.watch import SILENCE_SECONDS, Stop
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.experiments.training import train
from momentum_gs.partition.cut import cut
from momentum_gs.train.blocks.anchor_budget import anchors_that_fit, bytes_per_anchor
from momentum_gs.train.checkpoint import checkpoints
from momentum_gs.train.distillation.teachers import load_teachers

SETTINGS = "distill/compact"
"""Name of the shipped settings of a student."""


@dataclass(frozen=True)
class DistillRequest:
    """The parsed command line of ``momentum-gs distill``."""

    runs: tuple[Path, ...]
    """Output folders of the teachers."""
    out: Path
    """Output folder of the student."""
    gaussians: str | None = None
    """``distill.gaussians``; None: as the settings say."""
    files: tuple[str, ...] = ()
    """Settings files, after those of the first run and of ``SETTINGS``."""
    overrides: tuple[str, ...] = ()
    """``key=value``."""

    def config(self) -> Config:
        """The student's settings, with absolute paths; raises UserError for settings and runs that cannot be read."""
        for run in self.runs:
            load_run_config(run)
        teachers = json.dumps([str(run.absolute()) for run in self.runs])
        ours = [f"distill.teachers={teachers}", f"out={json.dumps(str(self.out.absolute()))}", "stage=blocks"]
        if self.gaussians is not None:
            ours.append(f"distill.gaussians={self.gaussians}")
        files: list[str | Path] = [self.runs[0] / "config.yaml", SETTINGS, *self.files]
        return absolute_paths(load_settings(files, [*self.overrides, *ours], quiet=True).config())


class Distilling:
    """The stages of ``momentum-gs distill``."""

    def __init__(self, request: DistillRequest, command: Callable[..., None]) -> None:
        """
        Args:
            request: The command line.
            command: (Name, arguments...): runs another command as from the command line.

        Raises:
            UserError: for invalid settings, and for teachers that do not fit each other.
        """
        self._request, self._config, self._command = request, request.config(), command
        scene = load_scene(self._config.scene)
        ours, cpu = scene.frame.recorded(self._config.scene), torch.device("cpu")
        load_teachers(self._config.distill.teachers, scene, ours, cpu)  # Refuses what does not fit before it begins.
        self._split = "test" if scene.test else "train"

    def stages(self) -> list[tuple[str, Callable[[], None]]]:
        """(Name, function) of the stages, in their order."""
        out = str(self._request.out)
        split = ["--split", self._split]
        return [
            ("partition", self._partition),
            ("train", self._train),
            ("merge", lambda: self._command("merge", out)),
            ("render", lambda: self._command("render", out, *split)),
            ("eval", lambda: self._command("eval", out, *split)),
            ("report", lambda: self._command("report", out, *split)),
        ]

    def _partition(self) -> None:
        """Takes the first run's partition; without one, or if the settings ask for another, cuts the scene."""
        config, first = self._config, self._request.runs[0]
        file = first / "partition.json"
        theirs = replace(load_run_config(first).partition, file=None, coarse=None)
        if file.is_file() and theirs == replace(config.partition, file=None, coarse=None):
            PartitionTable.load(file).save(self._request.out / "partition.json")
            return
        # The teacher's model says as well as a coarse one which views see which block.
        config = replace(config, partition=replace(config.partition, coarse=str(first.absolute())))
        cut(config, anchors_that_fit(config, pick_device(config.device)), bytes_per_anchor(config.model))

    def _train(self) -> None:
        """Trains, or resumes from a checkpoint.

        Raises:
            KeyboardInterrupt: if training was asked to stop, after a checkpoint was written.
        """
        resume, config = bool(checkpoints(self._request.out / "checkpoint")), self._config
        given = any(setting.startswith("blocks.active=") for setting in self._request.overrides)
        if isinstance(config.blocks.active, int) and not given:
            # The first run's number may exceed that of the student's blocks.
            blocks = PartitionTable.load(self._request.out / "partition.json").n
            config = replace(config, blocks=replace(config.blocks, active=min(config.blocks.active, blocks)))
        with Stop() as stop, launched(stop, SILENCE_SECONDS) as launch:
            outcome = train(config, launch, stop, resume=resume)
        if outcome.interrupted:
            raise KeyboardInterrupt
