"""``momentum-gs partition``: cuts a scene into blocks and assigns each block its training views."""

import argparse
from pathlib import Path

from momentum_gs.cli.common import add_run_arguments, resolve_config
from momentum_gs.core.device import pick_device
from momentum_gs.partition.cut import cut
from momentum_gs.train.blocks.anchor_budget import anchors_that_fit, bytes_per_anchor

HELP = "cut a scene into blocks and assign each block its training views"
DESCRIPTION = """\
Lays a grid of blocks over the scene (partition.aabb, partition.dim and partition.balance; box and grid are found from
cameras and points if they are not given) and assigns each block its training views: those whose camera is inside its
cell, and those to whose image it contributes more than partition.threshold. partition.assign chooses the measure:

  ssim          1 - SSIM of the coarse model's render with and without the block
  contribution  the same number, estimated for all blocks from one render of each camera
  visibility    the share of the image that the box around the block's points covers; needs no coarse model

Blocks with fewer than partition.min_views views or partition.min_points points are joined to a neighbour.
partition.blocks=auto finds a number of blocks with which each fits into memory (anchors.max_gb_per_block).

  momentum-gs train -s SCENE -m OUT/coarse stage=coarse
  momentum-gs partition SCENE -m OUT partition.blocks=8
  momentum-gs partition SCENE -m OUT partition.blocks=auto anchors.max_gb_per_block=6 partition.assign=visibility

Writes OUT/partition.json, which train, merge, render and eval read, and OUT/partition.png, a map of it.
"""

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_run_arguments(parser, scene_first=True)
    parser.add_argument("--camera-masks", type=Path, metavar="FILE",
                        help="take the views of each block from a published mask file (data_partitions/*.npy); scene, "
                        "partition.aabb and partition.dim must be those that it was made for")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Makes the partition, saves it, draws its map and prints it."""
    config = resolve_config(args, own=True)
    limit = anchors_that_fit(config, pick_device(config.device))
    cut(config, limit, bytes_per_anchor(config.model), args.camera_masks)
