"""``momentum-gs aggregate``: joins the models that devices or edges have sent."""

import argparse
from pathlib import Path

from momentum_gs.aggregate.send import aggregate_inbox
from momentum_gs.config.load import load_settings
from momentum_gs.core.log import info, warn

HELP = "join the models that devices or edges have sent into one"
DESCRIPTION = """\
Reads the uploads in INBOX ('momentum-gs compress'), crops each to its own cells, merges what stands twice at their
borders, and trains the union for aggregate.steps steps towards what the models rendered before, without images or with
those that were sent. The result is an upload, too, which another aggregation can take. Damaged uploads are left out
with one line each; call again when they have been sent again. See docs/aggregation.md.

  momentum-gs aggregate INBOX -o UPLOAD
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("inbox", metavar="INBOX", type=Path, help="folder with uploads")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="UPLOAD", help="folder to write")
    parser.add_argument("-c", "--config", metavar="FILE", action="append", default=[], help="settings file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. aggregate.steps=600")


def run(args: argparse.Namespace) -> None:
    """Aggregates and prints what was done."""
    config = load_settings(args.config, args.overrides).config()
    report, lines = aggregate_inbox(args.inbox, args.output, config, args.inbox.name)
    for line in lines:
        warn(f"aggregate: {line}")
    info(f"aggregate: {report['models']} models -> {report['gaussians']:,} Gaussians -> {args.output}")
