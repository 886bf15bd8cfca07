"""Supervision by depth and normal priors: maps that an estimator made of the training images (``data/priors.py``).

A depth map is known up to a scale and a shift, which are fitted to the render at every step, as in MonoSDF (arXiv
2206.00665), eq. 13 and 14. Ours: the map is fitted to the render instead of the render to the map, so that an error is
one of the scene's own (inverse) depth; the fit is held fixed, counts outliers less, and must have a scale above 0.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.render.surface import MIN_ALPHA, Surface, expected_depth
from momentum_gs.render.view import ViewRender

ROUNDS = 4
"""Least-squares fits: the first counts all pixels alike, each further one by 1 / (1 + (error / mean error)^2) of the
one before. A tenth of the pixels may then be anywhere."""
LEAST_SPREAD = 1e-5
"""Standard deviation of a map, relative to its values, below which float32 leaves nothing to fit."""


@dataclass(frozen=True)
class Fit:
    """A prior in the unit of the render; without gradient."""

    values: Float[Tensor, "h w"]
    """scale * prior + shift."""
    mean: Float[Tensor, ""]
    """Of the rendered values that the fit trusts: the unit of errors."""
    counts: Bool[Tensor, ""]
    """Whether the scale is above 0 and the prior varies: otherwise it says nothing about this view."""


def draws_surface(config: Config) -> bool:
    """Whether the priors need normals, or the planar depth of a model that is trained for that."""
    return config.loss.normal_prior > 0 or (config.loss.depth_prior > 0 and config.model.surface == "planar")


def prior_terms(view: ViewRender, camera: Camera, target: TargetImage, config: Config) -> dict[str, Tensor]:
    """The terms of the priors that this view has, each times its weight and the share of the view that counts.

    Args:
        view: The view, drawn with its surface where ``draws_surface`` says so.
        camera: The view, at its present pose.
        target: Its image and priors, of the window.
        config: Settings.
    """
    counts = torch.ones_like(target.image[0]) if target.counts is None else target.counts[0]
    terms = {}
    if target.depth_prior is not None:
        planar = view.surface if config.model.surface == "planar" else None
        depth = expected_depth(view.output) if planar is None else planar.depth
        inverse = config.scene.depths_hold == "inverse"
        terms["depth_prior"] = config.loss.depth_prior * depth_error(depth, target.depth_prior, counts, inverse)
    if target.normal_prior is not None and view.surface is not None:
        terms["normal_prior"] = config.loss.normal_prior * normal_error(
            view.surface, target.normal_prior, camera, counts
        )
    return {name: target.share * term for name, term in terms.items()}


def depth_error(
    depth: Float[Tensor, "h w"], prior: Float[Tensor, "h w"], counts: Float[Tensor, "h w"], inverse: bool
) -> Float[Tensor, ""]:
    """Mean |rendered - fitted prior| of inverse depth or depth, relative to the view's mean; 0 for a prior that is
    smaller where it should be larger.

    Args:
        depth: Rendered, training units; 0 where nothing is drawn.
        prior: In any unit; NaN where unknown.
        counts: How much each pixel counts. Pixels without depth or prior have no error.
        inverse: Both are compared as inverse depth.
    """
    there = (depth.detach() > 0) & prior.isfinite()
    safe = torch.where(there, depth, 1.0)
    seen = torch.where(there, 1 / safe if inverse else safe, 0.0)
    weight = torch.where(there, counts, 0.0)
    fit = fitted(torch.where(there, prior, 0.0).to(seen), seen, weight)
    error = (weight * (seen - fit.values).abs()).sum() / fit.mean / counts.sum().clamp_min(1)
    return torch.where(fit.counts, error, 0.0)


@torch.no_grad()
def fitted(prior: Float[Tensor, "h w"], seen: Float[Tensor, "h w"], weight: Float[Tensor, "h w"]) -> Fit:
    """Scales and shifts a prior to rendered values by robust least squares (``ROUNDS``)."""
    trust = weight
    for i in range(ROUNDS):
        total = trust.sum().clamp_min(1e-12)
        middle, mean = (trust * prior).sum() / total, (trust * seen).sum() / total
        apart = prior - middle
        square = (trust * apart * apart).sum()
        scale = (trust * apart * (seen - mean)).sum() / square.clamp_min(1e-30)
        values = mean + scale * apart
        if i + 1 < ROUNDS:
            error = (seen - values).abs()
            usual = ((trust * error).sum() / total).clamp_min(1e-12)
            trust = weight / (1 + (error / usual).square())
    varies = square > LEAST_SPREAD**2 * (trust * prior * prior).sum()
    return Fit(values, mean.clamp_min(1e-12), (scale > 0) & varies)


def normal_error(
    surface: Surface, prior: Float[Tensor, "3 h w"], camera: Camera, counts: Float[Tensor, "h w"]
) -> Float[Tensor, ""]:
    """Mean 1 - cosine between rendered normals and the prior's.

    Args:
        surface: Of the view in training. Pixels with an alpha up to ``MIN_ALPHA`` have no error.
        prior: Unit normals in camera axes; 0 where unknown, which has no error.
        camera: The view.
        counts: How much each pixel counts.
    """
    world = torch.einsum("ji,jhw->ihw", camera.rotation.to(prior), prior)
    there = (surface.alpha.detach() > MIN_ALPHA) & (prior != 0).any(dim=0)
    error = torch.where(there, 1 - (surface.normal * world).sum(dim=0), 0.0)
    return (counts * error).sum() / counts.sum().clamp_min(1)
