"""``momentum-gs bench``: timings, and their ratios to references timed in the same run."""

import argparse
import contextlib
import json
import sys

from momentum_gs.bench import grow as bench_grow
from momentum_gs.bench import kernels as bench_kernels
from momentum_gs.bench import step as bench_step
from momentum_gs.bench import swap as bench_swap
from momentum_gs.cli.common import add_run_arguments, resolve_config
from momentum_gs.core.comm import connect, launched
from momentum_gs.core.device import pick_device
from momentum_gs.core.watch import Stop

HELP = "time training steps, growth, block swaps or kernels"
DESCRIPTION = """\
bench step: times the parts of a training step with the model of a run (of either stage), one view per step, and prints
the median time of each part and its share of the step. In the blocks stage, decoding includes the teacher. Beside each
part are the bytes that it has to move, its operations, the time that these need at least on this machine ('bound', by
a short calibration), and the share of the bound in the measured time. --json prints all of it as one JSON object.

  momentum-gs bench step -c caliterra -s SCENE -m OUT/coarse stage=coarse

Under torchrun, every rank does so, and rank 0's table includes the all-reduce of the decoder's gradient.

bench raster, ssim, knn: times a kernel on a synthetic load, and alternatives in the same run: the readable reference,
gsplat and the original rasterizer (on a GPU, if installed), convolutions in torch, a k-d tree. Prints medians, and the
ratio of the alternative's time to ours: above 1, ours is faster. On a GPU, also prints the peak memory beyond the
inputs.

  momentum-gs bench raster --gaussians 100000 --size 960x540 --threads 2 device=cpu

bench grow: times growth and pruning of synthetic blocks of several sizes, and for the smallest also the algorithm of
the original, which compares every new cell with every anchor. Both results must agree bit for bit.

  momentum-gs bench grow --anchors 250000,1000000,4000000 device=cpu

bench swap: times offloading a block and loading it again, through memory and through disk, and torch.save and
torch.load of the same tensors on the same disk; with -m OUT, also prints how long that run waited for blocks.

  momentum-gs bench swap --anchors 1000000 -m OUT store.folder=/fast/disk
"""

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("what", choices=["step", "raster", "ssim", "knn", "grow", "swap"], help="what to time")
    add_run_arguments(parser)
    parser.add_argument("--steps", type=int, default=40, help="step: steps to time, after 5 to warm up (default 40)")
    parser.add_argument("--json", action="store_true", help="step: print one JSON object instead of the table")
    add = parser.add_argument_group("kernels, growth and swaps").add_argument
    add("--gaussians", type=int, metavar="N", help="raster (default 100000, on a GPU 1000000)")
    add("--size", type=size, metavar="WxH", help="raster, ssim: pixels (default 960x540, on a GPU 1600x900)")
    add("--points", type=int, default=200_000, metavar="N", help="knn (default %(default)s)")
    add("--anchors", type=counts, metavar="N,...",
        help="grow (default 250000,1000000,4000000), swap (default 1000000)")
    add("--threads", type=int, metavar="N", help="threads of torch (default: torch's choice)")
    add("--repeats", type=int, default=11, metavar="N", help="runs over which to take the median (default %(default)s)")
    add("--original", metavar="MODULE", help="raster: the module name under which the original CUDA rasterizer is "
        "installed")


def size(text: str) -> tuple[int, int]:
    """``1600x900`` -> (1600, 900), in pixels; argparse turns a ValueError into its own message."""
    width, height = text.lower().split("x")
    return int(width), int(height)


def counts(text: str) -> list[int]:
    """``1000,4000`` -> [1000, 4000]; a ValueError as above."""
    return [int(number) for number in text.split(",")]


def run(args: argparse.Namespace) -> None:
    """Runs the benchmark ``args.what`` and prints its table."""
    # With --json, what loading prints goes to stderr, so that stdout holds the JSON object only.
    printed = sys.stdout
    with bench_kernels.load_of(args), contextlib.redirect_stdout(sys.stderr if args.json else printed):
        config = resolve_config(args, announce=True)
        device = pick_device(config.device)
        if args.what == "step":
            with Stop() as stop, launched(stop) as launch:
                comm = connect(device, launch)
                found = bench_step.run(args, config, device, comm)
                if args.json and comm.rank == 0:
                    print(json.dumps(found), file=printed)
                comm.close()
        elif args.what == "grow":
            bench_grow.run(args, config, device)
        elif args.what == "swap":
            bench_swap.run(args, config, device)
        else:
            bench_kernels.run(args, device)
