"""``momentum-gs bench``: where the time of a step goes, on a trained model.

bench_kernels.py times the kernels, bench_grow.py growth and pruning.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import torch

from momentum_gs.cli import bench_grow, bench_kernels
from momentum_gs.cli.common import add_run_arguments, resolve_config
from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import say
from momentum_gs.data.scene import load_scene
from momentum_gs.data.views import Views
from momentum_gs.model.expand import decode, decode_with_teacher
from momentum_gs.model.io import load_decoder, load_ply
from momentum_gs.render.rasterize import rasterize, visible_anchors
from momentum_gs.train.losses import loss_terms
from momentum_gs.train.optim import anchor_optimizer, decoder_optimizer

HELP = "timings of a training step, of growth and of the kernels"
DESCRIPTION = """\
bench step: times the parts of a training step on a model that training wrote (a run folder of either stage), view by
view, and prints the median of each part and its share of the step. In the blocks stage, decoding includes the teacher.

  momentum-gs bench step -c configs/caliterra.yaml -s SCENE -m OUT/coarse stage=coarse

bench raster, ssim, knn: times a kernel on a synthetic load, and in the same run what else does the same: the readable
reference, gsplat and the original rasterizer (on a GPU, where installed), convolutions in torch, a k-d tree. Prints
medians and ratios; above 1, ours is faster. On a GPU also the peak of memory beyond the inputs.

  momentum-gs bench raster --gaussians 100000 --size 960x540 --threads 2 device=cpu

bench grow: times growth and pruning of synthetic blocks of several sizes, and at the smallest also the original's way,
which compares every new cell with every anchor. The two must agree bit for bit.

  momentum-gs bench grow --anchors 250000,1000000,4000000 device=cpu
"""
PARTS = ("view", "decode", "raster", "loss", "backward: loss", "backward: raster", "backward: decode",
         "optimizer")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("what", choices=["step", "raster", "ssim", "knn", "grow"], help="what to time")
    add_run_arguments(parser)
    parser.add_argument("--steps", type=int, default=40, help="step: steps to time after 5 for warming up (default 40)")
    add = parser.add_argument_group("kernels and growth").add_argument
    add("--gaussians", type=int, metavar="N", help="raster (default 100000, on a GPU 1000000)")
    add("--size", type=size, metavar="WxH", help="raster, ssim: pixels (default 960x540, on a GPU 1600x900)")
    add("--points", type=int, default=200_000, metavar="N", help="knn (default %(default)s)")
    add("--anchors", type=counts, default="250000,1000000,4000000", metavar="N,...", help="grow (default %(default)s)")
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
    config = resolve_config(args)
    device = pick_device(config.device)
    if args.what != "step":
        with bench_kernels.load_of(args):
            return bench_grow.run(args, config, device) if args.what == "grow" else bench_kernels.run(args, device)
    if config.out is None:
        raise UserError("bench: no run folder; give -m OUT")
    models = sorted(Path(config.out).glob("point_cloud/iteration_*/point_cloud*.ply"))
    if not models:
        raise UserError(f"{config.out}: holds no point_cloud/iteration_*/point_cloud*.ply; train first")
    anchors = load_ply(models[-1]).to(device)
    student = load_decoder(models[-1].parent).to(device)
    teacher = load_decoder(models[-1].parent).to(device).requires_grad_(False)
    anchor_adam, decoder_adam = anchor_optimizer(anchors, config.optim, 1.0), decoder_optimizer(student, config.optim)
    scene = load_scene(config.scene)
    background = torch.zeros(3, device=device)
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    gaussians = []

    def mark(part: str) -> None:
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        seconds[part].append(now - clock[0])
        clock[0] = now

    with Views(scene, int(config.scene.cache_gb * 2**30), device) as views:
        for step in range(args.steps + 5):
            camera = scene.train[step % len(scene.train)]
            target = views.image(camera.name)
            clock = [time.perf_counter()]
            visible = visible_anchors(anchors, camera)
            mark("view")
            center = camera.center.to(anchors.position)
            if config.stage == "blocks" and config.teacher.enabled:
                decoded, targets = decode_with_teacher(anchors, student, teacher, center, visible, True)
            else:
                decoded, targets = decode(anchors, student, center, visible), None
            mark("decode")
            # Leaves between the stages, so that each part of the backward pass can be timed by itself.
            names = ("means", "scales", "quats", "opacities", "colors")
            inputs = {n: getattr(decoded.gaussians, n).detach().requires_grad_() for n in names}
            output = rasterize(type(decoded.gaussians)(**inputs), camera, background)
            mark("raster")
            image = output.image.detach().requires_grad_()
            terms = loss_terms(image, target, decoded, targets, config)
            total = torch.stack(list(terms.values())).sum()
            mark("loss")
            leaves = [image, *(getattr(decoded.gaussians, n) for n in names)]
            grads = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
            mark("backward: loss")
            assert grads[0] is not None
            output.image.backward(grads[0])
            mark("backward: raster")
            drawn = [inputs[n].grad for n in names]
            upstream = [d if g is None else d + g for d, g in zip(drawn, grads[1:], strict=True)]
            torch.autograd.backward([getattr(decoded.gaussians, n) for n in names], upstream)
            mark("backward: decode")
            anchor_adam.step()
            decoder_adam.step()
            anchor_adam.zero_grad()
            decoder_adam.zero_grad()
            mark("optimizer")
            gaussians.append(len(decoded.gaussians))
    medians = {part: statistics.median(values[5:]) for part, values in seconds.items()}
    whole = sum(medians.values())
    size = f"{scene.train[0].width}x{scene.train[0].height}"
    say(f"{models[-1].name}: {len(anchors)} anchors, {statistics.median(gaussians):.0f} Gaussians drawn, {size}")
    for part, value in medians.items():
        say(f"  {part:<17} {1000 * value:8.2f} ms {100 * value / whole:5.1f} %")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"  {'step':<17} {1000 * whole:8.2f} ms   medians of {args.steps} steps; peak memory {peak:.2f} GiB")
