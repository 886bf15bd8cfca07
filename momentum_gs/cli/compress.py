"""``momentum-gs compress``: compresses the model of a run and writes what a device sends."""

import argparse
from pathlib import Path

from momentum_gs.aggregate.send import send_run
from momentum_gs.config.load import load_config
from momentum_gs.core.log import info

HELP = "prune and compress the model of a block, and write what a device sends"
DESCRIPTION = """\
Prunes the Gaussians of a trained block by what they contribute to its own views (compress.max_loss_db or
compress.max_mb), quantizes and compresses them, and writes an upload: a folder with the model, the poses of the views,
the block's cells, and a manifest with sizes and hashes. Anchors are baked first. Images stay where they are, but for
aggregate.images of them. See docs/aggregation.md.

  momentum-gs compress RUN --block 3 -o UPLOAD compress.max_loss_db=0.5
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("run", metavar="RUN", type=Path, help="output folder of the block's training (stage=coarse), "
                        "with partition.json")  # fmt: skip
    parser.add_argument("--block", type=int, default=0, metavar="B", help="which block it is (default: 0)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="UPLOAD", help="folder to write")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of compress and aggregate.images")


def run(args: argparse.Namespace) -> None:
    """Compresses, writes the upload and prints what it cost."""
    config = load_config(args.run / "config.yaml", [*args.overrides, f"out={args.run.absolute()}"])
    report = send_run(config, args.block, args.output)
    (before, after), (plain, small), (first, last) = report["gaussians"], report["bytes"], report["psnr"]
    info(f"compress: {before:,} -> {after:,} Gaussians, {plain:,} -> {small:,} bytes, PSNR of its own views "
         f"{first:.2f} -> {last:.2f} dB; {report['sent']:,} bytes to send -> {args.output}")  # fmt: skip
