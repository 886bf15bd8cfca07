"""The functional interface: rasterize, visible_radii, spherical_harmonics.

The operators are declared in csrc/binding.cpp and dispatched by device; gradients.py adds gradients and shapes for
tracing, checks.py readable errors. Notation: G Gaussians, C channels, H x W pixels.

Conventions: the camera looks along +z with x right and y down; ``world_view`` maps column vectors; pixel coordinates
are COLMAP's (centre of the first pixel at 0.5, 0.5); quaternions are (w, x, y, z) and are not normalised.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diff_gaussian_rasterization import checks
from diff_gaussian_rasterization.checks import TILE, Around, Window
from diff_gaussian_rasterization.gradients import composite, project, register
from diff_gaussian_rasterization.library import OPERATORS

__all__ = [
    "NEAR",
    "TILE",
    "Around",
    "Rasterization",
    "Capacity",
    "Window",
    "cpu_kernels",
    "median_depth",
    "rasterize",
    "spherical_harmonics",
    "visible_radii",
]

NEAR = 0.2
"""Gaussians at this camera z or nearer are culled (scene units; the constant of 3DGS)."""

register()


def cpu_kernels() -> str:
    """The variant of the CPU kernels that is used: ``x86-64-v4`` (AVX-512) or ``x86-64-v3`` (AVX2).

    It is the best that this CPU supports, or the one that the environment variable MOMENTUM_GS_CPU names (``v4``,
    ``v3``) when the first kernel runs. A build with NATIVE=1 has one variant, ``native``; other architectures have
    ``plain``.

    Raises:
        RuntimeError: no variant runs on this CPU, or MOMENTUM_GS_CPU names a variant that does not exist.
    """
    return OPERATORS.cpu_kernels()


class Rasterization(NamedTuple):
    """One rasterized view."""

    image: Tensor
    """[C,H,W] sum of weight * color, plus transmittance * background; H and W are those of the window."""
    alpha: Tensor
    """[H,W] accumulated opacity, 1 - transmittance."""
    depth: Tensor
    """[H,W] sum of weight * camera z, not divided by alpha."""
    radii: Tensor
    """int32 [G] radius on the screen in pixels (3 sigma, rounded up), 0 where culled; without those ``around``."""


@dataclass
class Capacity:
    """How many (tile, Gaussian) pairs a view of a scene is expected to have, from its earlier views.

    Every call of ``rasterize`` that is given it updates it. Without one, the host waits on a GPU until all work before
    the lists of pairs is done, since it allocates them. With one, lists are made and drawn from in the memory that is
    expected to suffice, and the host waits for the number of pairs only behind that; where they did not fit, they are
    drawn again. Results have the same bits in either case. CPUs count pairs first and ignore it.
    """

    pairs: int = 0
    """0: unknown."""

    def after(self, pairs: int) -> None:
        """Expects a quarter more than a view had, so that the next ones fit; forgets large views slowly, over some
        hundred others."""
        self.pairs = max(pairs + pairs // 4, self.pairs - self.pairs // 64)


def rasterize(
    means: Tensor,
    opacities: Tensor,
    colors: Tensor,
    *,
    scales: Tensor | None = None,
    quats: Tensor | None = None,
    cov3d: Tensor | None = None,
    world_view: Tensor,
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    width: int,
    height: int,
    background: Tensor,
    means2d: Tensor | None = None,
    scale_modifier: float = 1.0,
    near: float = NEAR,
    window: Window | None = None,
    tiles: Tensor | None = None,
    antialiasing: bool = False,
    around: Around | None = None,
    capacity: Capacity | None = None,
) -> Rasterization:
    """Blends Gaussians front to back, over ``background``.

    With ``window`` only a part of the image is drawn, at the cost of the part. The outputs are, bit for bit, that part
    of what is drawn without it, and their gradients those of the same part, up to the order of sums. Radii are 0 also
    where nothing of a Gaussian can show in the window: an opacity of 1 shows up to 3.34 sigma.

    Args:
        means: [G,3] centres in the world, float32 or float64; all other tensors have the same dtype and device.
        opacities: [G,1] in (0, 1].
        colors: [G,C] any number of channels, any range.
        scales: [G,3] standard deviations in scene units, with ``quats`` [G,4]; or
        cov3d: [G,6] upper triangle (xx xy xz yy yz zz) of the covariance, which replaces both.
        world_view: [4,4] world to camera, for column vectors.
        fx: focal lengths fx, fy and principal point cx, cy, in pixels.
        fy: see fx.
        cx: see fx.
        cy: see fx.
        width: image width in pixels.
        height: image height in pixels.
        background: [C] colour.
        means2d: [G,2], [G,3] or [G,4], values unused; after the backward pass its ``grad[:, :2]`` is the gradient by
            the projected means in NDC units (the pixel gradient times width/2, height/2), which densification in 3DGS
            codebases uses. With four columns, ``grad[:, 2:]`` is the sum of the absolute values of what each pixel adds
            to that gradient (AbsGS), at the cost of another pass.
        scale_modifier: factor on ``scales``.
        near: camera z up to which Gaussians are culled; not negative.
        window: (x, y, width, height) of the part to draw, in pixels of the image; anywhere inside of it. The camera,
            ``width``, ``height`` and the units of ``means2d.grad`` are those of the whole image all the same.
        tiles: bool [ceil(H/16),ceil(W/16)] of the window: which squares of 16x16 pixels, counted from its corner, are
            drawn. In the others the image is the background, with alpha and depth 0: gradients of these pixels go to
            ``background``, and none to the Gaussians.
        antialiasing: every footprint is widened by 0.3 px² so that it never falls between pixels, which brightens
            Gaussians that are small on the screen. True lowers opacities in return, so that a Gaussian gives the image
            as much as before: by sqrt(det(K - 0.3 I) / det K), at least 0.005, with K [2,2] the widened footprint
            (Mip-Splatting, eq. 9).
        around: Further Gaussians, drawn as if they stood behind the others in every argument. They get no gradients,
            which the backward pass need not compute.
        capacity: How many pairs to expect, which the call updates; None: unknown.

    Returns:
        Rasterization: differentiable in means, opacities, colors, scales, quats, cov3d, background and world_view.
        Gaussians with NaN or Inf values are not drawn and get zero gradients.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    world_view = world_view.to(device=means.device, dtype=means.dtype)
    checks.check_gaussians(means, scales, quats, cov3d, world_view, width, height, near)
    count = means.shape[0]
    checks.check(opacities, "opacities", (count, 1), "[G, 1]", means)
    if colors.ndim != 2 or colors.shape[0] != count or colors.shape[1] == 0:
        raise ValueError(f"rasterize: colors has shape {list(colors.shape)}, expected [G, C] with G={count} from means")
    checks.check_dtype(colors, "colors", means)
    checks.check(background, "background", (colors.shape[1],), "[C]", means, f"C={colors.shape[1]} from colors")
    screen, absolute = checks.split(means2d, count, width, height, means)
    part = checks.check_window(window, width, height)
    checks.check_tiles(tiles, part or (0, 0, width, height), means)
    checks.check_around(around, means, colors)
    camera = (float(fx), float(fy), float(cx), float(cy), int(width), int(height), float(scale_modifier), float(near))
    splats = project(means, scales, quats, cov3d, world_view, screen, *camera, part)
    radii = splats[3]
    splats = (*splats, OPERATORS.antialias(splats[1], opacities) if antialiasing else opacities, colors)
    fixed = 0
    if around is not None and len(around.means):
        fixed = len(around.means)
        with torch.no_grad():
            # Their radii are not asked for, so what no drawn square shows can be left out at once.
            shape = (around.means, around.scales, around.quats, None)
            others = project(*shape, world_view, None, *camera, part, tiles)
            behind = OPERATORS.antialias(others[1], around.opacities) if antialiasing else around.opacities
        splats = tuple(torch.cat(pair) for pair in zip(splats, (*others, behind, around.colors), strict=True))
        absolute = None if absolute is None else torch.cat([absolute, absolute.new_zeros(fixed, 2)])
    expected = 0 if capacity is None else capacity.pairs
    image, alpha, depth, *_, lists = composite(
        *splats, background, int(width), int(height), part, tiles, absolute, fixed, expected
    )
    if capacity is not None:
        capacity.after(lists.shape[1])
    return Rasterization(image, alpha, depth, radii)


def median_depth(
    means: Tensor,
    opacities: Tensor,
    *,
    scales: Tensor | None = None,
    quats: Tensor | None = None,
    cov3d: Tensor | None = None,
    world_view: Tensor,
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    width: int,
    height: int,
    scale_modifier: float = 1.0,
    near: float = NEAR,
    window: Window | None = None,
    antialiasing: bool = False,
) -> Tensor:
    """The depth at which half of a pixel's light is gone.

    It is the camera z of a single Gaussian, so what is faint, or lies far behind, does not move it, as it moves the
    mean that ``rasterize`` gives. It costs a drawing of its own. Source: 2DGS (Huang et al. 2024), section 5.2.

    The arguments and errors are those of ``rasterize``.

    Returns:
        Tensor: [H,W] camera z of the Gaussian behind which the transmittance is first 0.5 or less; 0 where there is
        none. Differentiable in means and world_view, through the camera z of that Gaussian.
    """
    world_view = world_view.to(device=means.device, dtype=means.dtype)
    checks.check_gaussians(means, scales, quats, cov3d, world_view, width, height, near)
    checks.check(opacities, "opacities", (means.shape[0], 1), "[G, 1]", means)
    part = checks.check_window(window, width, height)
    camera = (float(fx), float(fy), float(cx), float(cy), int(width), int(height), float(scale_modifier), float(near))
    means2d, conics, depths, radii = OPERATORS.project(means, scales, quats, cov3d, world_view, None, *camera, part)
    with torch.no_grad():
        solid = OPERATORS.antialias(conics, opacities) if antialiasing else opacities
        drawn = OPERATORS.composite(  # the colours do not matter
            means2d, conics, depths, radii, solid, solid, means.new_zeros(1), int(width), int(height), part
        )
        _, alpha, _, records, order, _, tile_start, lists = drawn
        corner = (0, 0) if part is None else (part[0], part[1])
        owner = OPERATORS.median(alpha, records, order, tile_start, lists, *corner).long()
    # -1 reads the zero behind the last Gaussian.
    return torch.nn.functional.pad(depths, (0, 1))[owner]


def visible_radii(
    means: Tensor,
    scales: Tensor | None = None,
    quats: Tensor | None = None,
    *,
    cov3d: Tensor | None = None,
    world_view: Tensor,
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    width: int,
    height: int,
    scale_modifier: float = 1.0,
    near: float = NEAR,
    window: Window | None = None,
    tiles: Tensor | None = None,
) -> Tensor:
    """The ``radii`` of ``rasterize`` without rasterizing: int32 [G], 0 where culled. No gradients.

    The arguments and errors are those of ``rasterize``. With ``tiles``, radii are 0 also where nothing of a Gaussian
    can show in any of the squares that are drawn.
    """
    world_view = world_view.to(device=means.device, dtype=means.dtype)
    checks.check_gaussians(means, scales, quats, cov3d, world_view, width, height, near)
    tensors = [None if t is None else t.detach() for t in (means, scales, quats, cov3d, world_view)]
    camera = (float(fx), float(fy), float(cx), float(cy), int(width), int(height), float(scale_modifier), float(near))
    part = checks.check_window(window, width, height)
    checks.check_tiles(tiles, part or (0, 0, width, height), means)
    return OPERATORS.visible_radii(*tensors, *camera, part, tiles)


def spherical_harmonics(degree: int, dirs: Tensor, sh: Tensor) -> Tensor:
    """Evaluates real spherical harmonics up to ``degree`` (0 to 3).

    Args:
        degree: the first (degree + 1)^2 coefficients are used.
        dirs: [G,3] directions from the camera to the Gaussians, any length.
        sh: [G,K,C] coefficients, K at least (degree + 1)^2.

    Returns:
        Tensor: [G,C], differentiable in both; the color of 3DGS is this plus 0.5, clamped at 0.

    Raises:
        ValueError: the degree, a shape, dtype or device does not fit; the message names the argument.
    """
    if not 0 <= degree <= 3:
        raise ValueError(f"spherical_harmonics: degree is {degree}, expected 0, 1, 2 or 3")
    needed = (degree + 1) ** 2
    if dirs.ndim != 2 or dirs.shape[1] != 3:
        raise ValueError(f"spherical_harmonics: dirs has shape {list(dirs.shape)}, expected [G, 3]")
    if sh.ndim != 3 or sh.shape[0] != dirs.shape[0] or sh.shape[1] < needed:
        raise ValueError(
            f"spherical_harmonics: sh has shape {list(sh.shape)}, expected [G, K, C] with G={dirs.shape[0]} from dirs "
            f"and K at least {needed} for degree {degree}"
        )
    if dirs.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"spherical_harmonics: dirs is {dirs.dtype}, expected torch.float32 or torch.float64")
    if sh.dtype != dirs.dtype or sh.device != dirs.device:
        raise ValueError(f"spherical_harmonics: sh is {sh.dtype} on {sh.device}, dirs {dirs.dtype} on {dirs.device}")
    return OPERATORS.spherical_harmonics(int(degree), dirs, sh)
