"""Estimates of what a run will need: memory, disk, data swapped between rounds, time.

The initial anchors are counted; their growth is the only assumption (``GROWTH``, which includes a margin). Memory and
time per view are measured by training steps on the scene's own images, on the device of the training, with the initial
and with the largest number of anchors.
"""

import math
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.device import free_device_memory, pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import camera_radius, in_any_view
from momentum_gs.core.memory import free_memory
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene
from momentum_gs.data.views import Views
from momentum_gs.doctor.findings import Finding
from momentum_gs.doctor.settings import Scale
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.init import init_anchors
from momentum_gs.partition.assign import assign_cameras
from momentum_gs.partition.budget import GROWTH, with_block_count
from momentum_gs.partition.cover import block_boxes, view_cover
from momentum_gs.partition.layout import automatic_layout
from momentum_gs.train.blocks.anchor_block import AnchorBlock, trained_block
from momentum_gs.train.blocks.anchor_budget import anchors_that_fit, bytes_per_anchor, max_anchors
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.packed import pack
from momentum_gs.train.blocks.store import ram_bound
from momentum_gs.train.blocks.views import plan_blocks
from momentum_gs.train.decoders.shared import SharedDecoder
from momentum_gs.train.resume import begin
from momentum_gs.train.step import StepInputs, train_step

MAX_POINTS = 20_000
"""Size of the sample of points that is projected into the views of every block."""
MAX_PROBE = 100_000
"""Largest number of anchors in the measured steps; for more, time and memory are extrapolated in proportion."""
PROBE_SECONDS = 20.0
"""Time after which no further step is begun, for each number of anchors."""
PROBE_STEPS = 7


@dataclass(frozen=True)
class Estimate:
    """One line of the doctor's table of estimates."""

    what: str
    """What is estimated; stable, for scripts."""
    value: float | int
    unit: Literal["bytes", "seconds", "anchors"]
    basis: str
    """How the value was computed."""


@dataclass(frozen=True)
class Expected:
    """Numbers of blocks and anchors, on which all estimates are based."""

    blocks: int
    """n, the number of blocks."""
    active: int
    """k, the number of active blocks."""
    start: int
    """Anchors of the largest block at its first step."""
    largest: int
    """Anchors of the largest block after growth."""
    total: int
    """Anchors of all blocks after growth."""
    basis: str
    around: tuple[int, int] = (0, 0)
    """With ``blocks.windows``: other blocks' anchors in the views of a block, at its first step and after growth."""
    pixels: float = 1.0
    """Pixels of a step, as a share of a view's: the mean window of a block, averaged over the blocks."""


@dataclass(frozen=True)
class Probe:
    """Measurements of training steps."""

    seconds: float
    """Median time of a step of one block."""
    bytes: int
    """Memory of the forward and backward pass of one view, without that of the block itself."""
    basis: str


def expect(config: Config, scene: Scene, scale: Scale, table: PartitionTable | None) -> Expected:
    """Counts blocks and anchors; without a table, for the partition that ``partition.assign=visibility`` would make.

    Raises:
        UserError: for scenes that cannot be cut, and numbers of blocks that cannot be scheduled.
    """
    shares, basis = [1.0], "voxels that hold a point"
    if config.stage == "blocks":
        basis += ", in a view of the block" + ("" if table else " (by geometry, as there is no partition yet)")
        table = table or _by_geometry(scene, config)
        shares = _shares(scene, table) if config.blocks.init == "visible" else [1.0] * table.n
    seen, pixels = shares, 1.0
    if config.stage == "blocks" and config.blocks.windows and table is not None and table.windows is not None:
        plan = plan_blocks(scene, table, windows=True)
        if plan.windows is not None:
            shares = (torch.bincount(table.cell_of(_sample(scene)), minlength=table.n) / len(_sample(scene))).tolist()
            pixels = statistics.mean(
                statistics.mean(float(owned.float().mean()) for owned in block) for block in plan.windows
            )
            basis = "voxels that hold a point, in the cell of the block"
    n = len(shares)
    active = begin(config, n, 1).active
    start = max(1, round(scale.anchors * max(shares)))
    cap = max_anchors(config.anchors, config.model)
    grown = [GROWTH * scale.anchors * share for share in shares]
    if cap is not None:
        grown = [min(anchors, cap) for anchors in grown]
    basis += f"; growing {GROWTH:g}-fold" + ("" if cap is None else f", at most to {cap}")
    largest, total = max(1, round(max(grown))), max(1, round(sum(grown)))
    around = (0, 0)
    if shares is not seen:
        in_view = scale.anchors * max(seen)
        around = max(0, round(in_view) - start), max(0, min(round(GROWTH * in_view), total) - largest)
    return Expected(n, active, start, largest, total, basis, around, pixels)


def _by_geometry(scene: Scene, config: Config) -> PartitionTable:
    limit = anchors_that_fit(config, pick_device(config.device))
    config = with_block_count(config, scene, limit, bytes_per_anchor(config.model))
    table = automatic_layout(scene.train, scene.points.xyz, config.partition).table()
    cover = partial(view_cover, table=table, boxes=block_boxes(table, scene.points.xyz))
    return replace(table, views=assign_cameras(scene.train, table, cover, config.partition.threshold))


def _shares(scene: Scene, table: PartitionTable) -> list[float]:
    """Share of the points that each block starts from."""
    sample = _sample(scene)
    by_name = {camera.name: camera for camera in scene.train}
    return [float(in_any_view(sample, [by_name[name] for name in names]).double().mean()) for names in table.views]


def _sample(scene: Scene) -> Tensor:
    return scene.points.xyz[:: max(1, -(-len(scene.points) // MAX_POINTS))]


def probe(
    config: Config, scene: Scene, counts: Sequence[int], device: torch.device, seconds: float = PROBE_SECONDS
) -> list[Probe]:
    """Measures a few training steps on images of the scene for each number of anchors; nothing is written.

    The anchors are the initial ones, subsampled, or copied with random shifts of up to half their spacing. A new
    decoder shows about half of the possible Gaussians, a trained one fewer, so the time is an upper estimate.

    Args:
        counts: Numbers of anchors.
        seconds: Time after which no further step is begun, for each number of anchors.

    Raises:
        UserError: if no image can be read, or the device runs out of memory.
    """
    config = replace(config, growth=replace(config.growth, until=0))
    anchors, voxel_size = init_anchors(scene.points, config.model)
    with Views(scene, int(config.scene.cache_gb * 2**30), device, skip_bad=True) as views:
        try:
            return [_probe(config, scene, anchors, voxel_size, wanted, views, device, seconds) for wanted in counts]
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"{device}: out of memory in a step with at most {min(max(counts), MAX_PROBE)} anchors, expected room "
                "for them and one view; free the device, or train smaller images (-r)"
            ) from error


def _probe(
    config: Config, scene: Scene, anchors: Anchors, voxel_size: float, wanted: int, views: Views,
    device: torch.device, most: float,
) -> Probe:  # fmt: skip
    n = min(wanted, MAX_PROBE)
    anchors = resized(anchors, n).to(device)
    lr_scale = camera_radius(torch.stack([camera.center for camera in scene.train]))
    state = AnchorBlock.of(0, anchors, config, lr_scale=lr_scale, voxel_size=voxel_size)
    shared, weights = SharedDecoder(config, device, 1.0), torch.ones(1)
    background = torch.zeros(3, device=device)
    spread = [scene.train[i * len(scene.train) // PROBE_STEPS] for i in range(PROBE_STEPS)]
    seconds: list[float] = []
    kept = 0
    begun = time.perf_counter()
    for camera in (*spread, *scene.train):  # The others are used only if some of ``spread`` cannot be read.
        if len(seconds) == PROBE_STEPS or (seconds and time.perf_counter() - begun > most):
            break
        target = views.target_or_skip(camera.name)
        if target is None:
            continue
        inputs = StepInputs(config, LocalComm(), background, _showing(camera, target))
        at = time.perf_counter()
        saved = SavedBytes()
        with saved:
            train_step(inputs, shared, [state], (0,), weights, True)
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - at)
        kept = max(kept, saved.bytes)
    if not seconds:
        raise UserError(
            f"{scene.path}: none of the {len(scene.train)} training images can be read, expected some; restore them"
        )
    steps = seconds[1:] or seconds  # The first one also loads and allocates.
    ratio = wanted / n
    basis = f"median of {len(steps)} steps with {n} anchors on {device.type}"
    basis += f", times {ratio:.3g}" if ratio > 1 else ""
    # The tensors that the forward pass keeps, and as much again for their gradients in the backward pass.
    return Probe(statistics.median(steps) * ratio, int(2 * kept * ratio), basis)


def _showing(camera: Camera, target: TargetImage) -> Callable[[Block], tuple[Camera, None, TargetImage]]:
    return lambda block: (camera, None, target)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the memory that a forward pass keeps for its backward pass."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}
        super().__init__(self._pack, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(self._storages.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # A saved tensor that refers to its own graph would never be freed.


def resized(anchors: Anchors, n: int) -> Anchors:
    """n anchors at about the positions of these: a subset, or copies with shifted positions and smaller scales."""
    copies = -(-n // len(anchors))
    generator = torch.Generator().manual_seed(0)
    parts = []
    for copy in range(copies):
        part = anchors.subset(torch.ones(len(anchors), dtype=torch.bool))
        if copy:
            spacing = part.log_scale.detach()[:, :3].exp()
            part.position = part.position + (torch.rand(spacing.shape, generator=generator) - 0.5) * spacing
        # On a surface, the spacing of c times as many anchors is smaller by the square root of c.
        part.log_scale = part.log_scale.detach() - 0.5 * math.log(copies)
        parts.append(part)
    every = Anchors.cat(parts)
    chosen = torch.randperm(len(every), generator=generator)[:n].sort().values
    return every.subset(chosen)


def estimates(
    config: Config, scene: Scene, expected: Expected, probes: Sequence[Probe], own: int, device: torch.device
) -> tuple[list[Estimate], list[Finding]]:
    """All estimates for one process, and findings where the machine has less.

    Args:
        probes: Measurements with the initial and the largest number of anchors; empty: no time and no memory per view.
        own: ``peak_memory`` before the measurements.
    """
    n, k, model = expected.blocks, expected.active, config.model
    training = bytes_per_anchor(model)
    inactive = pack(trained_block(1000, config, torch.device("cpu"))).nbytes / 1000
    row = 4 * sum(row[0].numel() for row in trained_block(1, config, torch.device("cpu")).model.rows().values())
    block, rest = expected.largest * training + expected.around[1] * row, expected.largest * inactive
    all_inactive = expected.total * inactive
    bound = ram_bound(config.store)
    in_ram = min(all_inactive, bound)
    views = [*scene.train, *scene.test]
    pixels = sum(v.width * v.height * (4 if v.name in scene.mask_paths else 3) for v in views)  # A mask is a channel.
    cache = min(config.scene.cache_gb * 2**30, pixels)
    view = max((measured.bytes for measured in probes), default=0)
    train_bytes = k * block + view
    host = own + cache + in_ram + (train_bytes if device.type == "cpu" else 0)
    ply = row + 12  # Files have normals, too.
    checkpoints = (config.log.keep_checkpoints + 1) * all_inactive
    spilled = all_inactive - in_ram
    disk = checkpoints + spilled + 2 * expected.total * ply
    every = expected.basis
    rows = [
        Estimate("anchors of the largest block, at first", expected.start, "anchors", every.partition(";")[0]),
        Estimate("anchors of the largest block, at most", expected.largest, "anchors", every),
        Estimate("memory of a block in training", block, "bytes", f"{training} bytes an anchor"
                 + (f", {row} for each of {expected.around[1]} around it" if expected.around[1] else "")),
    ]
    if probes:
        rows.append(Estimate("memory of a view in work", view, "bytes", "tensors kept for the backward pass, and their "
                             "gradients, " + probes[-1].basis))  # fmt: skip
    rows += [
        Estimate("host memory", host, "bytes", "this program's peak before the measurements, images, inactive blocks"
                 + (f", {k} active blocks and a view" if device.type == "cpu" else "")),
        Estimate("of it images", cache, "bytes", "decoded at training size, at most scene.cache_gb"),
        Estimate("of it inactive blocks", in_ram, "bytes", f"{inactive:.0f} bytes an anchor, at most store.ram_gb"),
        Estimate("disk", disk, "bytes", f"{config.log.keep_checkpoints} + 1 checkpoints, inactive blocks that do not "
                 "fit into memory, models of the blocks and of the scene"),
    ]  # fmt: skip
    if config.stage == "blocks":
        rows.append(Estimate("swapped between two rounds", 2 * k * rest, "bytes", f"{k} blocks out and in, "
                             f"{spilled / max(all_inactive, 1):.0%} of it through the disk"))  # fmt: skip
    window = "" if expected.pixels == 1 else f", times {expected.pixels:.2g}, the mean window's part of a view"
    for measured, when in zip(probes, ("at first", "at most"), strict=False):
        seconds = n * config.steps * measured.seconds * expected.pixels
        rows.append(Estimate(f"time, one process, anchors as {when}", seconds, "seconds",
                             f"{n} blocks x {config.steps} steps, {measured.basis}{window}"))  # fmt: skip
    return rows, _shortages(config, device, host, train_bytes, disk)


def _shortages(
    config: Config, device: torch.device, host: float | int, train_bytes: float | int, disk: float | int
) -> list[Finding]:
    findings = []
    smaller = "set anchors.max_gb_per_block, use more blocks (partition.blocks), or a larger model.voxel_size"
    free = free_memory()
    if host > free:
        cure = "lower scene.cache_gb and store.ram_gb; " + smaller
        findings.append(Finding("warning", "memory", "host memory", f"about {host / 2**30:.1f} GiB needed",
                                f"at most the {free / 2**30:.1f} GiB that are free", cure))  # fmt: skip
    if device.type != "cpu":
        free = free_device_memory(device)
        if train_bytes > free:
            findings.append(Finding("warning", "memory", str(device), f"about {train_bytes / 2**30:.1f} GiB needed",
                                    f"at most the {free / 2**30:.1f} GiB that are free", smaller))  # fmt: skip
    place = Path(config.out or ".").absolute()
    place = next(path for path in (place, *place.parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if disk > free:
        findings.append(Finding("warning", "disk", str(place), f"about {disk / 2**30:.1f} GiB needed", f"at most the "
                                f"{free / 2**30:.1f} GiB that are free", "make room, lower log.keep_checkpoints, set "
                                "log.link_checkpoints=true, or name another folder with -m"))  # fmt: skip
    return findings
