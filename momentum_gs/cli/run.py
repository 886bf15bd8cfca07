"""``momentum-gs run``: from images, or a scene, to a scored model and its page, in one command that can be repeated."""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from momentum_gs.cli import doctor, merge, prepare, render, report, train
from momentum_gs.cli import eval as scoring
from momentum_gs.config.load import load_settings
from momentum_gs.config.run import OWN_FILE
from momentum_gs.config.schema import Config
from momentum_gs.config.shipped import find_settings
from momentum_gs.core.comm import launched
from momentum_gs.core.device import pick_device, print_device
from momentum_gs.core.errors import UserError, complain
from momentum_gs.core.log import info, warn
from momentum_gs.core.watch import SILENCE_SECONDS, Stop
from momentum_gs.data.images import IMAGE_SUFFIXES
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.transforms import find_transforms
from momentum_gs.experiments.choose import MIN_STEPS, Facts, Goal, Quality
from momentum_gs.experiments.resolve import Choosing
from momentum_gs.experiments.run_state import RunState
from momentum_gs.experiments.run_time import Times
from momentum_gs.partition.cut import cut
from momentum_gs.train.blocks.anchor_budget import anchors_that_fit, bytes_per_anchor
from momentum_gs.train.checkpoint import checkpoints
from momentum_gs.train.pace import Pace

HELP = "all of it: from images or a scene to a scored model and its page"
DESCRIPTION = """\
Does what the other commands do, one after another: prepare (where it is given images), doctor, train, render, eval,
report. Where the scene does not fit the device as one block it is partition, blocks and merge in place of train, with
coarse before them where the partition asks for a coarse model.

  momentum-gs run IMAGES OUT                   a folder of images, from which the scene is made: OUT/scene
  momentum-gs run SCENE OUT --quality draft    a scene: sparse/ and images/, transforms.json, or train/ and val/
  momentum-gs run IMAGES OUT --minutes 10      the best that ten minutes give on this machine, all stages together

Settings that say 'auto' in the settings file are chosen from the scene and the machine; what was chosen, and why, is
printed and kept in OUT/config.yaml. Each can be given instead: 'momentum-gs run IMAGES OUT steps=5000'.

Interrupted anywhere, the same command goes on. OUT/report.html is the result on one page.
"""
_OURS = ("stage", "out", "scene.path")
"""Settings that follow from the command."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add = parser.add_argument
    add("source", metavar="IMAGES_OR_SCENE", type=Path, help="folder of images, or of a scene")
    add("out", metavar="OUT", type=Path, help="output folder")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--minutes", type=float, metavar="M", help="time for all stages together, on this machine")
    how.add_argument("--quality", choices=get_args(Quality), default="normal",
                     help="how many steps, on images of which size (default: %(default)s)")  # fmt: skip
    add("-r", "--resolution", type=float, metavar="R", help="1, 2, 4, 8 divide the image size, another number is the "
        "width, -1 caps the width at 1600 (scene.resolution); default: chosen")  # fmt: skip
    add("-c", "--config", metavar="FILE", action="append", help="settings: the name of a shipped file, or your own "
        "YAML file; default: own")  # fmt: skip
    add("overrides", nargs="*", metavar="key=value", help="any setting, e.g. steps=5000; stronger than FILE")


def run(args: argparse.Namespace) -> int:
    """Goes through the stages that are not over; returns the exit status."""
    _check(args)
    is_scene = _is_scene(args.source)
    if not is_scene and args.source.resolve() in (args.out.resolve(), *args.out.resolve().parents):
        raise UserError(f"run: {args.out} is below the images in {args.source}, and would be taken for some of them; "
                        "choose a folder beside them")  # fmt: skip
    state = RunState.open(args.out, _command(args))
    work = _Run(args, args.source if is_scene else args.out / "scene", state)
    state.add("start", args.seconds_to_start)
    try:
        if not is_scene:
            work.stage("prepare", work.prepare)
        work.stage("doctor", work.doctor)
        for name, do in work.after_doctor():
            work.stage(name, do)
    except KeyboardInterrupt:
        complain(f"interrupted after {state.seconds:.0f} s; the same command goes on")
        return 130
    work.finish()
    return 0


def _check(args: argparse.Namespace) -> None:
    keys = [text.partition("=")[0] for text in args.overrides]
    ours = [key for key in keys if key in _OURS]
    if ours:
        raise UserError(f"run: {ours[0]} is given, but follows from IMAGES_OR_SCENE and OUT; leave it out")
    if args.minutes is not None and not args.minutes > 0:
        raise UserError(f"run: --minutes is {args.minutes:g}, expected a time above 0")


def _command(args: argparse.Namespace) -> dict[str, Any]:
    """What makes two commands the same."""
    return {
        "source": os.path.abspath(args.source),
        "minutes": args.minutes,
        "quality": args.quality,
        "resolution": args.resolution,
        "config": [os.path.abspath(find_settings(file)) for file in args.config or ()],
        "overrides": sorted(args.overrides),
    }


def _is_scene(source: Path) -> bool:
    """Whether a folder holds a scene; false where it holds images.

    Raises:
        UserError: where it is neither.
    """
    if not source.is_dir():
        raise UserError(f"run: {source} is not a folder, expected one of images or of a scene; correct the path")
    parts = source / "train" / "sparse", source / "val" / "sparse"
    if (source / "sparse").is_dir() or find_transforms(source) or all(part.is_dir() for part in parts):
        return True
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in source.rglob("*")):
        return False
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    raise UserError(
        f"run: {source} holds neither images ({suffixes}) nor a scene (sparse/ beside images/, "
        "transforms.json, or train/ and val/); name another folder"
    )


class _Run:
    """The stages of one command."""

    def __init__(self, args: argparse.Namespace, scene: Path, state: RunState) -> None:
        self._args, self._scene, self._state, self._out = args, scene, state, Path(args.out)
        # Now, so that a wrong setting is reported before an hour of preparation.
        choosing = self._choosing("coarse", self._out)
        auto = choosing.auto
        if args.minutes is not None and "steps" not in auto:
            raise UserError("run: --minutes and steps are both given, and each says how long to train; leave one out")
        print_device(choosing.provisional.device)
        self._note: Callable[[], float] = lambda: state.seconds

    def stage(self, name: str, do: Callable[[], None]) -> None:
        """Does a stage, unless it is over."""
        if self._state.done(name):
            info(f"== {name}: done before ({self._state.stages[name].seconds:.1f} s)")
            return
        with self._state.stage(name) as self._note:
            do()

    def prepare(self) -> None:
        """Images to a scene."""
        # Training never takes wider images than 1600, unless told to.
        size = [] if self._args.resolution is not None else ["-r", "-1"]
        _run_command(prepare, str(self._args.source), str(self._scene), *size)

    def doctor(self) -> None:
        """Chooses what is to be chosen, and stops at what training would refuse."""
        state, refusal = self._state, None
        choosing = self._choosing("coarse", self._out)
        try:
            state.choices = choosing.choose(self._goal)
            for choice in state.choices:
                info(f"chosen   {choice}")
        except UserError as error:
            refusal = error  # The doctor may know more of it.
        config = choosing.config(state.choices)
        findings = doctor.look(config, quick=self._args.minutes is not None)
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
        """The stages from training on, now that the number of blocks is known."""
        config = self._config("blocks", self._out)
        many = config.partition.blocks != 1 or (config.partition.dim or (1, 1, 1)) != (1, 1, 1)
        stages: list[tuple[str, Callable[[], None]]] = [("train", self._train)]
        if many:
            blocks = [("partition", self._partition), ("blocks", self._blocks), ("merge", self._merge)]
            stages = [("coarse", self._coarse), *blocks] if _wants_coarse(config) else blocks
        return [*stages, ("render", self._render), ("eval", self._eval), ("report", self._report)]

    def finish(self) -> None:
        """Where the time went, and where to look."""
        out, warnings = self._out, self._state.warnings
        info(f"\n{self._state.table()}")
        asked = self._args.minutes
        if asked is not None:
            info(f"{self._state.seconds / 60:.1f} of the {asked:g} minutes asked for")
        info(f"\nLook at\n  {out / 'report.html'}   the run on one page")
        renders = sorted(path for path in (out / self._split).glob("ours_*") if path.is_dir())
        if renders:
            info(f"  {renders[-1]}/   rendered views beside the images")
        info(f"  {out / 'point_cloud'}/   the model\n  {out / 'config.yaml'}   every setting")
        if warnings:
            info(f"the doctor had {warnings} warnings: momentum-gs doctor {self._scene} -c {out / 'config.yaml'}")

    def _choosing(self, stage: str, out: Path) -> Choosing:
        args = self._args
        size = [] if args.resolution is None else [f"scene.resolution={args.resolution}"]
        ours = [f"{key}={json.dumps(str(value))}" for key, value in zip(_OURS, (stage, out, self._scene), strict=True)]
        return Choosing(load_settings(args.config or [OWN_FILE], [*size, *args.overrides, *ours]), blocks=True)

    def _config(self, stage: str, out: Path) -> Config:
        return self._choosing(stage, out).config(self._state.choices)

    def _goal(self, config: Config, scene: Scene, facts: Facts) -> Goal:
        """What steps to choose: by the quality, or by what is left of the time."""
        if self._args.minutes is None:
            return Goal(self._args.quality)
        times = Times(config, scene, facts, pick_device(config.device))

        def steps_within(resolution: float | int) -> int:
            self._state.reserve = times.after_training(resolution)
            return int(self._seconds_left() / times.step(resolution))

        return Goal(self._args.quality, steps_within)

    def _seconds_left(self) -> float:
        """For training."""
        return max(0.0, 60 * self._args.minutes - self._note() - self._state.reserve)

    def _train(self) -> None:
        config = self._config("coarse", self._out)
        if self._args.minutes is None:
            self._fit(config)
            return
        left = self._seconds_left()
        if left < 0.1 * 60 * self._args.minutes:
            warn(f"run: {self._note() / 60:.1f} of {self._args.minutes:g} minutes are over and rendering and scoring "
                 f"will take {self._state.reserve / 60:.1f}: training gets {MIN_STEPS} steps or what fits the "
                 f"remaining {left:.0f} s")  # fmt: skip

        def config_of(steps: int) -> Config:
            # Noted, so that the same command goes on with them.
            self._state.choices = [replace(c, value=steps) if c.key == "steps" else c for c in self._state.choices]
            self._note()
            return self._config("coarse", self._out)

        self._fit(config, Pace(left, config_of, MIN_STEPS))

    def _fit(self, config: Config, pace: Pace | None = None) -> None:
        """Trains, or trains on.

        Raises:
            KeyboardInterrupt: where it was asked to stop; a checkpoint was written.
        """
        assert config.out is not None
        resume, choices = bool(checkpoints(Path(config.out) / "checkpoint")), self._state.choices
        with Stop() as stop, launched(stop, SILENCE_SECONDS) as launch:
            outcome = train.train(config, launch, stop, resume=resume, choices=choices, pace=pace)
        if outcome.interrupted:
            raise KeyboardInterrupt

    def _coarse(self) -> None:
        self._fit(self._config("coarse", self._out / "coarse"))

    def _partition(self) -> None:
        config = self._config("blocks", self._out)
        limit = anchors_that_fit(config, pick_device(config.device))
        cut(config, limit, bytes_per_anchor(config.model))

    def _blocks(self) -> None:
        self._fit(self._config("blocks", self._out))

    def _merge(self) -> None:
        _run_command(merge, str(self._out))

    @property
    def _split(self) -> str:
        """Held-out views, or where none is held out the training views."""
        return "test" if load_scene(self._config("blocks", self._out).scene).test else "train"

    def _render(self) -> None:
        _run_command(render, str(self._out), "--split", self._split)

    def _eval(self) -> None:
        _run_command(scoring, str(self._out), "--split", self._split)

    def _report(self) -> None:
        _run_command(report, str(self._out), "--split", self._split)


def _wants_coarse(config: Config) -> bool:
    return config.partition.assign != "visibility" or config.starts_from_coarse


def _run_command(module: ModuleType, *argv: str) -> None:
    """Runs another command as its command line would."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_intermixed_args(argv))
