"""The stages of ``momentum-gs run``: their order, the choice of settings, and what each stage does."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from momentum_gs.config.load import load_settings
from momentum_gs.config.run import OWN_FILE, WINDOWS_FILE
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import launched
from momentum_gs.core.device import pick_device, print_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info, warn
from momentum_gs.core.watch import SILENCE_SECONDS, Stop
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.doctor.look import look
from momentum_gs.experiments.choose import (
    MIN_STEPS,
    Choice,
    Facts,
    Goal,
    Quality,
    anchors_within,
    step_of_all,
    wants_coarse,
)
from momentum_gs.experiments.resolve import Choosing, this_machine
from momentum_gs.experiments.run_state import RunState
from momentum_gs.experiments.run_time import Times
from momentum_gs.experiments.training import train
from momentum_gs.partition.cut import cut
from momentum_gs.train.blocks.anchor_budget import anchors_that_fit, bytes_per_anchor
from momentum_gs.train.checkpoint import checkpoints
from momentum_gs.train.events import Observer
from momentum_gs.train.pace import Pace

SET_BY_RUN = ("stage", "out", "scene.path")
"""Settings that follow from the command line."""
STEADY = ("permutation", "sequential")
"""Schedules (``blocks.schedule``) whose first rounds do not depend on the number of steps."""
SET_WITH_WINDOWS = ("blocks.windows", "blocks.from_coarse", "partition.assign")
"""If any of these is given, ``run`` does not choose whether several blocks train with windows."""


@dataclass(frozen=True)
class RunRequest:
    """The parsed command line of ``momentum-gs run``."""

    source: Path
    """Folder of images, or of a scene."""
    out: Path
    """Output folder."""
    minutes: float | None = None
    """Time for all stages together; None: ``quality`` decides on the number of steps."""
    quality: Quality = "normal"
    resolution: float | None = None
    """``scene.resolution``; None: it is chosen."""
    files: tuple[str, ...] = ()
    """Settings files; empty: configs/own.yaml."""
    overrides: tuple[str, ...] = ()
    """``key=value``."""


class Pipeline:
    """The stages of ``momentum-gs run``."""

    def __init__(
        self,
        request: RunRequest,
        scene: Path,
        state: RunState,
        command: Callable[..., None],
        watchers: Sequence[Observer] = (),
    ) -> None:
        """
        Args:
            request: The command line.
            scene: Folder of the scene.
            state: The state of the run.
            command: (Name, arguments...): runs another command as from the command line.
            watchers: Further observers of the training of the model, not of a coarse one.

        Raises:
            UserError: for invalid settings.
        """
        self._request, self._scene, self._state, self._out = request, scene, state, request.out
        self._command, self._watchers = command, watchers
        # Done first, so that a wrong setting is reported before an hour of preparation.
        choosing = self._choosing("coarse", self._out)
        if request.minutes is not None and ("steps" not in choosing.auto or choosing.passes is not None):
            raise UserError("run: --minutes and steps are both given, and each says how long to train; leave one out")
        print_device(choosing.provisional.device)
        self._note: Callable[[], float] = lambda: state.seconds

    def stage(self, name: str, do: Callable[[], None]) -> None:
        """Runs a stage, unless it is done."""
        if self._state.done(name):
            info(f"== {name}: done before ({self._state.stages[name].seconds:.1f} s)")
            return
        with self._state.stage(name) as self._note:
            do()

    def prepare(self) -> None:
        """Makes a scene from images."""
        # Training does not use images wider than 1600 pixels, unless a resolution is given.
        size = [] if self._request.resolution is not None else ["-r", "-1"]
        self._command("prepare", str(self._request.source), str(self._scene), *size)

    def doctor(self) -> None:
        """Chooses the ``auto`` settings and examines the scene; raises UserError for what training would refuse."""
        state, refusal = self._state, None
        choosing = self._choosing("coarse", self._out)
        try:
            state.choices = choosing.choose(self._goal)
            for choice in state.choices:
                info(f"chosen   {choice}")
        except UserError as error:
            refusal = error  # The doctor may explain it better.
        config = self._config("coarse", self._out)
        findings = look(config, quick=self._request.minutes is not None)
        for finding in findings:
            info(f"{finding.severity:<8} {finding}")
        errors = [finding for finding in findings if finding.severity == "error"]
        state.warnings = sum(finding.severity == "warning" for finding in findings)
        if errors:
            raise UserError(f"run: the doctor found {len(errors)} errors in {self._scene}, listed above, expected "
                            "none; correct them, then repeat the command")  # fmt: skip
        if refusal is not None:
            raise refusal

    def after_doctor(self) -> list[tuple[str, Callable[[], None]]]:
        """(Name, function) of the stages after the doctor; they depend on the number of blocks, known by then."""
        config = self._config("blocks", self._out)
        many = config.partition.blocks != 1 or (config.partition.dim or (1, 1, 1)) != (1, 1, 1)
        stages: list[tuple[str, Callable[[], None]]] = [("train", self._train)]
        if many:
            blocks = [("partition", self._partition), ("blocks", self._blocks), ("merge", self._merge)]
            stages = [("coarse", self._coarse), *blocks] if wants_coarse(config) else blocks
        return [*stages, ("render", self._render), ("eval", self._eval), ("report", self._report)]

    def finish(self) -> None:
        """Prints the time of each stage and the files of the result."""
        out, warnings = self._out, self._state.warnings
        info(f"\n{self._state.table()}")
        asked = self._request.minutes
        if asked is not None:
            info(f"used {self._state.seconds / 60:.1f} of {asked:g} minutes")
        info(f"\nLook at\n  {out / 'report.html'}   the run on one page")
        renders = sorted(path for path in (out / self._split).glob("ours_*") if path.is_dir())
        if renders:
            info(f"  {renders[-1]}/   rendered views beside the images")
        info(f"  {out / 'point_cloud'}/   the model\n  {out / 'config.yaml'}   every setting")
        if warnings:
            info(f"the doctor had {warnings} warnings: momentum-gs doctor {self._scene} -c {out / 'config.yaml'}")

    def _choosing(self, stage: str, out: Path) -> Choosing:
        request = self._request
        size = [] if request.resolution is None else [f"scene.resolution={request.resolution}"]
        values = (stage, out, self._scene)
        ours = [f"{key}={json.dumps(str(value))}" for key, value in zip(SET_BY_RUN, values, strict=True)]
        chosen = any(choice.key == "blocks.windows" and choice.value for choice in self._state.choices)
        files = request.files or ((OWN_FILE, WINDOWS_FILE) if chosen else (OWN_FILE,))
        given = request.files or any(words.split("=")[0] in SET_WITH_WINDOWS for words in request.overrides)
        settings = load_settings(files, [*size, *request.overrides, *ours])
        return Choosing(settings, blocks=True, windows=not given)

    def _config(self, stage: str, out: Path) -> Config:
        return self._choosing(stage, out).config(self._state.choices)

    def _goal(self, config: Config, scene: Scene, facts: Facts) -> Goal:
        """The goal by which steps are chosen: the quality, or the time that is left."""
        if self._request.minutes is None:
            return Goal(self._request.quality)
        times = Times(config, scene, facts, pick_device(config.device))

        def steps_within(resolution: float | int) -> int:
            self._state.reserve = times.after_training(resolution)
            return int(self._seconds_left() / times.step(resolution))

        return Goal(self._request.quality, steps_within)

    def _seconds_left(self) -> float:
        """Seconds left for training."""
        assert self._request.minutes is not None
        return max(0.0, 60 * self._request.minutes - self._note() - self._state.reserve)

    def _train(self) -> None:
        self._fit_in_time("train", lambda: self._config("coarse", self._out))

    def _fit_in_time(self, stage: str, config: Callable[[], Config], of_all: float = 1.0, rest: int = 0) -> None:
        """Trains, with as many steps as the time allows if there is a limit.

        Args:
            stage: Name of the stage.
            config: Its settings, with the number of steps as chosen so far.
            of_all: This stage may take one part in so many of the time for training.
            rest: Steps of a block that have to follow those done (``Pace``).
        """
        if self._request.minutes is None:
            self._fit(config())
            return
        left = self._seconds_left()
        if left < 0.1 * 60 * self._request.minutes:
            warn(f"run: {self._note() / 60:.1f} of {self._request.minutes:g} minutes are over and rendering and "
                 f"scoring will take {self._state.reserve / 60:.1f}: training gets {MIN_STEPS} steps or what fits the "
                 f"remaining {left:.0f} s")  # fmt: skip

        def config_of(steps: int) -> Config:
            self._take_steps(steps)
            return config()

        before = self._state.stages[stage].seconds  # In earlier attempts.
        self._fit(config(), Pace(max(0.0, (before + left) / of_all - before), config_of, MIN_STEPS, rest))

    def _take_steps(self, steps: int) -> None:
        """Replaces the number of steps, and saves it, so that a repeated command continues with it."""
        self._state.choices = with_steps(self._state.choices, steps)
        self._note()

    def _fit(self, config: Config, pace: Pace | None = None) -> None:
        """Trains, or resumes from a checkpoint.

        Raises:
            KeyboardInterrupt: if training was asked to stop, after a checkpoint was written.
        """
        assert config.out is not None
        resume, choices = bool(checkpoints(Path(config.out) / "checkpoint")), self._state.choices
        watchers = self._watchers if Path(config.out) == self._out else ()
        with Stop() as stop, launched(stop, SILENCE_SECONDS) as launch:
            outcome = train(config, launch, stop, resume=resume, choices=choices, pace=pace, watchers=watchers)
        if outcome.interrupted:
            raise KeyboardInterrupt

    def _coarse(self) -> None:
        def config() -> Config:
            found = self._config("coarse", self._out / "coarse")
            # Perhaps there are several blocks because one does not fit: the coarse model stops growing at what does.
            limit = anchors_within(found, this_machine(found))
            return replace(found, anchors=replace(found.anchors, max_per_block=limit))

        self._fit_in_time("coarse", config, step_of_all(self._n_blocks(), config().blocks.windows, coarse=True))

    def _partition(self) -> None:
        config = self._config("blocks", self._out)
        limit = anchors_that_fit(config, pick_device(config.device))
        cut(config, limit, bytes_per_anchor(config.model))

    def _blocks(self) -> None:
        choosing = self._choosing("blocks", self._out)
        if choosing.passes is not None:  # What the blocks own, which decides on their steps, is known by now.
            steps = next(choice for choice in choosing.choose(self._goal) if choice.key == "steps")
            info(f"chosen   {steps}")
            self._state.choices = [steps if choice.key == "steps" else choice for choice in self._state.choices]
        elif self._request.minutes is not None and not checkpoints(self._out / "checkpoint"):
            self._choose_block_steps()
        blocks = choosing.config(self._state.choices).blocks
        longer = choosing.config(with_steps(self._state.choices, 2 * MIN_STEPS)).blocks
        if blocks.windows and blocks.schedule in STEADY and blocks.interval == longer.interval:
            rest = max(1, blocks.decoder_freeze_rounds) * blocks.interval
            self._fit_in_time("blocks", lambda: self._config("blocks", self._out), rest=rest)
        else:  # Rounds depend on the number of steps, so that those that are over could not stay as they are.
            self._fit(self._config("blocks", self._out))

    def _choose_block_steps(self) -> None:
        """Gives the blocks as many steps as the time allows, by what those of the coarse model took."""
        coarse = self._state.stages.get("coarse")
        if coarse is None:
            return
        config = self._config("blocks", self._out)
        each = coarse.seconds / config.steps * step_of_all(self._n_blocks(), config.blocks.windows, coarse=False)
        steps = max(MIN_STEPS, int(self._seconds_left() / each))
        info(f"chosen   {Choice('steps', steps, 'as many as the time allows, by what those of the coarse model took')}")
        self._take_steps(steps)

    def _n_blocks(self) -> int:
        cut = self._config("blocks", self._out).partition
        n = math.prod(cut.dim) if cut.dim else cut.blocks
        assert n != "auto", "chosen at the stage doctor"
        return n

    def _merge(self) -> None:
        self._command("merge", str(self._out))

    @property
    def _split(self) -> str:
        """The split to render and score: test, or train if no view is held out."""
        return "test" if load_scene(self._config("blocks", self._out).scene).test else "train"

    def _render(self) -> None:
        self._command("render", str(self._out), "--split", self._split)

    def _eval(self) -> None:
        self._command("eval", str(self._out), "--split", self._split)

    def _report(self) -> None:
        self._command("report", str(self._out), "--split", self._split)


def with_steps(choices: Sequence[Choice], steps: int) -> list[Choice]:
    """The choices with another number of steps."""
    return [replace(choice, value=steps) if choice.key == "steps" else choice for choice in choices]
