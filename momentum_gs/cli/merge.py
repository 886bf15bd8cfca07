"""``momentum-gs merge``: crop every block to its cell and join them to one model."""

import argparse
from pathlib import Path

from momentum_gs.config.run import load_run_config
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.merge.blocks import merge_blocks
from momentum_gs.model.io import model_folder

HELP = "crop every block to its cell and join them to one model"
DESCRIPTION = """\
Reads OUT/point_cloud/iteration_N/point_cloud_block<i>.ply of every block, keeps of each the anchors inside its own
cell, and writes point_cloud.ply beside them. The decoder there belongs to the merged model as to the blocks.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("out", metavar="OUT", help="output folder of a finished block training")
    parser.add_argument("--iteration", type=int, default=-1, metavar="N", help="point_cloud/iteration_N (the last)")


def run(args: argparse.Namespace) -> None:
    """Merges and prints what every block gave."""
    out = Path(args.out)
    config = load_run_config(out)
    if config.stage == "coarse":
        raise UserError(f"merge: {out} holds a coarse model, which is one piece; render it as it is")
    folder = model_folder(out, args.iteration)
    # The copy that training left beside the blocks: OUT/partition.json may have been made anew since.
    report = merge_blocks(folder, PartitionTable.load(folder / "partition.json"))
    info(f"{'block':>5}{'kept':>12}{'dropped':>12}")
    for block, (kept, dropped) in enumerate(zip(report.kept, report.dropped, strict=True)):
        info(f"{block:>5}{kept:>12}{dropped:>12}")
    info(f"{'all':>5}{sum(report.kept):>12}{sum(report.dropped):>12}")
    info(f"merged: {report.path}")
