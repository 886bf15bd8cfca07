"""The functional interface: rasterize, visible_radii, spherical_harmonics.

The operators are declared in csrc/binding.cpp and dispatched by device; this file adds shapes for tracing, gradients
and readable errors. Notation: G Gaussians, C channels, H x W pixels.

Conventions: the camera looks along +z with x right and y down; ``world_view`` maps column vectors; pixel coordinates
are COLMAP's (centre of the first pixel at 0.5, 0.5); quaternions are (w, x, y, z) and are not normalised.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Window = tuple[int, int, int, int]
"""Part of an image: x and y of its corner, width, height, in pixels."""

TILE = 16
"""Side, in pixels, of the squares that a mask of tiles names."""

NEAR = 0.2
"""Gaussians at this camera z or nearer are culled (scene units; the constant of 3DGS)."""


def _load() -> None:
    folder = Path(__file__).parent
    libraries = sorted(folder.glob("_kernels*.so")) + sorted(folder.glob("_kernels*.pyd"))
    if not libraries:
        raise ImportError(
            "diff_gaussian_rasterization: the compiled library is missing; build it with "
            "'pip install --no-build-isolation ./submodules/diff-gaussian-rasterization'"
        )
    torch.ops.load_library(str(libraries[0]))


_load()
_ops = torch.ops.diff_gaussian_rasterization
_HAS_CUDA = torch._C._dispatch_has_kernel_for_dispatch_key("diff_gaussian_rasterization::project", "CUDA")


def cpu_kernels() -> str:
    """The variant of the CPU kernels that is used: ``x86-64-v4`` (AVX-512) or ``x86-64-v3`` (AVX2).

    It is the best that this CPU supports, or the one that the environment variable MOMENTUM_GS_CPU names (``v4``,
    ``v3``) when the first kernel runs. A build with NATIVE=1 has one variant, ``native``; other architectures have
    ``plain``.

    Raises:
        RuntimeError: no variant runs on this CPU, or MOMENTUM_GS_CPU names a variant that does not exist.
    """
    return _ops.cpu_kernels()


class Around(NamedTuple):
    """Gaussians that are drawn among others, and get no gradients; shapes as for ``rasterize``."""

    means: Tensor
    opacities: Tensor
    colors: Tensor
    scales: Tensor
    quats: Tensor


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

    Returns:
        Rasterization: differentiable in means, opacities, colors, scales, quats, cov3d, background and world_view.
        Gaussians with NaN or Inf values are not drawn and get zero gradients.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message names the argument.
    """
    world_view = world_view.to(device=means.device, dtype=means.dtype)
    _check_gaussians(means, scales, quats, cov3d, world_view, width, height, near)
    count = means.shape[0]
    _check(opacities, "opacities", (count, 1), "[G, 1]", means)
    if colors.ndim != 2 or colors.shape[0] != count or colors.shape[1] == 0:
        raise ValueError(f"rasterize: colors has shape {list(colors.shape)}, expected [G, C] with G={count} from means")
    _check_dtype(colors, "colors", means)
    _check(background, "background", (colors.shape[1],), "[C]", means, f"C={colors.shape[1]} from colors")
    screen, absolute = _split(means2d, count, width, height, means)
    part = _check_window(window, width, height)
    _check_tiles(tiles, part or (0, 0, width, height), means)
    _check_around(around, means, colors)
    camera = (float(fx), float(fy), float(cx), float(cy), int(width), int(height), float(scale_modifier), float(near))
    splats = _ops.project(means, scales, quats, cov3d, world_view, screen, *camera, part)
    radii = splats[3]
    splats = (*splats, _ops.antialias(splats[1], opacities) if antialiasing else opacities, colors)
    fixed = 0
    if around is not None and len(around.means):
        fixed = len(around.means)
        with torch.no_grad():
            others = _ops.project(around.means, around.scales, around.quats, None, world_view, None, *camera, part)
            behind = _ops.antialias(others[1], around.opacities) if antialiasing else around.opacities
        splats = tuple(torch.cat(pair) for pair in zip(splats, (*others, behind, around.colors), strict=True))
        absolute = None if absolute is None else torch.cat([absolute, absolute.new_zeros(fixed, 2)])
    image, alpha, depth = _ops.composite(
        *splats, background, int(width), int(height), part, tiles, absolute, fixed
    )[:3]
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
    _check_gaussians(means, scales, quats, cov3d, world_view, width, height, near)
    _check(opacities, "opacities", (means.shape[0], 1), "[G, 1]", means)
    part = _check_window(window, width, height)
    camera = (float(fx), float(fy), float(cx), float(cy), int(width), int(height), float(scale_modifier), float(near))
    means2d, conics, depths, radii = _ops.project(means, scales, quats, cov3d, world_view, None, *camera, part)
    with torch.no_grad():
        solid = _ops.antialias(conics, opacities) if antialiasing else opacities
        drawn = _ops.composite(  # the colours do not matter
            means2d, conics, depths, radii, solid, solid, means.new_zeros(1), int(width), int(height), part
        )
        _, alpha, _, records, order, _, tile_start, lists = drawn
        corner = (0, 0) if part is None else (part[0], part[1])
        owner = _ops.median(alpha, records, order, tile_start, lists, *corner).long()
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
) -> Tensor:
    """The ``radii`` of ``rasterize`` without rasterizing: int32 [G], 0 where culled. No gradients.

    The arguments and errors are those of ``rasterize``.
    """
    world_view = world_view.to(device=means.device, dtype=means.dtype)
    _check_gaussians(means, scales, quats, cov3d, world_view, width, height, near)
    tensors = [None if t is None else t.detach() for t in (means, scales, quats, cov3d, world_view)]
    camera = (float(fx), float(fy), float(cx), float(cy), int(width), int(height), float(scale_modifier), float(near))
    return _ops.visible_radii(*tensors, *camera, _check_window(window, width, height))


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
    return _ops.spherical_harmonics(int(degree), dirs, sh)


# ---------------------------------------------------------------------------------------------------- checks


def _check_dtype(tensor: Tensor, name: str, means: Tensor) -> None:
    if tensor.dtype != means.dtype or tensor.device != means.device:
        raise ValueError(
            f"rasterize: {name} is {tensor.dtype} on {tensor.device}, expected {means.dtype} on {means.device} as means"
        )


def _check(
    tensor: Tensor, name: str, shape: tuple[int, ...], letters: str, means: Tensor, source: str | None = None
) -> None:
    if tuple(tensor.shape) != shape:
        note = " (wxyz order)" if name == "quats" else ""
        source = source or f"G={shape[0]} from means"
        raise ValueError(f"rasterize: {name} has shape {list(tensor.shape)}, expected {letters} with {source}{note}")
    _check_dtype(tensor, name, means)


def _split(
    means2d: Tensor | None, count: int, width: int, height: int, means: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What receives the gradient of the projected means [G,3], in NDC, and what the absolute one [G,2], in pixels."""
    if means2d is None:
        return None, None
    columns = means2d.shape[-1] if means2d.ndim == 2 and means2d.shape[-1] in (2, 4) else 3
    _check(means2d, "means2d", (count, columns), "[G, 3] (or [G, 2], [G, 4])", means)
    if columns == 3:
        return means2d, None
    screen = torch.nn.functional.pad(means2d[:, :2], (0, 1))
    if columns == 2:
        return screen, None
    absolute = torch.stack([0.5 * width * means2d[:, 2], 0.5 * height * means2d[:, 3]], 1)
    return screen, absolute


def _check_window(window: Window | None, width: int, height: int) -> list[int] | None:
    """The window as the operators take it."""
    if window is None:
        return None
    part = [int(entry) for entry in window]
    if len(part) == 4:
        x, y, columns, rows = part
        if columns > 0 and rows > 0 and 0 <= x <= width - columns and 0 <= y <= height - rows:
            return part
    raise ValueError(
        f"rasterize: window is {tuple(part)}, expected (x, y, width, height) of at least one pixel, inside of the "
        f"image of {width}x{height} pixels"
    )


def _check_tiles(tiles: Tensor | None, window: Sequence[int], means: Tensor) -> None:
    if tiles is None:
        return
    shape = (-(-window[3] // TILE), -(-window[2] // TILE))
    if tuple(tiles.shape) != shape or tiles.dtype != torch.bool or tiles.device != means.device:
        raise ValueError(
            f"rasterize: tiles is {tiles.dtype} {list(tiles.shape)} on {tiles.device}, expected torch.bool "
            f"{list(shape)} on {means.device}: one for each {TILE}x{TILE} pixels of {window[2]}x{window[3]}"
        )


def _check_around(around: Around | None, means: Tensor, colors: Tensor) -> None:
    if around is None:
        return
    columns = {"means": 3, "opacities": 1, "colors": colors.shape[1], "scales": 3, "quats": 4}
    for name, width in columns.items():
        source = f"n={len(around.means)} from around.means"
        _check(getattr(around, name), f"around.{name}", (len(around.means), width), f"[n, {width}]", means, source)


def _check_gaussians(
    means: Tensor,
    scales: Tensor | None,
    quats: Tensor | None,
    cov3d: Tensor | None,
    world_view: Tensor,
    width: int,
    height: int,
    near: float,
) -> None:
    if means.ndim != 2 or means.shape[1] != 3:
        raise ValueError(f"rasterize: means has shape {list(means.shape)}, expected [G, 3]")
    if means.device.type == "cuda" and not _HAS_CUDA:
        raise ValueError(
            f"rasterize: means is on {means.device}, but diff-gaussian-rasterization was built for CPUs only; rebuild "
            "it with FORCE_CUDA=1, or move the tensors to the CPU"
        )
    if means.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"rasterize: means is {means.dtype}, expected torch.float32 or torch.float64")
    if cov3d is None and (scales is None or quats is None):
        missing = "scales" if scales is None else "quats"
        raise ValueError(f"rasterize: {missing} is missing; give scales and quats, or cov3d")
    if cov3d is not None and (scales is not None or quats is not None):
        raise ValueError("rasterize: got cov3d beside scales or quats; give scales and quats, or cov3d")
    count = means.shape[0]
    for tensor, name, columns in ((scales, "scales", 3), (quats, "quats", 4), (cov3d, "cov3d", 6)):
        if tensor is not None:
            _check(tensor, name, (count, columns), f"[G, {columns}]", means)
    if tuple(world_view.shape) != (4, 4):
        raise ValueError(f"rasterize: world_view has shape {list(world_view.shape)}, expected [4, 4]")
    if width < 1 or height < 1:
        raise ValueError(f"rasterize: image of {width}x{height} pixels, expected at least 1x1")
    if not near >= 0:
        raise ValueError(f"rasterize: near is {near}, expected 0 or more")


# ------------------------------------------------------------------------------------------ gradients, shapes


def _project_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    means, scales, quats, cov3d, world_view, _screen, *camera, _window = inputs
    _means2d, conics, _depths, radii = output
    ctx.save_for_backward(means, scales, quats, cov3d, world_view, conics, radii)
    ctx.camera = camera
    ctx.mark_non_differentiable(radii)
    ctx.set_materialize_grads(False)


def _project_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 15
    grad_means2d, grad_conics, grad_depths, _ = grads
    if grad_means2d is None and grad_conics is None and grad_depths is None:
        return nothing
    means, scales, quats, cov3d, world_view, conics, radii = ctx.saved_tensors
    need = ctx.needs_input_grad
    screen = None
    if need[5] and grad_means2d is not None:
        width, height = ctx.camera[4], ctx.camera[5]
        # Each column is multiplied by a Python number, since copying a tensor to the device would synchronize.
        screen = torch.zeros_like(means)
        torch.mul(grad_means2d[:, 0], 0.5 * width, out=screen[:, 0])
        torch.mul(grad_means2d[:, 1], 0.5 * height, out=screen[:, 1])
    if not any(need[:5]):
        return (*nothing[:5], screen, *nothing[6:])
    wanted = _ops.project_backward(
        grad_means2d,
        grad_conics,
        grad_depths,
        means,
        scales,
        quats,
        cov3d,
        world_view,
        conics,
        radii,
        *ctx.camera,
        need[4],
    )
    return (*(g if n else None for g, n in zip(wanted, need[:5], strict=True)), screen, *nothing[6:])


def _composite_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    *_, window, tiles, _absolute, ctx.fixed = inputs
    ctx.save_for_backward(*output, tiles)
    ctx.gaussians = inputs[0].shape[0]
    ctx.corner = (0, 0) if window is None else (window[0], window[1])
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)


def _composite_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if all(grad is None for grad in grads[:3]):
        return (None,) * 13
    *drawn, tiles = ctx.saved_tensors
    means2d, conics, depths, opacities, colors, background = _ops.composite_backward(
        *grads[:3], *drawn, ctx.gaussians, *ctx.corner, tiles, ctx.fixed
    )
    ready = (means2d, conics, depths if grads[2] is not None else None, None, opacities, colors, background)
    absolute = None
    if any(ctx.needs_input_grad[11:12]):  # arguments at their defaults are left out at the end
        absolute = _ops.absolute_gradient(*grads[:3], *drawn, ctx.gaussians, *ctx.corner, tiles)
    wanted = (g if n else None for g, n in zip(ready, ctx.needs_input_grad[:7], strict=True))
    return (*wanted, *(None,) * 4, absolute, None)


def _antialias_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _antialias_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = _ops.antialias_backward(grad, *ctx.saved_tensors)
    return tuple(g if n else None for g, n in zip(wanted, ctx.needs_input_grad, strict=True))


def _sh_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.degree, dirs, sh = inputs
    ctx.save_for_backward(dirs, sh)


def _sh_backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:
    return (None, *_ops.spherical_harmonics_backward(grad, ctx.degree, *ctx.saved_tensors))


def _shapes_of(name: str) -> Callable[[Callable[..., Any]], None]:
    """Registers what an operator returns where only shapes are computed.

    Torch also asks it where one of several tensors has no data; what it allocates for the others is not initialized.
    """

    def register(shapes: Callable[..., Any]) -> None:
        def checked(*args: Any, **kwargs: Any) -> Any:
            devices = {str(value.device) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
            if len(devices) > 1:
                raise ValueError(f"{name}: tensors are on {' and '.join(sorted(devices))}, expected one device")
            return shapes(*args, **kwargs)

        torch.library.register_fake(f"diff_gaussian_rasterization::{name}")(checked)

    return register


def _register() -> None:
    space = "diff_gaussian_rasterization::"
    torch.library.register_autograd(space + "project", _project_backward, setup_context=_project_setup)
    torch.library.register_autograd(space + "composite", _composite_backward, setup_context=_composite_setup)
    torch.library.register_autograd(space + "antialias", _antialias_backward, setup_context=_antialias_setup)
    torch.library.register_autograd(space + "spherical_harmonics", _sh_backward, setup_context=_sh_setup)

    @_shapes_of("project")
    def _(means: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        n = means.shape[0]
        return means.new_empty(n, 2), means.new_empty(n, 3), means.new_empty(n), means.new_empty(n, dtype=torch.int32)

    @_shapes_of("project_backward")
    def _(
        g1: Any, g2: Any, g3: Any, means: Tensor, scales: Any, quats: Any, cov3d: Any, *rest: Any
    ) -> tuple[Tensor, ...]:
        n = means.shape[0]
        shapes = [means.new_empty(0 if t is None else n, c) for t, c in ((scales, 3), (quats, 4), (cov3d, 6))]
        return means.new_empty(n, 3), *shapes, means.new_empty(4 if rest[-1] else 0, 4)

    @_shapes_of("visible_radii")
    def _(means: Tensor, *rest: Any) -> Tensor:
        return means.new_empty(means.shape[0], dtype=torch.int32)

    @_shapes_of("composite")
    def _(
        means2d: Tensor,
        conics: Any,
        depths: Any,
        radii: Any,
        opacities: Any,
        colors: Tensor,
        bg: Any,
        width: int,
        height: int,
        window: list[int] | None = None,
        tiles: Tensor | None = None,
        absolute: Tensor | None = None,
        fixed: int = 0,
    ) -> tuple[Tensor, ...]:
        if window is not None:
            width, height = window[2:]
        # The numbers of drawn Gaussians and pairs depend on the data; stride and tiles depend on the backend.
        drawn, stride, starts, ends, pairs = (torch.library.get_ctx().new_dynamic_size() for _ in range(5))

        def ints(*shape: Any) -> Tensor:
            return means2d.new_empty(shape, dtype=torch.int32)

        return (
            means2d.new_empty(colors.shape[1], height, width),
            means2d.new_empty(height, width),
            means2d.new_empty(height, width),
            means2d.new_empty(drawn, stride),
            ints(drawn),
            ints(starts),
            ints(ends),
            ints(2, pairs),
        )

    @_shapes_of("composite_backward")
    def _(gi: Any, ga: Any, gd: Any, image: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        n, c = rest[7], image.shape[0]
        return (
            image.new_empty(n, 2),
            image.new_empty(n, 3),
            image.new_empty(0 if gd is None else n),
            image.new_empty(n, 1),
            image.new_empty(n, c),
            image.new_empty(c),
        )

    @_shapes_of("absolute_gradient")
    def _(gi: Any, ga: Any, gd: Any, image: Tensor, *rest: Any) -> Tensor:
        return image.new_empty(rest[7], 2)

    @_shapes_of("median")
    def _(alpha: Tensor, *rest: Any) -> Tensor:
        return torch.empty_like(alpha, dtype=torch.int32)

    @_shapes_of("antialias")
    def _(conics: Tensor, opacities: Tensor) -> Tensor:
        return torch.empty_like(opacities)

    @_shapes_of("antialias_backward")
    def _(grad: Tensor, conics: Tensor, opacities: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(conics), torch.empty_like(opacities)

    @_shapes_of("adam_update")
    def _(*tensors: Any) -> None:
        return None

    @_shapes_of("spherical_harmonics")
    def _(degree: int, dirs: Tensor, sh: Tensor) -> Tensor:
        return dirs.new_empty(dirs.shape[0], sh.shape[2])

    @_shapes_of("spherical_harmonics_backward")
    def _(grad: Tensor, degree: int, dirs: Tensor, sh: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(dirs), torch.empty_like(sh)


_register()
