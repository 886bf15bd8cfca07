"""Chooses values for settings that are ``auto``, from the scene, the machine and the goal, each with its reason.

Nothing here reads a file or a clock. Lengths are in training units and are compared only with each other, so the unit
of a scene changes no choice, except that the voxel size is in that unit.
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
from momentum_gs.model.init import median_spacing, voxelize
from momentum_gs.partition.budget import GROWTH, blocks_within
from momentum_gs.train.blocks.anchor_budget import bytes_per_anchor, max_anchors

Quality = Literal["draft", "normal", "high"]

CHOSEN = ("scene.resolution", "model.voxel_size", "partition.blocks", "blocks.windows", "steps")
"""Settings that are chosen here if they are ``auto``, in this order: later choices depend on earlier ones."""

REFERENCE_STEPS, REFERENCE_VIEWS, REFERENCE_PIXELS = 1500, 66, 500 * 375
"""Steps, training views and pixels per image of the tuned run (configs/caliterra.yaml) from which numbers of steps are
scaled. 3DGS' 30,000 steps for 250 images of two megapixels lie between 'normal' and 'high' of this rule."""
QUALITIES: dict[Quality, tuple[float, int]] = {"draft": (0.5, 600), "normal": (1.0, 1000), "high": (3.0, 1600)}
"""Factor on the rule's number of steps, and the largest image width in pixels. 1600 is the limit of 3DGS; at half that
width a step takes a quarter of the time."""
COARSEST = 100
"""Smallest image width, pixels: the window of SSIM alone is 11 pixels wide."""
MIN_STEPS = 300
"""With fewer steps no shape emerges, however small the scene."""
USEFUL = 0.3
"""Finer images are used only if at least this share of the rule's steps is available. With fewer, training on coarser
images gives better models."""
FINEST_SPACING = 16.0
"""Largest ratio of the points' spacing to the voxel size: growth's coarsest voxels are 16 times as wide as the finest
(``growth.init_factor``) and have to reach from point to point."""
SEEN_BY = 5.0
"""Number of views of a place that suffice to reconstruct it to a pixel. With fewer, voxels are larger, so that as many
pixels as otherwise constrain each."""
DEVICE_SHARE = 0.5
"""Share of the device's memory for the anchors of a block; the activations of a view, images and the decoder take the
rest."""
WINDOW_STEP = 1.3
"""sqrt(n) times the time of a step of one of n blocks with windows, in steps of the coarse model. Measured in CPU time
with 4, 8 and 16 blocks: 1.4 to 1.7 on a city, 0.9 to 1.1 on drone scenes (docs/lab_log.md, "Whole methods at equal
work")."""
HOST_SHARE = 0.5
"""Share of the machine's memory for decoded images."""
VIEW_BYTES = 500
"""Bytes of device memory per pixel of the view that is trained on: some thirty maps of three floats, most of them of
SSIM."""
VIEW_SHARE = 0.25
"""Share of the device's memory for these."""
MAX_POINTS = 2_000
"""Size of the sample of points whose views are counted."""


@dataclass(frozen=True)
class Choice:
    """The value chosen for a setting that was ``auto``."""

    key: str
    value: int | float | bool
    reason: str
    """A sentence without its full stop."""

    def __str__(self) -> str:
        if isinstance(self.value, bool):
            value = str(self.value).lower()
        else:
            value = f"{self.value:.4g}" if isinstance(self.value, float) else f"{self.value:,}"
        return f"{self.key} = {value}: {self.reason}"


@dataclass(frozen=True)
class Machine:
    """Memory, which bounds the choices: the total, not what is free at the moment, so that every command of a run
    chooses the same."""

    host_bytes: int
    """Total memory of the machine."""
    device_bytes: int
    """Total memory of the device."""


@dataclass(frozen=True)
class Facts:
    """Measurements of a scene with images at full size, on which the choices depend."""

    views: int
    """Number of training views."""
    images: int
    """Number of training and held-out views."""
    width: int
    """Width of the view of median size, pixels."""
    height: int
    """Its height, pixels."""
    pixel: float
    """Training units that a pixel of a full-size image covers at the median depth; NaN if no camera sees a point."""
    spacing: float
    """Median distance between neighbouring points, training units."""
    seen_by: float
    """Number of training views that a point projects into, on average over the points."""


@dataclass(frozen=True)
class Goal:
    """The quality or time that was asked for."""

    quality: Quality = "normal"
    steps_within: Callable[[float | int], int] | None = None
    """``scene.resolution`` -> number of steps that fit into the time limit; None: there is none."""
    passes: float | None = None
    """Passes over the pixels of the training views, if ``steps`` is given so; then only these decide on the steps."""
    views_per_step: float | None = None
    """Pixels that count in a step of every block, in whole views; None: a view for each block, before the scene is cut
    into windows."""


def measure(scene: Scene) -> Facts:
    """Measures a scene that was loaded with ``scene.resolution=1``."""
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
    """A scene that was loaded with ``scene.resolution=1``, at another resolution."""
    train, test = (
        [camera.resized(*target_size(camera.width, camera.height, resolution)) for camera in cameras]
        for cameras in (scene.train, scene.test)
    )
    return replace(scene, train=train, test=test)


def wanted_steps(views: float | int, pixels: float | int) -> int:
    """Number of steps for 'normal' quality: proportional to the square root of the total number of pixels, since
    images overlap. Images smaller than the reference's do not need fewer steps.

    Args:
        views: Number of training views.
        pixels: Pixels per view.
    """
    return max(1, round(REFERENCE_STEPS * math.sqrt(views / REFERENCE_VIEWS * max(1.0, pixels / REFERENCE_PIXELS))))


def choose(
    auto: Collection[str], config: Config, scene: Scene, facts: Facts, machine: Machine, goal: Goal
) -> list[Choice]:
    """Chooses values for the settings that are ``auto``.

    Args:
        auto: Names of these settings; only those in ``CHOSEN`` are chosen.
        config: All other settings; its values for ``auto`` are ignored.
        scene: The scene, loaded with ``scene.resolution=1``.
        facts: ``measure(scene)``.
        machine: Memory that bounds the choices.
        goal: The quality or time asked for.

    Raises:
        UserError: if no camera sees a point, points coincide, or no number of blocks fits into memory.
    """
    choices: list[Choice] = []
    resolution = config.scene.resolution
    if "scene.resolution" in auto:
        given = None if "steps" in auto else config.steps
        given = round(goal.passes * facts.views) if goal.passes is not None else given
        choices.append(choose_resolution(facts, machine, goal, given))
        resolution = choices[-1].value
    if "model.voxel_size" in auto:
        choices.append(choose_voxel(facts, resolution))
        config = replace(config, model=replace(config.model, voxel_size=float(choices[-1].value)))
    n = math.prod(config.partition.dim) if config.partition.dim else config.partition.blocks
    if n == "auto" and not {"steps", "partition.blocks", "blocks.windows"}.isdisjoint(auto):
        blocks = choose_blocks(config, scene, machine)
        n = int(blocks.value)
        choices += [blocks] if "partition.blocks" in auto else []
    windows = config.blocks.windows
    if "blocks.windows" in auto and n != 1:
        choices.append(choose_windows(config, scene, machine))
        windows = bool(choices[-1].value)
    if "steps" in auto:
        assert n != "auto"
        # 'run' chooses before the scene is cut one number for both stages, unless it is given as passes of each.
        if goal.passes is not None and config.stage == "coarse":
            n = 1
        once = step_of_all(n, windows, coarse=windows or wants_coarse(config))
        choices.append(choose_steps(facts, resolution, goal, n, once))
    return choices


def choose_resolution(facts: Facts, machine: Machine, goal: Goal, steps: int | None) -> Choice:
    """The finest resolution that fits into memory and for which there are enough steps.

    Args:
        facts: ``measure`` of the scene.
        machine: Memory that bounds the choice.
        goal: The quality or time asked for.
        steps: Number of steps if it is given; None: it will be chosen.
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
                why = f"finer ones need at least {least:,.0f} steps, and there are {within:,}"
                break
        finest = resolution
    assert finest is not None
    return _resolution(facts, finest, why)


def ladder(width: int, cap: int) -> list[float]:
    """Values of ``scene.resolution`` to try, each twice as fine as the one before: image widths from at least
    ``COARSEST`` pixels (if the images are that wide) up to ``width`` or ``cap``; as divisors 1, 2, 4, 8 if possible."""
    widths = [float(min(width, cap))]
    while widths[-1] / 2 >= COARSEST:
        widths.append(widths[-1] / 2)
    return [next((float(d) for d in (1, 2, 4, 8) if width == d * w), float(round(w))) for w in reversed(widths)]


def _resolution(facts: Facts, resolution: float | int, why: str) -> Choice:
    w, h = target_size(facts.width, facts.height, resolution)
    return Choice("scene.resolution", resolution, f"images of {w}x{h} (of {facts.width}x{facts.height}), {why}")


def choose_voxel(facts: Facts, resolution: float | int) -> Choice:
    """A voxel of the size of a pixel on the ground, or larger if points or images are too few for so fine a model."""
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


def wants_coarse(config: Config) -> bool:
    """Whether several blocks need a coarse model, to be cut or to start from."""
    return config.partition.assign != "visibility" or config.starts_from_coarse


def step_of_all(blocks: int, windows: bool, *, coarse: bool) -> float:
    """Time of a step of every block, and of the coarse model if there is one, in steps of the whole scene as one block.

    Args:
        blocks: Number of blocks.
        windows: They train with ``blocks.windows``.
        coarse: A coarse model is trained for as many steps as each of several blocks.
    """
    if blocks == 1:
        return 1.0
    return blocks * (WINDOW_STEP / math.sqrt(blocks) if windows else 1.0) + coarse


def choose_steps(facts: Facts, resolution: float | int, goal: Goal, blocks: int, of_all: float | None = None) -> Choice:
    """The number of steps for the images and the quality asked for, or as many as the passes or the time allow.

    Args:
        facts: ``measure`` of the scene.
        resolution: ``scene.resolution``.
        goal: The quality, passes or time asked for.
        blocks: Number of blocks.
        of_all: ``step_of_all``; None: a step of each block takes as long as one of the whole scene.
    """
    if goal.passes is not None:
        counted = float(blocks) if goal.views_per_step is None else goal.views_per_step
        steps = max(1, round(goal.passes * facts.views / counted))
        of = f"of all {blocks} blocks " if blocks > 1 else ""
        return Choice("steps", steps, f"{goal.passes:g} passes over the pixels of {facts.views} views, where a step "
                      f"{of}counts {counted:.3g} of them")  # fmt: skip
    w, h = target_size(facts.width, facts.height, resolution)
    if goal.steps_within is not None:
        steps = max(MIN_STEPS, int(goal.steps_within(resolution) / (of_all or blocks)))
        return Choice("steps", steps, "as many as the time allows, by the measured time of a step")
    share, _ = QUALITIES[goal.quality]
    # Each view trains about two blocks.
    views = facts.views * min(1.0, 2.0 / blocks)
    steps = max(MIN_STEPS, _rounded(share * wanted_steps(views, w * h)))
    each = f"{views:.0f} views" + (f" for each of {blocks} blocks" if blocks > 1 else "")
    return Choice("steps", steps, f"{goal.quality} quality for {each} of {w}x{h}, each shown "
                  f"{steps / max(views, 1):.0f} times")  # fmt: skip


def _rounded(steps: float) -> int:
    """Rounded to two significant digits: the rule is no more precise."""
    unit = 10 ** max(0, math.floor(math.log10(max(steps, 1))) - 1)
    return round(steps / unit) * unit


def anchors_within(config: Config, machine: Machine) -> int:
    """Most anchors of a block: the bound that the settings give, otherwise what the device's share holds."""
    own = max_anchors(config.anchors, config.model)
    return int(DEVICE_SHARE * machine.device_bytes) // bytes_per_anchor(config.model) if own is None else own


def choose_windows(config: Config, scene: Scene, machine: Machine) -> Choice:
    """Several blocks train on what they keep, if a coarse model of the whole scene fits into the device's memory, where
    its growth may be cut short."""
    limit, points = anchors_within(config, machine), scene.points.xyz
    start = len(voxelize(points, config.model.voxel_size or median_spacing(points)))
    if start > limit:
        return Choice("blocks.windows", False, f"a coarse model begins with {start:,} anchors, and {limit:,} fit")
    return Choice("blocks.windows", True, "each block trains on the pixels of its cell, after a coarse model of the "
                  "whole scene; the settings of modes/windows")  # fmt: skip


def choose_blocks(config: Config, scene: Scene, machine: Machine) -> Choice:
    """One block if it fits into the device's memory, otherwise the fewest that do."""
    each = bytes_per_anchor(config.model)
    share = int(DEVICE_SHARE * machine.device_bytes)
    own, limit = max_anchors(config.anchors, config.model), anchors_within(config, machine)
    n, largest = blocks_within(limit, scene.train, scene.points.xyz, config)
    bound = (
        f"the {share / 2**30:.1f} GiB that are {DEVICE_SHARE:.0%} of the device's memory"
        if own is None else f"the {limit * each / 2**30:.1f} GiB of anchors.max_per_block or max_gb_per_block"
    )  # fmt: skip
    holds = f"about {largest:,} anchors after growth by {GROWTH:g}, {largest * each / 2**30:.2f} GiB of {bound}"
    if n == 1:
        return Choice("partition.blocks", 1, f"one block fits the device: {holds}")
    return Choice("partition.blocks", n, f"one block would not fit, and the largest of {n} has {holds}")
