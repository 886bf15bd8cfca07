"""``momentum-gs bench step``: times the parts of a training step on a trained model, and with ranks the all-reduce."""

import argparse
import copy
import statistics
import time
from pathlib import Path

import torch

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.core.device import device_use
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.data.scene import load_scene
from momentum_gs.data.views import Views
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.expand import decode, decode_with_teacher
from momentum_gs.model.io import load_model
from momentum_gs.render.rasterize import rasterize, visible_anchors
from momentum_gs.train.losses import loss_terms
from momentum_gs.train.optim import anchor_optimizer, decoder_optimizer, move_rows

PARTS = ("view", "decode", "raster", "loss", "backward: loss", "backward: raster", "backward: decode",
         "optimizer")  # fmt: skip
COMMUNICATION = "all-reduce"


def run(args: argparse.Namespace, config: Config, device: torch.device, comm: Comm) -> None:
    """Times the steps and prints the table.

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
            gaussians.append(len(decoded.gaussians))
    size = f"{scene.train[0].width}x{scene.train[0].height}"
    info(f"{file.name}: {len(anchors)} anchors, {statistics.median(gaussians):.0f} Gaussians drawn, {size}")
    _print(seconds, args.steps, device)


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


def _print(seconds: dict[str, list[float]], steps: int, device: torch.device) -> None:
    """Prints a line for each part. The first five steps, which allocate memory and tune kernels, are not counted."""
    medians = {part: statistics.median(values[5:]) for part, values in seconds.items()}
    whole = sum(medians.values())
    for part, value in medians.items():
        info(f"  {part:<17} {1000 * value:8.2f} ms {100 * value / whole:5.1f} %")
    use = device_use(device)
    peak = f"peak memory {int(use['peak_memory_bytes']) / 2**30:.2f} GiB ({use['peak_memory_of']})"
    info(f"  {'step':<17} {1000 * whole:8.2f} ms   medians of {steps} steps; {peak}")
