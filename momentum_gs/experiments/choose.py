"""What settings that say ``auto`` become: from the scene, the machine and what was asked for, each with its reason.

Nothing here reads a file or a clock. Lengths are in training units and only ever compared with each other, so a scene
in another unit gets the same choices, its voxel in that unit.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_view
from momentum_gs.data.images import target_size
from momentum_gs.data.scene import Scene
from momentum_gs.doctor.poses import survey
from momentum_gs.model.init import median_spacing
from momentum_gs.partition.budget import GROWTH, blocks_within
from momentum_gs.train.blocks.anchor_budget import bytes_per_anchor, max_anchors

Quality = Literal["draft", "normal", "high"]

CHOSEN = ("scene.resolution", "model.voxel_size", "partition.blocks", "steps")
"""Settings that are chosen here where they say ``auto``, in this order: later ones follow from earlier ones."""

REFERENCE_STEPS, REFERENCE_VIEWS, REFERENCE_PIXELS = 1500, 66, 500 * 375
"""The tuned run that all numbers of steps are measured by: configs/caliterra.yaml. 3DGS' 30,000 for 250 images of two
megapixels lie between 'normal' and 'high' of the same rule."""
QUALITIES: dict[Quality, tuple[float, int]] = {"draft": (0.5, 600), "normal": (1.0, 1000), "high": (3.0, 1600)}
"""Steps over those of the reference's rule, and the width that images are reduced to, pixels. 1600 is where the
3DGS stops; half of it takes a quarter of the time a step."""
COARSEST = 100
"""Pixels that images are wide at least: SSIM's window alone is 11."""
MIN_STEPS = 300
"""Under which no shape comes out, however small the scene."""
USEFUL = 0.3
"""Share of the rule's steps from which finer images are worth it. With fewer, coarser images learn more."""
FINEST_SPACING = 16.0
"""Times that a voxel may be narrower than the points' spacing: growth's coarsest voxels are 16 times as wide
(``growth.init_factor``), and have to reach from point to point."""
SEEN_BY = 5.0
"""Images that see a place from which a pixel of it is held fast. Under it voxels are wider, so that as many pixels as
before speak for each."""
DEVICE_SHARE = 0.5
"""Of the device's memory, for the anchors of a block; a view in work, images and the decoder take the rest."""
HOST_SHARE = 0.5
"""Of the machine's memory, for decoded images."""
VIEW_BYTES = 500
"""Bytes of device memory a pixel of a view in work: some thirty maps of three floats, most of them of SSIM."""
VIEW_SHARE = 0.25
"""Of the device's memory, for these."""
MAX_POINTS = 2_000
"""Sample of points whose views are counted."""


@dataclass(frozen=True)
class Choice:
    """One setting that said ``auto``."""

    key: str
    value: int | float
    reason: str
    """A sentence without its full stop."""

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else f"{self.value:,}"
        return f"{self.key} = {value}: {self.reason}"


@dataclass(frozen=True)
class Machine:
    """What bounds the choices. All of the memory, not what is free at the moment: every command of a run has to choose
    the same."""

    host_bytes: int
    device_bytes: int


@dataclass(frozen=True)
class Facts:
    """What the choices need to know of a scene whose images are at full size."""

    views: int
    """Training views."""
    images: int
    """Those and the held-out ones."""
    width: int
    """Of the middle one of the views in order of size, pixels."""
    height: int
    pixel: float
    """Training units that a pixel of a full-size image covers at the median depth; NaN where no camera sees a point."""
    spacing: float
    """Median distance of neighbouring points, training units."""
    seen_by: float
    """Training views that see a place, on average over the points."""


@dataclass(frozen=True)
class Goal:
    """What was asked for."""

    quality: Quality = "normal"
    steps_within: Callable[[float | int], int] | None = None
    """Resolution -> steps that the time asked for allows; None: no time was asked for."""


def measure(scene: Scene) -> Facts:
    """The facts of a scene that was loaded with ``scene.resolution=1``."""
    views = sorted(scene.train, key=lambda camera: camera.width * camera.height)
    middle = views[len(views) // 2]
    points = scene.points.xyz
    sample = points[:: max(1, -(-len(points) // MAX_POINTS))]
    seen = sum(float(in_view(sample, camera, near=0.0).double().mean()) for camera in scene.train)
    return Facts(
        len(scene.train), len(scene.train) + len(scene.test), middle.width, middle.height,
        survey(scene.train, points).pixel, median_spacing(points), seen,
    )  # fmt: skip


def at_resolution(scene: Scene, resolution: float | int) -> Scene:
    """A scene that was loaded with ``scene.resolution=1`` as it is with another."""
    train, test = (
        [camera.resized(*target_size(camera.width, camera.height, resolution)) for camera in cameras]
        for cameras in (scene.train, scene.test)
    )
    return replace(scene, train=train, test=test)


def wanted_steps(views: float | int, pixels: float | int) -> int:
    """Steps of 'normal' quality: as the root of all pixels, since images overlap and share what they show. Smaller
    images than the reference's need no fewer steps, as the decoder and the anchors have as far to go.

    Args:
        views: Training views.
        pixels: Of one of them.
    """
    return max(1, round(REFERENCE_STEPS * math.sqrt(views / REFERENCE_VIEWS * max(1.0, pixels / REFERENCE_PIXELS))))


def choose(
    auto: Collection[str], config: Config, scene: Scene, facts: Facts, machine: Machine, goal: Goal
) -> list[Choice]:
    """Values for the settings that say ``auto``.

    Args:
        auto: Their names; of those in ``CHOSEN``, others are left alone.
        config: All others as they are; its values for ``auto`` do not count.
        scene: Loaded with ``scene.resolution=1``.
        facts: Of ``measure``.

    Raises:
        UserError: where no camera sees a point, points coincide, or no number of blocks fits the memory.
    """
    choices: list[Choice] = []
    resolution = config.scene.resolution
    if "scene.resolution" in auto:
        choices.append(choose_resolution(facts, machine, goal, None if "steps" in auto else config.steps))
        resolution = choices[-1].value
    if "model.voxel_size" in auto:
        choices.append(choose_voxel(facts, resolution))
        config = replace(config, model=replace(config.model, voxel_size=float(choices[-1].value)))
    n = math.prod(config.partition.dim) if config.partition.dim else config.partition.blocks
    if n == "auto" and ("steps" in auto or "partition.blocks" in auto):
        blocks = choose_blocks(config, scene, machine)
        n = int(blocks.value)
        choices += [blocks] if "partition.blocks" in auto else []
    if "steps" in auto:
        assert n != "auto"
        choices.append(choose_steps(facts, resolution, goal, n))
    return choices


def choose_resolution(facts: Facts, machine: Machine, goal: Goal, steps: int | None) -> Choice:
    """The finest that memory holds and the steps can use.

    Args:
        steps: Where they are given.
    """
    cap = QUALITIES["high" if goal.steps_within else goal.quality][1]
    held = HOST_SHARE * machine.host_bytes / (3 * facts.images)
    worked_on = VIEW_SHARE * machine.device_bytes / VIEW_BYTES
    finest, why = None, "their full size" if facts.width <= cap else f"no wider than {cap}"
    for resolution in ladder(facts.width, cap):
        w, h = target_size(facts.width, facts.height, resolution)
        if finest is not None and w * h > min(held, worked_on):
            why = f"finer ones of all {facts.images} would take more than their share of the memory"
            break
        if finest is not None and (goal.steps_within is not None or steps is not None):
            least = USEFUL * wanted_steps(facts.views, w * h)
            within = goal.steps_within(resolution) if goal.steps_within is not None else steps
            if within is not None and within < least:
                why = f"finer ones take {least:,.0f} steps to be of use, and there are {within:,}"
                break
        finest = resolution
    assert finest is not None
    return _resolution(facts, finest, why)


def ladder(width: int, cap: int) -> list[float]:
    """Values of ``scene.resolution``, the coarsest first, each twice as fine: widths from ``COARSEST`` pixels on, up to
    the full ``width`` or to ``cap``; as divisors where ``-r`` has one."""
    widths = [float(min(width, cap))]
    while widths[-1] / 2 >= COARSEST:
        widths.append(widths[-1] / 2)
    return [next((float(d) for d in (1, 2, 4, 8) if width == d * w), float(round(w))) for w in reversed(widths)]


def _resolution(facts: Facts, resolution: float | int, why: str) -> Choice:
    w, h = target_size(facts.width, facts.height, resolution)
    return Choice("scene.resolution", resolution, f"images of {w}x{h} (of {facts.width}x{facts.height}), {why}")


def choose_voxel(facts: Facts, resolution: float | int) -> Choice:
    """A pixel on the ground, or more where points or images are too few for so fine a model."""
    width, _ = target_size(facts.width, facts.height, resolution)
    pixel = facts.pixel * facts.width / width
    if not math.isfinite(pixel):
        raise UserError(
            "model.voxel_size: auto finds no pixel on the ground, as no camera sees a point; check the poses "
            "(momentum-gs doctor), or give a size above 0"
        )
    few = math.sqrt(max(1.0, SEEN_BY / facts.seen_by))
    voxel, floor = pixel * few, facts.spacing / FINEST_SPACING
    why = f"a pixel on the ground is {pixel:.3g} training units"
    if few > 1:
        why += f", and {few:.2g} times that as only {facts.seen_by:.2g} images see a place"
    if voxel < floor:
        voxel, why = floor, f"{why}, but the points' spacing is {facts.spacing:.3g}: a {FINEST_SPACING:.0f}th of it"
    return Choice("model.voxel_size", float(f"{voxel:.4g}"), why)


def choose_steps(facts: Facts, resolution: float | int, goal: Goal, blocks: int) -> Choice:
    """As many as the images and pixels ask for, or as the time allows."""
    w, h = target_size(facts.width, facts.height, resolution)
    if goal.steps_within is not None:
        steps = max(MIN_STEPS, goal.steps_within(resolution) // blocks)
        return Choice("steps", steps, "as many as the time allows, by steps that were measured")
    share, _ = QUALITIES[goal.quality]
    # A view serves two blocks or so.
    views = facts.views * min(1.0, 2.0 / blocks)
    steps = max(MIN_STEPS, _rounded(share * wanted_steps(views, w * h)))
    each = f"{views:.0f} views" + (f" for each of {blocks} blocks" if blocks > 1 else "")
    return Choice("steps", steps, f"{goal.quality} quality for {each} of {w}x{h}, each shown "
                  f"{steps / max(views, 1):.0f} times")  # fmt: skip


def _rounded(steps: float) -> int:
    """To two digits: the rule is no more exact."""
    unit = 10 ** max(0, math.floor(math.log10(max(steps, 1))) - 1)
    return round(steps / unit) * unit


def choose_blocks(config: Config, scene: Scene, machine: Machine) -> Choice:
    """One where it fits the memory of the device, else as few as fit."""
    each = bytes_per_anchor(config.model)
    share = int(DEVICE_SHARE * machine.device_bytes)
    own = max_anchors(config.anchors, config.model)
    limit = share // each if own is None else own
    n, largest = blocks_within(limit, scene.train, scene.points.xyz, config)
    bound = (
        f"the {share / 2**30:.1f} GiB that are {DEVICE_SHARE:.0%} of the device's memory"
        if own is None else f"the {limit * each / 2**30:.1f} GiB of anchors.max_per_block or max_gb_per_block"
    )  # fmt: skip
    holds = f"about {largest:,} anchors after growth by {GROWTH:g}, {largest * each / 2**30:.2f} GiB of {bound}"
    if n == 1:
        return Choice("partition.blocks", 1, f"one block fits the device: {holds}")
    return Choice("partition.blocks", n, f"one block would not fit, and the largest of {n} has {holds}")
