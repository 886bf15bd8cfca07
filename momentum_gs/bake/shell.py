"""A learned background as Gaussians: part of a sphere far around the scene, which every viewer draws."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.types import Camera
from momentum_gs.model.background import Background
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.harmonics import basis
from momentum_gs.model.splats import SH_CONSTANT, Harmonics, Model, Splats
from momentum_gs.render.blending import blending_weights
from momentum_gs.render.view import decode_view

COUNT = 2048
"""Gaussians of a shell: neighbours are 4.5 degrees apart, over which a background of degree 2 hardly changes."""
WIDTH = 0.85
"""Standard deviation, relative to the distance between neighbours. With 0.7, 2 % of the light of what is behind passes
between them; the wider, the further from a ray is the Gaussian that it meets first, and whose colour it has."""
OPACITY = 0.99
"""What rasterizers clamp alpha to."""
FAR = 4.0
"""Radius, relative to the reach of the scene. Gaussians are drawn in the order of their depth along the camera's axis,
not of their distance: at the corner of a wide image, that of the shell is half of its radius."""
SHOWN = 0.01
"""Smallest weight, relative to one covered pixel, with which a Gaussian of the sphere counts as shown in an image."""
BESIDE = math.radians(10)
"""Gaussians this close to a shown one are kept too, for views that no training image has."""
_MOST_VIEWS = 128
"""Size of the sample of cameras in which the sphere is looked for; images overlap."""
_WITHIN = 0.999
"""Share of all contributions within reach: single Gaussians, which lie anywhere, do not decide it."""


def reach_of(
    positions: Float[Tensor, "n 3"], weight: Float[Tensor, "n"], cameras: Sequence[Camera]
) -> tuple[Float[Tensor, "3"], float]:
    """The middle of the cameras, and the distance from it within which all cameras and nearly all of the weight are.

    Args:
        positions: Of anchors or splats, training units.
        weight: What each contributes to the images, on any device.
        cameras: At least one.
    """
    centers = torch.stack([camera.center for camera in cameras]).double()
    middle = centers.mean(dim=0)
    reach = float((centers - middle).norm(dim=1).max())
    distance, order = (positions.detach() - middle.to(positions)).norm(dim=1).cpu().sort()
    share = weight.cpu()[order].double().cumsum(0)
    if len(share) and float(share[-1]) > 0:
        last = int(torch.searchsorted(share, _WITHIN * share[-1]))
        reach = max(reach, float(distance[min(last, len(distance) - 1)]))
    return middle, max(reach, 1e-6)


def background_shell(
    background: Background, middle: Float[Tensor, "3"], reach: float, *, sh_degree: int = 0, count: int = COUNT
) -> Splats:
    """Gaussians on a sphere that hide what is behind them and have the colour of the background in their direction.

    Args:
        background: Learned.
        middle: Centre of the sphere, training units.
        reach: Of the scene (``reach_of``); the sphere's radius is ``FAR`` times that.
        sh_degree: Degree of the result. If the background's is not higher, its harmonics are those of the background,
            so that it does not matter where the camera is; otherwise a Gaussian has the colour of its direction from
            the middle.
        count: Number of Gaussians.

    Returns:
        ``count`` round Gaussians, in training units, on the background's device.
    """
    like = background.sh.detach()
    directions = _spread(count)
    radius = FAR * reach
    with torch.no_grad():
        color = background(directions.to(like))
    sh = like.new_zeros(count, (sh_degree + 1) ** 2, 3)
    if background.degree <= sh_degree:
        known = basis(background.degree, directions)
        sh[:, : known.shape[1]] = torch.linalg.lstsq(known, color.cpu().double() - 0.5).solution.to(sh)
    else:
        sh[:, 0] = (color.clamp(0, 1) - 0.5) / SH_CONSTANT
    sigma = WIDTH * radius * math.sqrt(4 * math.pi / count)
    return Splats(
        position=(middle.cpu() + radius * directions).to(like),
        sh_dc=sh[:, :1].contiguous(),
        sh_rest=sh[:, 1:].contiguous(),
        log_scale=like.new_full((count, 3), math.log(sigma)),
        rotation=like.new_tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        opacity=like.new_full((count, 1), math.log(OPACITY / (1 - OPACITY))),
    ).as_leaves()


def shown_part(
    shell: Splats, model: Model, decoder: Decoder | Harmonics, cameras: Sequence[Camera]
) -> Splats:
    """The part of a sphere that images show behind the model, and what is close to that; the rest would only hide the
    scene from viewers that look at it from outside. A survey that looks down leaves a bowl.

    Args:
        shell: What ``background_shell`` returns.
        model: N anchors or splats, on the shell's device.
        decoder: Their decoder.
        cameras: Of the training views.

    Returns:
        Rows of ``shell``, perhaps none.
    """
    harmonics, shown = Harmonics(shell.sh_degree), torch.zeros(len(shell), dtype=torch.bool)
    for camera in cameras[:: -(-len(cameras) // _MOST_VIEWS)]:
        with torch.no_grad():
            behind, before = decode_view(shell, harmonics, camera), decode_view(model, decoder, camera)
        rows = behind.visible[behind.kept]
        shown[rows.cpu()] |= blending_weights(behind.gaussians, camera, before.gaussians).cpu() > SHOWN
    position = shell.position.detach().cpu().double()
    direction = torch.nn.functional.normalize(position - position.mean(dim=0), dim=1)
    near = direction @ direction[shown].T > math.cos(BESIDE)
    return shell.subset(near.any(dim=1).to(shell.position.device))


def _spread(count: int) -> Float[Tensor, "n 3"]:
    """Unit vectors that cover the sphere evenly: a Fibonacci lattice, float64."""
    rows = torch.arange(count, dtype=torch.float64)
    z = 1 - (2 * rows + 1) / count
    angle = rows * math.pi * (3 - math.sqrt(5))
    ring = (1 - z * z).sqrt()
    return torch.stack([ring * angle.cos(), ring * angle.sin(), z], dim=1)
