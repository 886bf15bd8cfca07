"""``momentum-gs COMMAND``: finds the command, runs it, and turns errors into one line and an exit status.

A command is a module of this package (``MODULES`` where it has another name) with ``HELP`` (one line), ``DESCRIPTION``
(the text of its ``--help``), ``add_arguments(parser)`` and ``run(args) -> int | None``. Only the chosen module is
imported, so that ``--help`` and mistyped commands are answered at once.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence

from momentum_gs import __version__
from momentum_gs.core.cores import limit_threads
from momentum_gs.core.errors import UserError, complain
from momentum_gs.core.memory import keep_freed_memory

COMMANDS = {
    "run": "do everything: from images or a scene to a scored model and a report",
    "synth": "generate a procedural city and write it as a COLMAP scene",
    "prepare": "make a scene from images (structure from motion) or from a published data set",
    "doctor": "find what is wrong with a scene before training, and estimate memory, disk and time",
    "partition": "cut a scene into blocks and assign each block its training views",
    "train": "train the coarse model, or the blocks of a partitioned scene",
    "merge": "crop every block to its cell and join the blocks into one model",
    "distill": "train a small model of explicit Gaussians that learns from finished runs",
    "render": "render the test or training views of a finished run",
    "eval": "score rendered views: PSNR, SSIM, LPIPS; raw, colour-corrected and fitted",
    "report": "write a self-contained HTML page about a run",
    "view": "show runs, exports or a running training in a browser",
    "mesh": "make a triangle mesh of a finished run's surface",
    "eval-mesh": "score a mesh against a reference: precision, recall, F1, distances",
    "video": "render a run along a camera path into a video",
    "import": "make a run of a model that another program trained",
    "export": "write the model as standard 3D Gaussians, and say what that costs",
    "devices": "train blocks on devices that keep their images, and aggregate their models",
    "compress": "prune and compress the model of a block, and write what a device sends",
    "aggregate": "join the models that devices or edges have sent into one",
    "sweep": "run experiments that differ in a few settings, over seeds, and write a table of their scores",
    "bench": "time training steps, growth, block swaps or kernels",
}

GROUPS = {
    "everything in one command": ("run",),
    "make a scene": ("prepare", "synth"),
    "check a scene": ("doctor",),
    "train": ("partition", "train", "merge", "distill"),
    "render and score": ("render", "eval", "report"),
    "surfaces": ("mesh", "eval-mesh"),
    "view and export": ("view", "video", "import", "export"),
    "compress, send and merge": ("devices", "compress", "aggregate"),
    "compare methods": ("sweep",),
    "benchmark": ("bench",),
}
"""Purpose -> the commands for it, in the usual order."""

MODULES = {"import": "import_model", "eval-mesh": "eval_mesh"}
"""Command -> its module, where that has another name, as 'import' is a word of Python and a hyphen is none."""

USUAL_ORDER = """\
The usual order is prepare, doctor, partition, train, merge, render, eval, report. 'run' does all of it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: Its words without the program's name; None: those of the process.

    Returns:
        The exit status: the command's own, 2 after a ``UserError``, 130 after an interruption.
    """
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130


def _run(argv: list[str]) -> int:
    begun = time.perf_counter()
    overview = _overview()
    parser = argparse.ArgumentParser(
        prog="momentum-gs",
        usage="momentum-gs COMMAND ...",
        description="Large scenes as blocks of anchored 3D Gaussians that share one decoder.",
        epilog=overview,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"momentum-gs {__version__}")
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those below")
    if not argv:
        parser.exit(2, f"usage: {parser.usage}\n\n{parser.description}\n\n{overview}\n")
    name = parser.parse_args(argv[:1]).command

    # By default, OpenMP's threads spin while they wait for each other. That gains a little on an idle machine (53
    # instead of 66 ms per step of the drone scene) and loses a lot if another program needs a core (230 to 1000 instead
    # of 90 ms). The variable is read when torch is loaded, below; a value that the user has set is kept.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # When a connection breaks, torch's C++ code prints a stack trace on every rank, which hides the explaining message.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    limit_threads()
    keep_freed_memory()
    from momentum_gs.core.kernels import check_kernels  # Imported late because it loads torch.

    check_kernels()
    module = importlib.import_module(f"momentum_gs.cli.{MODULES.get(name, name)}")
    parser = argparse.ArgumentParser(
        prog=f"momentum-gs {name}", description=module.DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    # Intermixed, so that 'key=value' may stand before, between and after the flags.
    args = parser.parse_intermixed_args(argv[1:])
    args.seconds_to_start = time.perf_counter() - begun
    return module.run(args) or 0


def _overview() -> str:
    """All commands by purpose, one line each."""
    lines = []
    for purpose, names in GROUPS.items():
        lines += [f"{purpose}:", *(f"  {name:<11}{COMMANDS[name]}" for name in names), ""]
    return "\n".join([*lines, USUAL_ORDER, "'momentum-gs COMMAND --help' explains a command."])
