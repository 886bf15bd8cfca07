"""Checks of settings against the scene: voxel size, number of blocks, length of the run."""

import math
from dataclasses import dataclass

from momentum_gs.config.schema import Config
from momentum_gs.data.scene import Scene
from momentum_gs.doctor.findings import Finding
from momentum_gs.doctor.poses import survey
from momentum_gs.model.init import median_spacing, voxelize

VOXEL_PIXELS = (0.02, 32.0)
"""Range of voxel sizes, in pixels on the ground, in which a scene trains well. Below, even the coarsest voxel of growth
(128 times as wide) is under three pixels wide; above, an anchor's ten Gaussians represent a thousand pixels."""
SPARSE_ANCHORS = 0.05
"""If a smaller share of the points becomes anchors, the voxel is too large: it discards most of the cloud."""
FEW_POINTS = 100
"""With fewer points there is hardly a shape to grow from."""
FEW_VIEWS = 10
"""With fewer training views per block, its outer cells have too few. A view trains about three blocks; 16 views per
block, as for Caliterra in four blocks, are enough."""


@dataclass(frozen=True)
class Scale:
    """Sizes that follow from the scene and the settings."""

    voxel_size: float
    """``model.voxel_size``, or the median spacing of the points if that is 0; training units."""
    anchors: int
    """Initial anchors of the whole scene: the voxels that hold a point."""
    pixel: float
    """Width that a training pixel covers at the median depth, training units; NaN if no camera sees a point."""


def scale_of(scene: Scene, config: Config) -> Scale:
    """Measures the scene at training resolution.

    Raises:
        UserError: if ``model.voxel_size`` is 0 and the points have no spacing.
    """
    voxel = config.model.voxel_size or median_spacing(scene.points.xyz)
    anchors = len(voxelize(scene.points.xyz, voxel))
    return Scale(voxel, anchors, survey(scene.train, scene.points.xyz).pixel)


def check_settings(scene: Scene, config: Config, scale: Scale) -> list[Finding]:
    """Findings about the voxel size, the number of blocks and the steps; warnings where training would be poor."""
    return [*_check_voxels(scene, config, scale), *_check_blocks(scene, config), *_check_steps(config)]


def _check_voxels(scene: Scene, config: Config, scale: Scale) -> list[Finding]:
    findings = []
    points = len(scene.points)
    if points < FEW_POINTS:
        findings.append(Finding("warning", "points-few", str(scene.path), f"{points} points", f"at least {FEW_POINTS}",
                                "triangulate more: the initial anchors are made from them"))  # fmt: skip
    wide = scale.voxel_size / scale.pixel
    small, large = VOXEL_PIXELS
    pixels = f", {wide:.2g} pixels on the ground" if math.isfinite(wide) else ""
    found = f"{scale.voxel_size:.3g} training units{pixels}: {scale.anchors} anchors from {points} points"
    about = f"about {scale.pixel:.2g} (a pixel on the ground)"
    if wide > large or (scale.anchors < SPARSE_ANCHORS * points and points >= FEW_POINTS):
        findings.append(Finding("warning", "voxel-size", "model.voxel_size", f"{found}: too large", about,
                                "make it smaller, or 0 for the points' spacing"))  # fmt: skip
    elif wide < small:
        findings.append(Finding("warning", "voxel-size", "model.voxel_size", f"{found}: too small, growth adds anchors "
                                "far finer than a pixel", about, "make it larger, or 0 for the points' "
                                "spacing"))  # fmt: skip
    else:
        findings.append(Finding("info", "voxel-size", "model.voxel_size", found))
    return findings


def _check_blocks(scene: Scene, config: Config) -> list[Finding]:
    if config.stage == "coarse":
        return _check_views(scene)
    blocks = math.prod(config.partition.dim) if config.partition.dim else config.partition.blocks
    if blocks == "auto":
        return []
    each = len(scene.train) / blocks
    if each >= FEW_VIEWS:
        return []
    where = "partition.dim" if config.partition.dim else "partition.blocks"
    return [Finding("warning", "blocks", where, f"{blocks} blocks for {len(scene.train)} training views, "
                    f"{each:.1f} each", f"at least {FEW_VIEWS} each", "use fewer blocks")]  # fmt: skip


def _check_views(scene: Scene) -> list[Finding]:
    views = len(scene.train)
    if views >= FEW_VIEWS:
        return []
    return [Finding("warning", "views-few", str(scene.path), f"{views} training views", f"at least {FEW_VIEWS}", "add "
                    "overlapping images: the model will look right only near these")]  # fmt: skip


def _check_steps(config: Config) -> list[Finding]:
    growth, steps = config.growth, config.steps
    starts = max(growth.start_stat, growth.from_step) + growth.interval
    findings = []
    if steps <= starts:
        findings.append(Finding("warning", "steps", "steps", f"{steps}, and growth begins after {starts}",
                                "many steps after that", "raise steps, or lower growth.start_stat and "
                                "growth.from_step"))  # fmt: skip
    elif steps < growth.until:
        findings.append(Finding("warning", "steps", "growth.until", f"{growth.until}, and the run ends at {steps}",
                                "growth to end well before the run does (MGS: at half)", "lower growth.until, so that "
                                "the last new anchors are trained long enough"))  # fmt: skip
    if steps < config.optim.lr_steps:
        findings.append(Finding("info", "steps", "optim.lr_steps", f"{config.optim.lr_steps}, and the run ends at "
                                f"{steps}: learning rates do not reach their final value"))  # fmt: skip
    if config.stage == "blocks" and config.weighting.enabled and steps <= config.weighting.every:
        findings.append(Finding("info", "steps", "weighting.every", f"{config.weighting.every}, and the run ends at "
                                f"{steps}: block weights stay 1"))  # fmt: skip
    return findings
