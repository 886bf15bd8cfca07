"""``momentum-gs distill``: from finished runs to a small student, scored and reported, in one command."""

import argparse
import importlib
import os
from pathlib import Path

from momentum_gs.config.shipped import find_settings
from momentum_gs.core.device import print_device
from momentum_gs.core.errors import UserError, complain
from momentum_gs.core.log import info
from momentum_gs.experiments.distillation import Distilling, DistillRequest
from momentum_gs.experiments.run_state import RunState

HELP = "train a small model of explicit Gaussians that learns from finished runs"
DESCRIPTION = """\
Trains a student: explicit Gaussians that learn from the images and from the mean render of the teachers, which are
finished and merged runs of the same scene, of anchors or of Gaussians. In the middle of the training it is pruned to
--gaussians. The result is a run like any other: it is rendered, scored, viewed and exported.

  momentum-gs distill RUN -m OUT --gaussians 20%       a fifth of the Gaussians with which RUN draws its images
  momentum-gs distill A B C -m OUT --gaussians 0.5M    several teachers
  momentum-gs export OUT -o city.spz

Settings are those of the first RUN, then those of configs/distill/student.yaml, FILEs and key=value
(docs/distillation.md). After an interruption, the same command continues.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="output folder of a teacher; further words key=value are settings")
    add("-m", "--model_path", metavar="OUT", type=Path, required=True, help="output folder of the student")
    add("--gaussians", metavar="N", help="number of Gaussians: 500000, 0.5M, or a share of the first teacher's such as "
        "20%% (distill.gaussians); default: all")
    add("-c", "--config", metavar="FILE", action="append", help="settings file: a shipped one by its name, or the path "
        "of your own YAML file; may be repeated, later files override earlier ones")


def run(args: argparse.Namespace) -> int:
    """Runs the stages that are not finished; returns the exit status."""
    overrides = tuple(word for word in args.runs if "=" in word and not Path(word).is_dir())
    runs = tuple(Path(word) for word in args.runs if word not in overrides)
    if not runs:
        raise UserError("distill: no RUN is given, expected the output folder of at least one finished run")
    request = DistillRequest(runs, args.model_path, args.gaussians, tuple(args.config or ()), overrides)
    work = Distilling(request, _run_command)
    state = RunState.open(args.model_path, _identity(request))
    print_device(request.config().device)
    try:
        for name, do in work.stages():
            if state.done(name):
                info(f"== {name}: done before ({state.stages[name].seconds:.1f} s)")
                continue
            with state.stage(name):
                do()
    except KeyboardInterrupt:
        complain(f"interrupted after {state.seconds:.0f} s; the same command continues the run")
        return 130
    info(f"\n{state.table()}")
    return 0


def _identity(request: DistillRequest) -> dict[str, object]:
    """The request as plain data: a run may be continued only by a command for which this is equal."""
    return {
        "runs": [os.path.abspath(path) for path in request.runs],
        "gaussians": request.gaussians,
        "config": [os.path.abspath(find_settings(file)) for file in request.files],
        "overrides": sorted(request.overrides),
    }


def _run_command(name: str, *argv: str) -> None:
    """Runs another command with the given command-line arguments, in this process."""
    module = importlib.import_module(f"momentum_gs.cli.{name}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_intermixed_args(argv))
