"""``momentum-gs sweep``: experiments that differ in a few settings, over seeds, and their table."""

import argparse
from dataclasses import replace
from pathlib import Path

from momentum_gs.cli.common import add_run_arguments, settings_of
from momentum_gs.config.shipped import find_sweep
from momentum_gs.config.sweep import load_sweep
from momentum_gs.core.log import warn
from momentum_gs.eval.lpips_metric import NETS
from momentum_gs.experiments.plan import Request
from momentum_gs.experiments.sweep import run_sweep

HELP = "a table of experiments that differ in a few settings, over seeds"
DESCRIPTION = """\
Runs every row of a sweep file with every seed: train, merge, render (merged, and block by block), eval. Then writes
OUT/<name>.{md,csv,tex,json,png}: mean and spread over seeds, differences to the reference row paired by seed, and which
orderings stand out from the spread. docs/experiments.md explains sweep files and tables.

  momentum-gs sweep table7 -s SCENE -m OUT -c demo --seeds 0,1,2 --jobs 2
  momentum-gs sweep table9 -s SCENE -m OUT -c demo     shares runs that are the same
  momentum-gs sweep table9 -s SCENE -m OUT -c demo --table

Settings: FILEs, the row's mode, key=value, then what the sweep sets. Runs lie in OUT/runs and are known by their
settings: what is finished is not run again, what was broken off is resumed, and several sweeps may work on one OUT at
the same time. The coarse model (OUT/coarse) and the partitions (OUT/partitions) are made once, with seed 0. Of a
finished run only the merged model is kept, unless --keep. Ctrl-C stops; the same command goes on. The worst block is
found among the cells of the reference row's partition, in every row: a block of 8 is not a block of 4.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add = parser.add_argument
    add("sweep", metavar="SWEEP", help="a shipped sweep by its name (table7), or your own YAML file")
    add_run_arguments(parser)
    add("--seeds", type=_seeds, metavar="S,S,...", help="instead of the file's")
    add("--only", metavar="ROW,...", help="run these rows only; the table has all that are finished")
    add("--jobs", type=int, metavar="N", help="runs at a time; default: one for each GPU, on CPUs one. The cores are "
        "shared out among them, unless OMP_NUM_THREADS says how many each gets")
    add("--coarse", metavar="FOLDER", help="coarse model for the partitions (default: OUT/coarse, trained if missing)")
    add("--keep", action="store_true", help="keep checkpoints and unmerged blocks of finished runs")
    add("--table", action="store_true", help="run nothing, write the table of what is finished")
    add("--rescore", action="store_true", help="score the renders of finished runs again")
    add("--lpips", choices=(*NETS, "none"), default="vgg", help="network of LPIPS (default: vgg), as in 'eval'")
    add("--lpips-weights", type=Path, metavar="FOLDER", help="folder with torchvision's file of that network")


def _seeds(text: str) -> tuple[int, ...]:
    """``0,1,2``; a ValueError is worded by argparse."""
    return tuple(dict.fromkeys(map(int, text.split(","))))


def run(args: argparse.Namespace) -> int:
    """Runs what is missing, writes the table, says what failed; 1 where something did."""
    sweep = load_sweep(find_sweep(args.sweep))
    if args.seeds is not None:
        sweep = replace(sweep, seeds=args.seeds)
    failed = run_sweep(sweep, request_of(args))
    for name, reason in failed.items():
        warn(f"sweep: {name} failed: {reason}")
    return 1 if failed else 0


def request_of(args: argparse.Namespace) -> Request:
    """What the parsed arguments ask for."""
    return Request(
        files=tuple(args.config or ()),
        settings=tuple(settings_of(args)),
        overrides=tuple(args.overrides),
        only=None if args.only is None else tuple(name.strip() for name in args.only.split(",")),
        jobs=args.jobs,
        coarse=args.coarse,
        keep=args.keep,
        table=args.table,
        rescore=args.rescore,
        lpips=args.lpips,
        lpips_weights=args.lpips_weights,
    )
