"""What callers of the interface of 2024 and of the compiled module find: inverse depth, antialiasing, dc, ``_C``."""

from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import _C, GaussianRasterizer, rasterize, rasterize_gaussians
from diff_gaussian_rasterization.reference import (
    compensation_reference,
    covariance_of,
    project_reference,
    rasterize_reference,
)
from rasterizer_scenes import Scene, make_scene, with_cov3d
from test_rasterizer_interface import settings_of
from test_rasterizer_ops import TOLERANCE, gradients
from torch import Tensor

ops = torch.ops.diff_gaussian_rasterization


def centred(**settings: Any) -> Scene:
    scene = make_scene(**settings)
    return scene | {"cx": scene["width"] / 2, "cy": scene["height"] / 2}


def inputs_of(scene: Scene) -> dict[str, Any]:
    """The arguments of the module in 3DGS codebases."""
    return {
        "means3D": scene["means"],
        "means2D": torch.zeros_like(scene["means"]),
        "opacities": scene["opacities"],
        "colors_precomp": scene["colors"],
        "scales": scene["scales"],
        "rotations": scene["quats"],
    }


def newer(scene: Scene, antialiasing: bool = False) -> GaussianRasterizer:
    return GaussianRasterizer(settings_of(scene)._replace(antialiasing=antialiasing))


# --------------------------------------------------------------------------------------------------- antialiasing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("window", [None, (7, 5, 30, 21)])
def test_antialiasing_matches_the_reference(dtype: torch.dtype, window: tuple[int, int, int, int] | None) -> None:
    scene = make_scene(dtype=dtype) | {"antialiasing": True, "window": window}
    scene["scales"] = scene["scales"] * 0.2  # footprints of about the filter's width
    value, gradient = TOLERANCE[dtype]
    drawn, expected = rasterize(**scene), rasterize_reference(**scene)
    torch.testing.assert_close(drawn.image, expected.image, atol=value, rtol=0)
    assert (drawn.image - rasterize(**(scene | {"antialiasing": False})).image).abs().max() > 0.1
    slopes = gradients(rasterize_reference, scene)
    for name, grad in gradients(rasterize, scene).items():
        # In float, the share of its opacity that a Gaussian keeps has an error of 1e-7 over a share of 0.1.
        atol = 4 * gradient * slopes[name].abs().max().item()
        torch.testing.assert_close(grad, slopes[name], atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_gradcheck_of_antialiasing() -> None:
    scene = make_scene(12)
    scene["scales"] = scene["scales"] * 0.2
    cov = covariance_of(scene["scales"], scene["quats"])
    camera = [scene[k] for k in ("world_view", "fx", "fy", "cx", "cy", "width", "height")]
    _, k, _, _ = project_reference(scene["means"], cov, *camera, 0.2)
    inverse = torch.linalg.inv(k)
    conics = torch.stack([inverse[:, 0, 0], inverse[:, 0, 1], inverse[:, 1, 1]], 1)
    torch.testing.assert_close(ops.antialias(conics, torch.ones(12, 1).double()), compensation_reference(k))
    leaves = (conics.requires_grad_(), scene["opacities"].requires_grad_())
    assert torch.autograd.gradcheck(ops.antialias, leaves)


def test_a_round_gaussian_keeps_the_share_of_its_own_variance() -> None:
    # K = (s^2 + 0.3) I, so that sqrt(det(K - 0.3 I) / det K) is s^2 / (s^2 + 0.3).
    variance = torch.tensor([1e-9, 0.1, 0.3, 4.0, 1e6], dtype=torch.float64)
    conic = 1 / (variance + 0.3)
    conics = torch.stack([conic, torch.zeros_like(conic), conic], 1)
    kept = ops.antialias(conics, torch.ones(5, 1, dtype=torch.float64))[:, 0]
    torch.testing.assert_close(kept, (variance * conic).clamp_min(0.005))
    leaf = conics.clone().requires_grad_()
    ops.antialias(leaf, torch.ones(5, 1, dtype=torch.float64)).sum().backward()
    assert leaf.grad is not None and not leaf.grad[0].any() and leaf.grad[1:].any(1).all()  # no slope at the bound


def test_broken_gaussians_are_left_out_with_antialiasing() -> None:
    scene = make_scene() | {"antialiasing": True}
    expected = rasterize(**scene).image
    broken = {k: torch.cat([v, v[:4]]) for k, v in scene.items() if isinstance(v, Tensor) and len(v) == 60}
    broken["means"][60:], broken["opacities"][61] = torch.nan, torch.inf
    leaves = {k: v.requires_grad_() for k, v in broken.items()}
    image = rasterize(**(scene | leaves)).image
    assert torch.equal(image, expected)
    for name, grad in zip(leaves, torch.autograd.grad(image.sum(), list(leaves.values())), strict=True):
        assert grad.isfinite().all() and not grad[60:].any(), name


# -------------------------------------------------------------------------------------------------- three values


@pytest.mark.parametrize("antialiasing", [False, True])
def test_callers_with_antialiasing_get_the_inverse_depth(antialiasing: bool) -> None:
    scene = centred()
    leaf = scene["means"].clone().requires_grad_()
    image, radii, inverse_depth = newer(scene, antialiasing)(**(inputs_of(scene) | {"means3D": leaf}))
    z = (leaf @ scene["world_view"][2, :3] + scene["world_view"][2, 3])[:, None]
    both = {"colors": torch.cat([scene["colors"], 1 / z], 1), "antialiasing": antialiasing, "means": leaf}
    both["background"] = torch.cat([scene["background"], torch.zeros(1)])
    expected = rasterize_reference(**(scene | both))
    torch.testing.assert_close(torch.cat([image, inverse_depth]), expected.image, atol=1e-9, rtol=0)
    assert inverse_depth.shape == (1, scene["height"], scene["width"]) and torch.equal(radii, expected.radii)
    (grad,) = torch.autograd.grad(inverse_depth.square().sum(), leaf)
    (other,) = torch.autograd.grad(expected.image[-1].square().sum(), leaf)
    torch.testing.assert_close(grad, other, atol=1e-8, rtol=1e-7)


def test_gaussians_behind_the_camera_have_finite_gradients() -> None:
    scene = centred()
    means = scene["means"].clone()
    means[:20, 2] -= 5
    means[20] = torch.tensor([0.0, 0.0, -0.2])  # about at camera z = 0
    leaf = means.requires_grad_()
    _, radii, inverse_depth = newer(scene)(**(inputs_of(scene) | {"means3D": leaf}))
    (grad,) = torch.autograd.grad(inverse_depth.sum(), leaf)
    assert grad.isfinite().all() and not grad[:21].any() and grad[radii > 0].any()


def test_settings_without_antialiasing_give_two_values() -> None:
    scene = centred()
    image, radii = GaussianRasterizer(settings_of(scene))(**inputs_of(scene))
    with_field, other_radii, _ = newer(scene)(**inputs_of(scene))
    assert torch.equal(image, with_field) and torch.equal(radii, other_radii)


# ------------------------------------------------------------------------------------------------ kinds of arguments


def harmonics(count: int) -> Tensor:
    return torch.randn(count, 16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.2


def test_the_first_coefficient_may_be_apart() -> None:
    scene = centred()
    sh = harmonics(60)
    inputs = inputs_of(scene) | {"colors_precomp": None}
    together = newer(scene)(**inputs, shs=sh)
    apart = newer(scene)(**inputs, dc=sh[:, :1], shs=sh[:, 1:])
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    flat = GaussianRasterizer(settings_of(scene)._replace(sh_degree=0))(**inputs, dc=sh[:, :1], shs=sh[:, 1:1])
    alone = GaussianRasterizer(settings_of(scene)._replace(sh_degree=0))(**inputs, shs=sh[:, :1])
    assert torch.equal(flat[0], alone[0])


FORMS = ["flat opacities", "background [3,1,1]", "empty placeholders", "means2D of two columns"]


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_arguments_are_the_same_call(form: str) -> None:
    scene = centred()
    inputs, settings = inputs_of(scene), settings_of(scene)
    leaf = torch.zeros(60, 2 if form == "means2D of two columns" else 3, dtype=torch.float64, requires_grad=True)
    expected_leaf = torch.zeros(60, 3, dtype=torch.float64, requires_grad=True)
    expected, radii = GaussianRasterizer(settings)(**(inputs | {"means2D": expected_leaf}))
    other = inputs | {"means2D": leaf}
    if form == "flat opacities":
        other["opacities"] = other["opacities"][:, 0]
    if form == "background [3,1,1]":
        settings = settings._replace(bg=settings.bg[:, None, None])
    if form == "empty placeholders":
        other |= {name: torch.Tensor([]) for name in ("shs", "dc", "cov3D_precomp")}
    image, other_radii = GaussianRasterizer(settings)(**other)
    assert torch.equal(image, expected) and torch.equal(radii, other_radii)
    (grad,) = torch.autograd.grad(image.square().sum(), leaf)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), expected_leaf)
    assert torch.equal(grad[:, :2], expected_grad[:, :2])


def test_the_function_is_the_module() -> None:
    scene, empty = centred(), torch.Tensor([])
    sh, inputs = harmonics(60), inputs_of(scene)
    shape = (inputs["opacities"], inputs["scales"], inputs["rotations"], empty)
    settings = newer(scene, True).raster_settings
    expected = newer(scene, True)(**(inputs | {"colors_precomp": None}), shs=sh)
    old = rasterize_gaussians(inputs["means3D"], inputs["means2D"], sh, empty, *shape, settings)
    new = rasterize_gaussians(inputs["means3D"], inputs["means2D"], sh[:, :1], sh[:, 1:], empty, *shape, settings)
    for a, b, c in zip(expected, old, new, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    with pytest.raises(ValueError, match="3 arguments, expected 9, or 10 with dc"):
        rasterize_gaussians(inputs["means3D"], inputs["means2D"], settings)


# ------------------------------------------------------------------------------------------------- compiled module


@pytest.mark.parametrize("year", [2023, 2024])
@pytest.mark.parametrize("kind", ["colors and scales", "harmonics and covariances"])
def test_the_functions_of_the_compiled_module(year: int, kind: str) -> None:
    scene, empty = centred(), torch.empty(0, dtype=torch.float64)
    colors, sh, scales, quats, cov = scene["colors"], empty, scene["scales"], scene["quats"], empty
    if kind == "harmonics and covariances":
        colors, sh, scales, quats, cov = empty, harmonics(60), empty, empty, with_cov3d(scene)["cov3d"]
    settings = settings_of(scene)._replace(antialiasing=None if year == 2023 else True)
    named = {"means3D": scene["means"], "opacities": scene["opacities"], "colors_precomp": colors, "shs": sh,
             "scales": scales, "rotations": quats, "cov3D_precomp": cov}  # fmt: skip
    leaves = {k: v.clone().requires_grad_() for k, v in named.items() if v.numel()}
    means2d = torch.zeros_like(scene["means"], requires_grad=True)
    expected = GaussianRasterizer(settings)(means2D=means2d, **(named | leaves))

    view = (settings.viewmatrix, settings.projmatrix, settings.tanfovx, settings.tanfovy)
    extra = () if year == 2023 else (True,)
    drawn, image, radii, *buffers = _C.rasterize_gaussians(
        settings.bg, scene["means"], colors, scene["opacities"], scales, quats, 1.0, cov, *view, settings.image_height,
        settings.image_width, sh, 3, settings.campos, False, *extra, False,
    )  # fmt: skip
    assert drawn == int((radii > 0).sum()) and torch.equal(image, expected[0]) and torch.equal(radii, expected[1])
    upstream = [torch.randn(image.shape, dtype=torch.float64)]
    outputs = [expected[0]]
    if year == 2024:
        assert torch.equal(buffers.pop(), expected[2])
        outputs, upstream = [expected[0], expected[2]], [*upstream, torch.randn(1, *image.shape[1:]).double()]
    opacities = () if year == 2023 else (scene["opacities"],)
    found = _C.rasterize_gaussians_backward(
        settings.bg, scene["means"], radii, colors, *opacities, scales, quats, 1.0, cov, *view, *upstream, sh, 3,
        settings.campos, buffers[0], drawn, *buffers[1:], *extra, False,
    )  # fmt: skip
    wanted = {"means2D": means2d} | leaves
    grads = dict(zip(wanted, torch.autograd.grad(outputs, list(wanted.values()), upstream), strict=True))
    order = ("means2D", "colors_precomp", "opacities", "means3D", "cov3D_precomp", "shs", "scales", "rotations")
    for name, grad in zip(order, found, strict=True):
        torch.testing.assert_close(grad, grads.get(name, empty), msg=lambda m, n=name: f"{n}: {m}")


def test_mark_visible_and_a_wrong_number_of_arguments() -> None:
    scene = centred()
    settings = settings_of(scene)
    marked = _C.mark_visible(scene["means"], settings.viewmatrix, settings.projmatrix)
    assert torch.equal(marked, GaussianRasterizer(settings).markVisible(scene["means"]))
    for function in (_C.rasterize_gaussians, _C.rasterize_gaussians_backward):
        with pytest.raises(ValueError, match="2 arguments, expected"):
            function(1, 2)


def test_a_loss_by_the_ssim_of_the_compiled_module() -> None:
    ssim = pytest.importorskip("fused_ssim_cuda", reason="the package fused-ssim is not installed")
    assert _C.fusedssim is ssim.fusedssim and _C.fusedssim_backward is ssim.fusedssim_backward
    with pytest.raises(AttributeError, match="no attribute 'fused'"):
        _ = _C.fused
