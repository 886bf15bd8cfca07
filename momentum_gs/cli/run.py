"""``momentum-gs run``: from images or a scene to a scored model and a report, in one command that can be resumed."""

import argparse
import importlib
import os
from pathlib import Path
from typing import Any, get_args

from momentum_gs.config.shipped import find_settings
from momentum_gs.core.errors import UserError, complain
from momentum_gs.data.images import IMAGE_SUFFIXES
from momentum_gs.data.transforms import find_transforms
from momentum_gs.experiments.choose import Quality
from momentum_gs.experiments.pipeline import SET_BY_RUN, Pipeline, RunRequest
from momentum_gs.experiments.run_state import RunState
from momentum_gs.viewer.companion import watchers

HELP = "do everything: from images or a scene to a scored model and a report"
DESCRIPTION = """\
Runs the other commands one after another: prepare (if given images), doctor, train, render, eval, report. If the scene
does not fit the device as one block, train is replaced by the stages partition, blocks and merge, preceded by coarse if
the partition needs a coarse model.

  momentum-gs run IMAGES OUT                   a folder of images; the scene is written to OUT/scene
  momentum-gs run SCENE OUT --quality draft    a scene: sparse/ and images/, transforms.json, or train/ and val/
  momentum-gs run IMAGES OUT --minutes 10      the best quality that ten minutes on this machine allow, in all stages

Settings with the value 'auto' in the settings file are chosen from the scene and the machine; the choices and their
reasons are printed and kept in OUT/config.yaml. To choose yourself: 'momentum-gs run IMAGES OUT steps=5000'.

After an interruption, the same command continues the run. The result is summarized in OUT/report.html.
"""

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add = parser.add_argument
    add("source", metavar="IMAGES_OR_SCENE", type=Path, help="folder of images, or scene folder")
    add("out", metavar="OUT", type=Path, help="output folder")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--minutes", type=float, metavar="M", help="time limit for all stages together, on this machine")
    how.add_argument("--quality", choices=get_args(Quality), default="normal",
                     help="sets the number of steps and the image size (default: %(default)s)")  # fmt: skip
    add("-r", "--resolution", type=float, metavar="R", help="1, 2, 4, 8 divide the image size, any other number is the "
        "width in pixels, -1 caps the width at 1600 (scene.resolution); default: chosen automatically")  # fmt: skip
    add("-c", "--config", metavar="FILE", action="append", help="settings file: a shipped one by its name, or the path "
        "of your own YAML file; may be repeated, later files override earlier ones; default: own")  # fmt: skip
    add("--view", type=int, nargs="?", const=8080, metavar="PORT",
        help="show the training in a browser at this port of this machine (default: 8080), see 'momentum-gs view'")
    add("overrides", nargs="*", metavar="key=value", help="any setting, e.g. steps=5000; overrides FILE")


def run(args: argparse.Namespace) -> int:
    """Runs the stages that are not finished; returns the exit status."""
    _check(args)
    is_scene = _is_scene(args.source)
    if not is_scene and args.source.resolve() in (args.out.resolve(), *args.out.resolve().parents):
        raise UserError(f"run: {args.out} is inside the image folder {args.source}, where its images would be read as "
                        "input; choose a folder outside of it")  # fmt: skip
    request = RunRequest(args.source, args.out, args.minutes, args.quality, args.resolution, tuple(args.config or ()),
                         tuple(args.overrides))  # fmt: skip
    watching = [] if args.view is None else watchers(args.out, args.view)
    state = RunState.open(args.out, _identity(request))
    work = Pipeline(request, args.source if is_scene else args.out / "scene", state, _run_command, watching)
    state.add("start", args.seconds_to_start)
    try:
        if not is_scene:
            work.stage("prepare", work.prepare)
        work.stage("doctor", work.doctor)
        for name, do in work.after_doctor():
            work.stage(name, do)
    except KeyboardInterrupt:
        complain(f"interrupted after {state.seconds:.0f} s; the same command continues the run")
        return 130
    work.finish()
    return 0


def _check(args: argparse.Namespace) -> None:
    keys = [text.partition("=")[0] for text in args.overrides]
    ours = [key for key in keys if key in SET_BY_RUN]
    if ours:
        raise UserError(f"run: {ours[0]} is given, but follows from IMAGES_OR_SCENE and OUT; leave it out")
    if args.minutes is not None and not args.minutes > 0:
        raise UserError(f"run: --minutes is {args.minutes:g}, expected a time above 0")


def _identity(request: RunRequest) -> dict[str, Any]:
    """The request as plain data: a run may be continued only by a command for which this is equal."""
    return {
        "source": os.path.abspath(request.source),
        "minutes": request.minutes,
        "quality": request.quality,
        "resolution": request.resolution,
        "config": [os.path.abspath(find_settings(file)) for file in request.files],
        "overrides": sorted(request.overrides),
    }


def _is_scene(source: Path) -> bool:
    """Whether a folder holds a scene; False if it holds images only.

    Raises:
        UserError: if it is no folder, or holds neither.
    """
    if not source.is_dir():
        raise UserError(f"run: {source} is not a folder, expected an image folder or a scene folder; correct the path")
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


def _run_command(name: str, *argv: str) -> None:
    """Runs another command with the given command-line arguments, in this process."""
    module = importlib.import_module(f"momentum_gs.cli.{name}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_intermixed_args(argv))
