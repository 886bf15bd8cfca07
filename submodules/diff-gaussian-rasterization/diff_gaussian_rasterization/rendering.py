"""A call like that of gsplat: several cameras at once, by viewing and intrinsic matrices."""

from typing import Any

import torch
from torch import Tensor

from diff_gaussian_rasterization import checks, ops
from diff_gaussian_rasterization.library import OPERATORS
from diff_gaussian_rasterization.reference import LOW_PASS

MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
_LACKING: dict[str, tuple[Any, ...]] = {
    "sparse_grad": (False,), "distributed": (False,), "segmented": (False,), "with_ut": (False,),
    "with_eval3d": (False,), "camera_model": ("pinhole",), "tile_size": (16,), "eps2d": (LOW_PASS,),
    "radial_coeffs": (None,), "tangential_coeffs": (None,), "thin_prism_coeffs": (None,), "ftheta_coeffs": (None,),
    "rolling_shutter": (None, "GLOBAL"), "viewmats_rs": (None,),
}  # fmt: skip
"""Options of gsplat's call with the only values that they may have here."""


def rasterization(
    means: Tensor,
    quats: Tensor | None,
    scales: Tensor | None,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,  # noqa: N803 (the name in gsplat)
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = LOW_PASS,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Draws Gaussians for a batch of cameras; the arguments are gsplat's, those that are not here are refused.

    Args:
        means: [G,3] centres in the world, float32 or float64; all other tensors have the same dtype and device.
        quats: [G,4] (w, x, y, z), of any length; with ``scales``, or
        scales: [G,3] standard deviations; None with ``covars``.
        opacities: [G] in (0, 1].
        colors: [G,D] or [N,G,D], for all N cameras or each; with ``sh_degree`` coefficients [G,K,3] or [N,G,K,3].
        viewmats: [N,4,4] world to camera, for column vectors.
        Ks: [N,3,3] intrinsic matrices in pixels; the centre of the first pixel is (0.5, 0.5).
        width: image width in pixels.
        height: image height in pixels.
        near_plane: camera z up to which Gaussians are culled.
        far_plane: camera z beyond which Gaussians are culled.
        radius_clip: Gaussians whose radius is at most this, in pixels, are culled.
        eps2d: variance in px² that widens every footprint; 0.3.
        sh_degree: degree of spherical harmonics, 0 to 3; None: ``colors`` are colours.
        packed: whether ``meta`` has one row for each visible (camera, Gaussian), or one for each of all.
        tile_size: 16.
        backgrounds: [N,D] colours behind the Gaussians; None: 0. Depth has none.
        render_mode: ``RGB``; ``D``: the sum of weight times camera z; ``ED``: that over alpha; ``RGB+D``, ``RGB+ED``:
            the depth as last channel.
        sparse_grad: False.
        absgrad: whether the backward pass also gives ``means2d`` of ``meta`` an attribute ``absgrad``: the sum over
            pixels of the absolute values of their gradients, at the cost of another pass.
        rasterize_mode: ``classic``, or ``antialiased``: opacities make up for the widened footprints.
        channel_chunk: any; there is no bound on the channels here.
        distributed: False.
        camera_model: ``pinhole``.
        segmented: False.
        covars: [G,3,3] covariances in place of ``quats`` and ``scales``.
        options: further options of gsplat, with their defaults.

    Returns:
        Renders [N,H,W,D], with depth as the mode says; alphas [N,H,W,1]; and meta: ``means2d`` in pixels, through which
        all gradients of positions pass (``retain_grad()`` it for densification), ``depths``, ``conics``, ``opacities``
        as drawn and ``radii`` int32 [...,2], each [N,G,...] or, packed, [M,...] with ``camera_ids`` and
        ``gaussian_ids`` [M]; ``width``, ``height``, ``n_cameras``, ``tile_size``.

    Raises:
        ValueError: an option that is not supported, or a shape, dtype or device that does not fit, by name.
    """
    chosen = {"sparse_grad": sparse_grad, "distributed": distributed, "segmented": segmented,
              "camera_model": camera_model, "tile_size": tile_size, "eps2d": eps2d, **options}  # fmt: skip
    _refuse(chosen, render_mode, rasterize_mode)
    cameras = len(viewmats)
    _check(means, opacities, viewmats, Ks, backgrounds, cameras)
    # One read of all intrinsic matrices.
    intrinsics = [(K[0][0], K[1][1], K[0][2], K[1][2]) for K in Ks.tolist()]
    shape = _shape(quats, scales, covars)
    size = (int(width), int(height))
    views = []
    for camera, view in zip(intrinsics, viewmats.unbind(), strict=True):
        checks.check_gaussians(means, *shape, view, *size, near_plane)
        views.append(OPERATORS.project(means, *shape, view, None, *camera, *size, 1.0, near_plane, None))
    means2d, conics, depths, radii = (torch.stack(each) for each in zip(*views, strict=True))
    radii = torch.where((depths <= far_plane) & (radii > radius_clip), radii, 0)
    drawn = opacities[None, :, None].expand(cameras, -1, 1)
    if rasterize_mode == "antialiased":
        drawn = torch.stack([OPERATORS.antialias(*each) for each in zip(conics, drawn, strict=True)])
    rows = {"means2d": means2d, "depths": depths, "conics": conics, "opacities": drawn[..., 0],
            "radii": radii[..., None].expand(-1, -1, 2)}  # fmt: skip
    meta: dict[str, Any] = {"width": width, "height": height, "n_cameras": cameras, "tile_size": tile_size}
    if packed:
        visible = (radii > 0).nonzero(as_tuple=True)
        rows = {name: row[visible] for name, row in rows.items()}
        meta |= {"camera_ids": visible[0], "gaussian_ids": visible[1]}
        means2d = torch.zeros_like(means2d).index_put(visible, rows["means2d"])
    absolute = _absolute(rows["means2d"], means2d, visible if packed else None) if absgrad else None
    values = None if render_mode in ("D", "ED") else _colors(means, colors, viewmats, sh_degree, backgrounds)
    images, alphas = [], []
    for i in range(cameras):
        features, background = (means[:, :1], means.new_zeros(1)) if values is None else values[i]
        splats = (means2d[i], conics[i], depths[i], radii[i], drawn[i])
        own = None if absolute is None else absolute[i]
        image, alpha, depth = OPERATORS.composite(*splats, features, background, *size, None, None, own)[:3]
        images.append(_mode(render_mode, image, alpha, depth))
        alphas.append(alpha)
    return torch.stack(images).permute(0, 2, 3, 1), torch.stack(alphas)[..., None], meta | rows


def _absolute(means2d: Tensor, dense: Tensor, visible: tuple[Tensor, ...] | None) -> Tensor:
    """Zeros [N,G,2] whose gradient becomes ``means2d.absgrad``, in the rows of ``means2d``."""
    zeros = torch.zeros_like(dense, requires_grad=True)

    def keep(grad: Tensor) -> None:
        means2d.absgrad = grad if visible is None else grad[visible]  # type: ignore[attr-defined]

    zeros.register_hook(keep)
    return zeros


def _mode(mode: str, image: Tensor, alpha: Tensor, depth: Tensor) -> Tensor:
    """The channels [D,H,W] that ``mode`` names."""
    if mode.endswith("ED"):
        depth = depth / alpha.clamp_min(1e-10)
    if mode == "RGB":
        return image
    return depth[None] if "RGB" not in mode else torch.cat([image, depth[None]])


def _colors(
    means: Tensor, colors: Tensor, viewmats: Tensor, sh_degree: int | None, backgrounds: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """Colours [G,D] and background [D] of each camera."""
    found = []
    for i, view in enumerate(viewmats.unbind()):
        own = colors[i] if colors.ndim == (3 if sh_degree is None else 4) else colors
        if sh_degree is not None:
            center = -view[:3, :3].T @ view[:3, 3]
            own = (ops.spherical_harmonics(sh_degree, means - center, own) + 0.5).clamp_min(0)
        if own.ndim != 2 or len(own) != len(means):
            raise ValueError(
                f"rasterization: colors has shape {list(colors.shape)}, expected [G, D] or [N, G, D] of colours, or "
                f"with sh_degree [G, K, 3] or [N, G, K, 3], with G={len(means)} from means"
            )
        found.append((own, own.new_zeros(own.shape[1]) if backgrounds is None else backgrounds[i]))
    return found


def _shape(quats: Tensor | None, scales: Tensor | None, covars: Tensor | None) -> tuple[Tensor | None, ...]:
    """Scales, quaternions of length 1, covariances [G,6]; None for what is not used."""
    if covars is None:
        return scales, None if quats is None else torch.nn.functional.normalize(quats, dim=-1), None
    return None, None, covars.reshape(-1, 9)[:, [0, 1, 2, 4, 5, 8]]


def _refuse(chosen: dict[str, Any], render_mode: str, rasterize_mode: str) -> None:
    for name, value in chosen.items():
        if name not in _LACKING:
            raise ValueError(f"rasterization: the option {name} is not known")
        value = getattr(value, "name", value) if not isinstance(value, Tensor) else value  # enumerations
        if not any(value is only or (not isinstance(value, Tensor) and value == only) for only in _LACKING[name]):
            shown = "a tensor" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"rasterization: {name}={shown} is not supported, expected {_LACKING[name][0]!r}")
    if render_mode not in MODES:
        raise ValueError(f"rasterization: render_mode is {render_mode!r}, expected one of {', '.join(MODES)}")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f"rasterization: rasterize_mode is {rasterize_mode!r}, expected 'classic' or 'antialiased'")


def _check(
    means: Tensor, opacities: Tensor, viewmats: Tensor, intrinsics: Tensor, backgrounds: Tensor | None, cameras: int
) -> None:
    """What the operators do not check; they check dtypes and devices."""
    for name, tensor, shape in (
        ("opacities", opacities, (len(means),)),
        ("viewmats", viewmats, (cameras, 4, 4)),
        ("Ks", intrinsics, (cameras, 3, 3)),
    ):
        if tuple(tensor.shape) != shape or cameras == 0:
            raise ValueError(f"rasterization: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if backgrounds is not None and (backgrounds.ndim != 2 or len(backgrounds) != cameras):
        raise ValueError(
            f"rasterization: backgrounds has shape {list(backgrounds.shape)}, expected [N, D] with N={cameras}"
        )
