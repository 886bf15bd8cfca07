"""``momentum-gs bench step``: times the parts of a training step on a trained model beside what bounds them, and with
ranks the all-reduce.

The first five steps, which allocate memory and tune kernels, are not counted.
"""

import argparse
import copy
import statistics
import time
from dataclasses import astuple
from pathlib import Path

import torch

from momentum_gs.bench.roofline import Bound, Counts, Machine, bounds, calibrate, covered, record
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.core.device import device_use
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.core.types import Camera, RenderOutput
from momentum_gs.data.scene import load_scene
from momentum_gs.data.views import Views
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.expand import Decoded, decode, decode_with_teacher
from momentum_gs.model.io import load_model
from momentum_gs.render.rasterize import rasterize, visible_anchors
from momentum_gs.train.losses import loss_terms
from momentum_gs.train.optim import anchor_optimizer, decoder_optimizer, move_rows

PARTS = ("view", "decode", "raster", "loss", "backward: loss", "backward: raster", "backward: decode",
         "optimizer")  # fmt: skip
COMMUNICATION = "all-reduce"


def run(args: argparse.Namespace, config: Config, device: torch.device, comm: Comm) -> dict[str, object]:
    """Times the steps, prints the table unless ``args.json``, and returns it as ``roofline.record`` describes.

    Raises:
        UserError: if the run has no suitable model.
    """
    file, anchors, student = _trained(config)
    anchors, student = anchors.to(device), student.to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    anchor_adam, decoder_adam = anchor_optimizer(anchors, config.optim, 1.0), decoder_optimizer(student, config.optim)
    # ``SharedDecoder`` sends a row of gradients for each active block.
    active = config.blocks.active
    if active == "all":
        active = len(list(file.parent.glob("point_cloud_block*.ply")))
    rows = active or comm.world_size
    gradients = torch.zeros(rows, sum(p.numel() for p in student.parameters()))
    gradients = gradients.to(device)
    scene = load_scene(config.scene)
    background = torch.zeros(3, device=device)
    parts = PARTS if comm.world_size == 1 else (*PARTS, COMMUNICATION)
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    counts: list[Counts] = []

    def mark(part: str) -> None:
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        seconds[part].append(now - clock[0])
        clock[0] = now

    with Views(scene, int(config.scene.cache_gb * 2**30), device) as views:
        for step in range(args.steps + 5):
            camera = scene.train[step % len(scene.train)]
            target = views.target(camera.name)
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
            move_rows(anchor_adam, visible)
            decoder_adam.step()
            anchor_adam.zero_grad()
            decoder_adam.zero_grad()
            mark("optimizer")
            if comm.world_size > 1:
                # The clock starts when all ranks are here, so that the wait for a slower rank is not counted.
                comm.barrier()
                clock[0] = time.perf_counter()
                comm.all_reduce_sum_(gradients)
                mark(COMMUNICATION)
            counts.append(_count(decoded, len(anchors), camera, output, 1 if targets is None else 2))
    timed = {part: values[5:] for part, values in seconds.items()}
    count, machine = _median(counts[5:]), calibrate(device)
    found = bounds(count, student, machine)
    if not args.json:
        size = f"{scene.train[0].width}x{scene.train[0].height}"
        info(f"{file.name}: {len(anchors)} anchors, {count.gaussians:.0f} Gaussians drawn, {size}")
        _print(timed, found, machine, device)
    return record(timed, count, machine, found)


def _count(decoded: Decoded, anchors: int, camera: Camera, output: RenderOutput, decoders: int) -> Counts:
    visible, gaussians = len(decoded.visible), decoded.gaussians
    active = int(decoded.kept.view(visible, -1).any(dim=1).sum()) if visible else 0
    pixels = camera.width * camera.height
    on_screen = covered(gaussians, camera, output.radii)
    numbers = (anchors, visible, active, len(gaussians), on_screen, pixels, decoders)
    return Counts(*map(float, numbers))


def _median(counts: list[Counts]) -> Counts:
    columns = zip(*(astuple(count) for count in counts), strict=True)
    return Counts(*(statistics.median(column) for column in columns))


def _trained(config: Config) -> tuple[Path, Anchors, GaussianDecoder]:
    """The model of a run, and its file.

    Raises:
        UserError: if the run has no model, or one without anchors or without a shared decoder.
    """
    if config.out is None:
        raise UserError("bench: no output folder is given, expected that of a run; give -m OUT")
    models = sorted(Path(config.out).glob("point_cloud/iteration_*/point_cloud*.ply"))
    if not models:
        raise UserError(f"{config.out}: holds no point_cloud/iteration_*/point_cloud*.ply; train first")
    anchors, student = load_model(models[-1])
    if not isinstance(anchors, Anchors):
        raise UserError(f"{models[-1]}: holds Gaussians, expected anchors; give a run with model.primitive=anchors")
    if not isinstance(student, GaussianDecoder):
        raise UserError(f"{models[-1]}: has per-block decoders, expected the blocks' files beside it")
    return models[-1], anchors, student


def _print(
    seconds: dict[str, list[float]], found: dict[str, Bound], machine: Machine, device: torch.device
) -> None:
    """Prints a line for each part: its time, its share of the step, and its bound."""
    medians = {part: 1000 * statistics.median(values) for part, values in seconds.items()}
    whole = sum(medians.values())
    info(f"  {'':<17} {'time':>11} {'share':>7} {'moved':>9} {'computed':>13} {'bound':>11} by      {'reached':>8}")
    for part, value in medians.items():
        line = f"  {part:<17} {value:8.2f} ms {100 * value / whole:5.1f} %"
        if part in found:
            bound = found[part]
            line += f" {bound.bytes / 1e6:6.1f} MB {bound.operations / 1e6:8.1f} Mop"
            line += f" {bound.milliseconds:8.3f} ms {bound.by:<7} {100 * bound.milliseconds / value:6.1f} %"
        info(line)
    use = device_use(device)
    peak = f"peak memory {int(use['peak_memory_bytes']) / 2**30:.2f} GiB ({use['peak_memory_of']})"
    info(f"  {'step':<17} {whole:8.2f} ms   medians of {len(next(iter(seconds.values())))} steps; {peak}")
    memory, compute = machine.bytes_per_second / 1e9, machine.operations_per_second / 1e9
    info(f"  bounds: {memory:.1f} GB/s of a large copy, {compute:.0f} Gop/s of a product of matrices, measured now")
