"""``momentum-gs train``: trains the coarse model, or the blocks of a partitioned scene, in one process or several."""

import argparse

from momentum_gs.cli.common import add_run_arguments, resolve_choices
from momentum_gs.config.run import out_folder
from momentum_gs.core.comm import launched
from momentum_gs.core.watch import SILENCE_SECONDS, Stop
from momentum_gs.experiments.training import train
from momentum_gs.viewer.companion import watchers

HELP = "train the coarse model, or the blocks of a partitioned scene"
DESCRIPTION = """\
Trains one stage: stage=coarse, the whole scene as one block; or stage=blocks (the default), k of n blocks at a time,
with one shared decoder. In several processes: torchrun --standalone --nproc_per_node=R -m momentum_gs train ...; the
model does not depend on R, only on blocks.active (k).

  momentum-gs train -c demo -s SCENE -m OUT/coarse stage=coarse
  momentum-gs partition SCENE -c demo -m OUT
  momentum-gs train -c demo -s SCENE -m OUT blocks.active=2

Some blocks of a finished run can be trained further; merge again afterwards:

  momentum-gs train -c demo -s SCENE -m OUT blocks.active=2 steps=1200 --only-blocks 3,5

SIGTERM and Ctrl-C save a checkpoint and end the run; --resume continues it. Under torchrun --max-restarts=N, restarted
ranks continue from the last checkpoint. For several machines, see scripts/launch.
"""

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    add_run_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the output folder")
    parser.add_argument("--only-blocks", type=block_list, default=(), metavar="I,J,...",
        help="of a finished run: train only these blocks further, up to a larger 'steps'; the decoder is not changed")
    parser.add_argument("--view", type=int, nargs="?", const=8080, metavar="PORT",
        help="show the training in a browser at this port of this machine (default: 8080), see 'momentum-gs view'")
    parser.add_argument("--max-silence", type=float, default=SILENCE_SECONDS, metavar="S",
        help="end the run if a rank gives no sign of life for this many seconds (default: %(default)g)")


def block_list(text: str) -> tuple[int, ...]:
    """``3,5`` -> (3, 5); argparse turns a ValueError into its own message."""
    return tuple(map(int, text.split(",")))


def run(args: argparse.Namespace) -> None:
    """Trains and writes the model."""
    with Stop() as stop, launched(stop, args.max_silence) as launch:
        config, choices = resolve_choices(args, own=True, announce=True)
        watching = [] if args.view is None else watchers(out_folder(config), args.view)
        train(config, launch, stop, resume=args.resume, only=args.only_blocks, choices=choices, watchers=watching)
