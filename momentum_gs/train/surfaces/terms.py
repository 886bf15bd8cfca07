"""The surface terms of a training step."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.core.window import Window
from momentum_gs.data.views import Views
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.splats import Harmonics
from momentum_gs.render.surface import Surface
from momentum_gs.render.view import ViewRender, render_surface
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.surfaces.losses import (
    PATCH,
    PATCHES,
    flatness,
    gray,
    match,
    normal_errors,
    patch_errors,
)
from momentum_gs.train.surfaces.neighbours import Neighbours
from momentum_gs.train.view_order import ViewOrder


@dataclass(frozen=True)
class SurfaceTerms:
    """Computes them; holds nothing that changes."""

    neighbours: Neighbours
    views: Views
    """Gives the neighbours' images."""

    def draws(self, step: int, config: Config) -> bool:
        """Whether the terms of a block step need depth and normals: every few steps, as drawing them, for two views,
        costs more than a step without."""
        return self._normals(step, config) or self._pairs(step, config)

    @staticmethod
    def _normals(step: int, config: Config) -> bool:
        """Whether a block step compares a view's depth with its normals."""
        settings = config.surface
        begun = step >= settings.normals_from * config.steps
        return settings.normals > 0 and begun and step % settings.every == 0

    @staticmethod
    def _pairs(step: int, config: Config) -> bool:
        """Whether a block step compares two views."""
        settings = config.surface
        begun = step >= settings.views_from * config.steps
        return settings.geometry + settings.patches > 0 and begun and step % settings.every == 0

    def neighbour(self, block: int, step: int, camera: Camera, config: Config) -> Camera | None:
        """The view that a block step compares its own with; None where it compares none."""
        return self.neighbours.draw(block, step, camera) if self._pairs(step, config) else None

    def terms(
        self,
        view: ViewRender,
        block: Block,
        decoder: Decoder | Harmonics,
        camera: Camera,
        target: TargetImage,
        window: Window | None,
        config: Config,
        pose: Callable[[Sequence[Camera]], list[Camera]],
    ) -> dict[str, Tensor]:
        """All surface terms of one view, each times its weight and the share of the view that counts.

        Args:
            view: The view, drawn with its surface where ``draws`` says so.
            block: The block at its present step.
            decoder: Of the block.
            camera: The view, at its present pose.
            target: Its image, of the window.
            window: Part of the view that the block trains on.
            config: Settings.
            pose: Training cameras -> the same at their present poses.
        """
        settings = config.surface
        terms = {"flat": settings.flatten * flatness(view.decoded.gaussians.scales)} if settings.flatten else {}
        if view.surface is not None and self._normals(block.step, config):
            errors = normal_errors(view.surface, camera, target.image, window)
            terms["normals"] = settings.every * settings.normals * _mean(errors, target)
        other = self.neighbour(block.block, block.step, camera, config)
        if view.surface is not None and other is not None:
            terms |= self._pair(view.surface, block, decoder, camera, target, window, config, pose([other])[0])
        return {name: target.share * term for name, term in terms.items()}

    def _pair(
        self, surface: Surface, block: Block, decoder: Decoder | Harmonics, camera: Camera, target: TargetImage,
        window: Window | None, config: Config, other: Camera,
    ) -> dict[str, Tensor]:  # fmt: skip
        found = match(surface, camera, render_surface(block.model, decoder, other, block.around), other, window)
        counts = _counts(target)
        weight = found.weight * counts.flatten()[found.pixel]
        total = counts.sum().clamp_min(1)
        settings = config.surface
        terms = {"geometry": settings.every * settings.geometry * (weight * found.error).sum() / total}
        seen = self.views.target_or_skip(other.name) if settings.patches else None
        if seen is None:
            return terms
        inner = _inner(counts)
        kept = (inner.flatten()[found.pixel] > 0).nonzero()[:, 0]
        generator = keyed_generator(config.seed, "patches", block.block, block.step)
        kept = kept[torch.randperm(len(kept), generator=generator)[:PATCHES].to(kept.device)]
        luma = gray(seen.image) if seen.mask is None else gray(seen.image) * seen.mask[0]
        errors = patch_errors(surface, camera, gray(target.image), other, luma, found.pixel[kept], window)
        weight = weight[kept]
        terms["patches"] = settings.every * settings.patches * (weight * errors).sum() / weight.sum().clamp_min(1)
        return terms


def _counts(target: TargetImage) -> Tensor:
    """[h,w] how much each pixel counts."""
    counts = target.counts
    return torch.ones_like(target.image[0]) if counts is None else counts[0]


def _mean(errors: Tensor, target: TargetImage) -> Tensor:
    counts = _counts(target)
    return (errors * counts).sum() / counts.sum().clamp_min(1)


def _inner(counts: Tensor) -> Tensor:
    """``counts`` without a rim as wide as a patch reaches."""
    rim = (PATCH,) * 4
    return F.pad(counts[PATCH:-PATCH, PATCH:-PATCH], rim) if min(counts.shape) > 2 * PATCH else torch.zeros_like(counts)


def images_ahead(
    order: ViewOrder,
    active: Sequence[Block],
    ahead: Iterable[int],
    bad: Collection[str],
    surfaces: SurfaceTerms | None,
    config: Config,
) -> list[str]:
    """Names of the images that the coming steps need, in their order: the blocks' views, and their neighbours.

    Args:
        order: Of the views.
        active: Blocks of this rank.
        ahead: Numbers of steps from the present one.
        bad: Names of images that cannot be read.
        surfaces: Decides about neighbours; None: there are none.
        config: Settings.
    """
    names: list[str] = []
    for i in ahead:
        for block in active:
            camera = order.expected(block.block, block.step + i, bad)
            names.append(camera.name)
            if surfaces is not None:
                other = surfaces.neighbour(block.block, block.step + i, camera, config)
                names += [] if other is None else [other.name]
    return names
