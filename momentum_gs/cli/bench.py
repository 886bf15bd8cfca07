"""``momentum-gs bench``: timings, as ratios against references in the same run. A file for each kind of load."""

import argparse

from momentum_gs.bench import grow as bench_grow
from momentum_gs.bench import kernels as bench_kernels
from momentum_gs.bench import step as bench_step
from momentum_gs.bench import swap as bench_swap
from momentum_gs.cli.common import add_run_arguments, resolve_config
from momentum_gs.core.comm import connect, launched
from momentum_gs.core.device import pick_device
from momentum_gs.core.watch import Stop

HELP = "timings of a training step, of growth, of swapping blocks and of the kernels"
DESCRIPTION = """\
bench step: times the parts of a training step on a model that training wrote (a run folder of either stage), view by
view, and prints the median of each part and its share of the step. In the blocks stage, decoding includes the teacher.

  momentum-gs bench step -c caliterra -s SCENE -m OUT/coarse stage=coarse

Under torchrun every rank does so, and the table of rank 0 has the all-reduce of the decoder's gradient, too.

bench raster, ssim, knn: times a kernel on a synthetic load, and in the same run what else does the same: the readable
reference, gsplat and the original rasterizer (on a GPU, where installed), convolutions in torch, a k-d tree. Prints
medians and ratios; above 1, ours is faster. On a GPU also the peak of memory beyond the inputs.

  momentum-gs bench raster --gaussians 100000 --size 960x540 --threads 2 device=cpu

bench grow: times growth and pruning of synthetic blocks of several sizes, and at the smallest also the original's way,
which compares every new cell with every anchor. The two must agree bit for bit.

  momentum-gs bench grow --anchors 250000,1000000,4000000 device=cpu

bench swap: times a block that leaves and comes back, through the store's memory and its disk, against torch.save and
torch.load of the same tensors on the same disk; with -m OUT also says for how long that run waited for blocks.

  momentum-gs bench swap --anchors 1000000 -m OUT store.folder=/fast/disk
"""

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("what", choices=["step", "raster", "ssim", "knn", "grow", "swap"], help="what to time")
    add_run_arguments(parser)
    parser.add_argument("--steps", type=int, default=40, help="step: steps to time after 5 for warming up (default 40)")
    add = parser.add_argument_group("kernels, growth and swaps").add_argument
    add("--gaussians", type=int, metavar="N", help="raster (default 100000, on a GPU 1000000)")
    add("--size", type=size, metavar="WxH", help="raster, ssim: pixels (default 960x540, on a GPU 1600x900)")
    add("--points", type=int, default=200_000, metavar="N", help="knn (default %(default)s)")
    add("--anchors", type=counts, metavar="N,...",
        help="grow (default 250000,1000000,4000000), swap (default 1000000)")
    add("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    add("--repeats", type=int, default=11, metavar="N", help="runs that the median is of (default %(default)s)")
    add("--original", metavar="MODULE", help="raster: the name under which the original CUDA rasterizer is installed")


def size(text: str) -> tuple[int, int]:
    """``1600x900``; a ValueError is worded by argparse."""
    width, height = text.lower().split("x")
    return int(width), int(height)


def counts(text: str) -> list[int]:
    """``1000,4000``."""
    return [int(number) for number in text.split(",")]


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    with bench_kernels.load_of(args):
        config = resolve_config(args, announce=True)
        device = pick_device(config.device)
        if args.what == "step":
            with Stop() as stop, launched(stop) as launch:
                comm = connect(device, launch)
                bench_step.run(args, config, device, comm)
                comm.close()
        elif args.what == "grow":
            bench_grow.run(args, config, device)
        elif args.what == "swap":
            bench_swap.run(args, config, device)
        else:
            bench_kernels.run(args, device)
