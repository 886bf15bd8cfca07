"""``momentum-gs COMMAND``: find the command, run it, turn what went wrong into one line and an exit status.

A command is a module of this package with ``DESCRIPTION`` (what ``--help`` says), ``add_arguments(parser)`` and
``run(args) -> int | None``. Only the chosen one is imported, so that ``--help`` and typing errors answer at once.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence

from momentum_gs import __version__
from momentum_gs.core.errors import UserError, complain
from momentum_gs.core.memory import keep_freed_memory

COMMANDS = {
    "run": "all of it: from images or a scene to a scored model and its page",
    "synth": "write a procedural city as a COLMAP scene",
    "prepare": "images, or a published data set, to a scene that trains",
    "doctor": "what is wrong with a scene before it trains, and what training it will take",
    "partition": "cut a scene into blocks and give each block its cameras",
    "train": "train the coarse model, or the blocks of a partitioned scene",
    "merge": "crop every block to its cell and join them to one model",
    "render": "render the test or training views of a finished run",
    "eval": "score rendered views: PSNR, SSIM, LPIPS, raw, colour-corrected and fitted",
    "report": "one self-contained HTML page about a run",
    "sweep": "a table of experiments that differ in a few settings, over seeds",
    "bench": "timings of a training step, of growth, of swapping blocks and of the kernels",
}

GROUPS = {
    "all at once": ("run",),
    "make a scene": ("prepare", "synth"),
    "check it": ("doctor",),
    "train": ("partition", "train", "merge"),
    "look and score": ("render", "eval", "report"),
    "compare methods": ("sweep",),
    "measure the program": ("bench",),
}
"""What a person wants to do, and the commands for it in the usual order."""

USUAL_ORDER = """\
The usual order: prepare, doctor, partition, train, merge, render, eval, report. 'run' does all of it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own); returns the exit status: 0, 2 user error, 130 interrupted."""
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
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="what to do, see below")
    if not argv:
        parser.exit(2, f"usage: {parser.usage}\n\n{parser.description}\n\n{overview}\n")
    name = parser.parse_args(argv[:1]).command

    # OpenMP's threads spin while they wait for each other. That gains a little on an idle machine (53 against 66 ms a
    # step of the drone scene), and loses a lot where another program wants a core too (230 to 1000 against 90 ms). It
    # is read when torch is loaded, below; whoever has set it keeps it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Where a connection breaks, torch's C++ prints its stack on every rank, beside the one message that explains it.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    keep_freed_memory()
    from momentum_gs.core.kernels import check_kernels  # Here, as it loads torch.

    check_kernels()
    module = importlib.import_module(f"momentum_gs.cli.{name}")
    parser = argparse.ArgumentParser(
        prog=f"momentum-gs {name}", description=module.DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    module.add_arguments(parser)
    # Intermixed: 'key=value' may stand before, between and after the flags.
    args = parser.parse_intermixed_args(argv[1:])
    args.seconds_to_start = time.perf_counter() - begun
    return module.run(args) or 0


def _overview() -> str:
    """All commands by what they are for, one line each."""
    lines = []
    for purpose, names in GROUPS.items():
        lines += [f"{purpose}:", *(f"  {name:<11}{COMMANDS[name]}" for name in names), ""]
    return "\n".join([*lines, USUAL_ORDER, "'momentum-gs COMMAND --help' explains a command."])
