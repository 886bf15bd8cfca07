"""``momentum-gs merge``: crops every block to its cell and joins the blocks into one model."""

import argparse
from pathlib import Path

from momentum_gs.config.run import load_run_config
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.merge.blocks import merge_blocks
from momentum_gs.model.io import model_folder

HELP = "crop every block to its cell and join the blocks into one model"
DESCRIPTION = """\
Reads OUT/point_cloud/iteration_N/point_cloud_block<i>.ply of every block, keeps the anchors inside the block's cell
(all of them if it was trained with blocks.windows), and writes them to point_cloud.ply in the same folder. The merged
model uses the decoder files that are already there.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("out", metavar="OUT", help="output folder of a finished block training")
    parser.add_argument("--iteration", type=int, default=-1, metavar="N",
                        help="merge point_cloud/iteration_N (default: the last)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Merges the blocks and prints how many anchors each keeps and drops."""
    out = Path(args.out)
    config = load_run_config(out)
    if config.stage == "coarse":
        raise UserError(f"merge: {out} holds a coarse model, expected blocks; a coarse model is rendered without merge")
    folder = model_folder(out, args.iteration)
    # The copy that training left beside the blocks, as OUT/partition.json may have been replaced since.
    report = merge_blocks(folder, PartitionTable.load(folder / "partition.json"), whole=config.blocks.windows)
    info(f"{'block':>5}{'kept':>12}{'dropped':>12}")
    for block, (kept, dropped) in enumerate(zip(report.kept, report.dropped, strict=True)):
        info(f"{block:>5}{kept:>12}{dropped:>12}")
    info(f"{'all':>5}{sum(report.kept):>12}{sum(report.dropped):>12}")
    info(f"merged: {report.path}")
