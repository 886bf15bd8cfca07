"""``momentum-gs train``: the coarse model, or the blocks of a partitioned scene, alone or under torchrun."""

import argparse

from momentum_gs.cli.common import add_run_arguments, resolve_choices
from momentum_gs.core.comm import launched
from momentum_gs.core.watch import SILENCE_SECONDS, Stop
from momentum_gs.experiments.training import train

HELP = "train the coarse model, or the blocks of a partitioned scene"
DESCRIPTION = """\
Trains the stage that is set: stage=coarse, the whole scene as one block, or stage=blocks (the default), k of n blocks
at a time around one shared decoder. In several processes: torchrun --standalone --nproc_per_node=R -m momentum_gs train
...; the model does not depend on R, only on blocks.active (k).

  momentum-gs train -c demo -s SCENE -m OUT/coarse stage=coarse
  momentum-gs partition SCENE -c demo -m OUT
  momentum-gs train -c demo -s SCENE -m OUT blocks.active=2

A finished run can train some of its blocks on; merge again afterwards:

  momentum-gs train -c demo -s SCENE -m OUT blocks.active=2 steps=1200 --only-blocks 3,5

SIGTERM and Ctrl-C save a checkpoint and end the run; --resume continues it. Under torchrun --max-restarts=N the ranks
continue from the last checkpoint by themselves. For several machines see scripts/launch.
"""

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_run_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the output folder")
    parser.add_argument("--only-blocks", type=block_list, default=(), metavar="I,J,...",
        help="after a finished run: train these blocks on, up to a larger 'steps', with the decoder as it is")
    parser.add_argument("--max-silence", type=float, default=SILENCE_SECONDS, metavar="S",
        help="seconds without a sign of life after which a rank counts as lost and the run ends (default: %(default)g)")


def block_list(text: str) -> tuple[int, ...]:
    """``3,5``; a ValueError is worded by argparse."""
    return tuple(map(int, text.split(",")))


def run(args: argparse.Namespace) -> None:
    """Trains and writes the model."""
    with Stop() as stop, launched(stop, args.max_silence) as launch:
        config, choices = resolve_choices(args, own=True, announce=True)
        train(config, launch, stop, resume=args.resume, only=args.only_blocks, choices=choices)
