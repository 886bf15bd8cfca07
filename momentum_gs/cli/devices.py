"""``momentum-gs devices``: trains blocks on devices, and aggregates their models at edges and in the cloud."""

import argparse
from dataclasses import replace
from pathlib import Path

from momentum_gs.aggregate.simulate import Simulation, edges_of, seconds_to_model
from momentum_gs.cli.common import add_run_arguments, resolve_config
from momentum_gs.config.run import out_folder
from momentum_gs.core.device import pick_device
from momentum_gs.core.log import info
from momentum_gs.data.frame import recorded_frame
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.partition.cut import cut
from momentum_gs.train.blocks.anchor_budget import anchors_that_fit, bytes_per_anchor

HELP = "train blocks on devices that keep their images, and aggregate their models"
DESCRIPTION = """\
Plays devices, edges and the cloud on one machine: each is a process that sees only its own folder. A device has the
images of one block, trains it, compresses the model and sends it; an edge aggregates the models of its devices, the
cloud those of the edges. A device that fails costs one line and delays nobody: its neighbours' models fill its cell,
and the same command adds its model later. See docs/aggregation.md.

  momentum-gs devices SCENE -m OUT --tree 4x2              four devices at each of two edges
  momentum-gs devices SCENE -m OUT --tree 4x2 compress.max_loss_db=0.5 aggregate.images=4
  momentum-gs render OUT; momentum-gs eval OUT

Writes OUT/devices.json (bytes, seconds and memory of every process) and the model as a run.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_run_arguments(parser, scene_first=True)
    parser.add_argument("--tree", type=tree, metavar="DxE", help="D devices at each of E edges: aggregate.tree=[D,E] "
                        "and, unless it is given, partition.blocks=D*E")  # fmt: skip
    parser.add_argument("--mbit", type=float, default=20.0, metavar="B",
                        help="for the estimated time: 10^6 bits per second of every link (default: %(default)g)")


def tree(text: str) -> tuple[int, int]:
    """``4x2`` -> (4, 2); argparse turns a ValueError into its own message."""
    devices, edges = map(int, text.split("x"))
    return devices, edges


def run(args: argparse.Namespace) -> None:
    """Cuts the scene unless that is done, runs all processes, and prints the totals."""
    args.config = args.config or ["own", "modes/gaussians"]
    if args.tree is not None:
        devices, edges = args.tree
        args.overrides = [f"aggregate.tree=[{devices},{edges}]", f"partition.blocks={devices * edges}",
                          *args.overrides]  # fmt: skip
    config = resolve_config(args)
    file = Path(config.partition.file) if config.partition.file else out_folder(config) / "partition.json"
    if not file.is_file():
        cut(config, anchors_that_fit(config, pick_device(config.device)), bytes_per_anchor(config.model))
    table = PartitionTable.load(file)
    config = replace(config, scene=recorded_frame(config.scene, table.meta))
    simulation = Simulation(config, load_scene(config.scene), table)
    folder = simulation.run()
    record, groups = simulation.record, edges_of(table, config)
    devices_sent = sum(row["sent"] for row in record["devices"].values())
    images = sum(row["image_bytes"] for row in record["devices"].values())
    seconds = seconds_to_model(record, groups, args.mbit, "seconds")
    info(f"devices: {devices_sent:,} bytes sent by {len(record['devices'])} devices, whose images take {images:,}; "
         f"{seconds:.0f} s to the model at {args.mbit:g} Mbit/s -> {folder}")  # fmt: skip
