"""``momentum-gs sweep``: runs experiments that differ in a few settings, over seeds, and tabulates their scores."""

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

HELP = "run experiments that differ in a few settings, over seeds, and write a table of their scores"
DESCRIPTION = """\
Runs every row of a sweep file with every seed: train, merge, render (merged, and block by block), eval. Then writes
OUT/<name>.{md,csv,tex,json,png}: mean and spread over seeds, differences to the reference row paired by seed, and which
orderings exceed the spread. docs/experiments.md explains sweep files and tables.

  momentum-gs sweep table7 -s SCENE -m OUT -c demo --seeds 0,1,2 --jobs 2
  momentum-gs sweep table9 -s SCENE -m OUT -c demo     reuses runs with the same settings
  momentum-gs sweep table9 -s SCENE -m OUT -c demo --table

Settings are applied in this order, later ones overriding earlier ones: FILEs, the row's mode, key=value, the sweep's.
Runs are stored in OUT/runs and identified by their settings: finished ones are not repeated, interrupted ones are
resumed, and several sweeps may use one OUT at the same time. The coarse model (OUT/coarse) and the partitions
(OUT/partitions) are made once, with seed 0. Of a finished run only the merged model is kept, unless --keep is given.
Ctrl-C stops the sweep; the same command continues it. In every row, the worst block is that among the cells of the
reference row's partition, as the worst of 8 blocks is not comparable to the worst of 4.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add = parser.add_argument
    add("sweep", metavar="SWEEP", help="a shipped sweep by its name (table7), or your own YAML file")
    add_run_arguments(parser)
    add("--seeds", type=_seeds, metavar="S,S,...", help="seeds to use instead of the file's")
    add("--only", metavar="ROW,...", help="run only these rows; the table includes all finished rows")
    add("--jobs", type=int, metavar="N", help="number of simultaneous runs; default: one per GPU, without GPUs one. "
        "The cores are divided among them, unless OMP_NUM_THREADS sets the threads of each")
    add("--coarse", metavar="FOLDER", help="coarse model for the partitions (default: OUT/coarse, trained if missing)")
    add("--keep", action="store_true", help="keep checkpoints and unmerged blocks of finished runs")
    add("--table", action="store_true", help="run nothing; write the table of the finished runs")
    add("--rescore", action="store_true", help="score the renders of finished runs again")
    add("--lpips", choices=(*NETS, "none"), default="vgg", help="network of LPIPS (default: vgg), as in 'eval'")
    add("--lpips-weights", type=Path, metavar="FOLDER", help="folder with torchvision's weights of that network")


def _seeds(text: str) -> tuple[int, ...]:
    """``0,1,2`` -> (0, 1, 2), without repetitions; argparse turns a ValueError into its own message."""
    return tuple(dict.fromkeys(map(int, text.split(","))))


def run(args: argparse.Namespace) -> int:
    """Runs what is missing, writes the table, prints what failed; returns 1 if anything did, else 0."""
    sweep = load_sweep(find_sweep(args.sweep))
    if args.seeds is not None:
        sweep = replace(sweep, seeds=args.seeds)
    failed = run_sweep(sweep, request_of(args))
    for name, reason in failed.items():
        warn(f"sweep: {name} failed: {reason}")
    return 1 if failed else 0


def request_of(args: argparse.Namespace) -> Request:
    """The parsed arguments as a request."""
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
