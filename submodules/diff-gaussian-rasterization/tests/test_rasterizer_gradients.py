"""Gradients against central differences in double precision, on scenes as crowded as those of training.

An image is not smooth where alpha passes 1/255 or 0.99, or the transmittance 1e-4. Pixels that such a threshold may
change are left out of the loss; over the others the loss is smooth, and its derivative along random directions is
compared.
"""

from collections.abc import Callable

import pytest
import torch
from diff_gaussian_rasterization import Rasterization, rasterize, spherical_harmonics
from diff_gaussian_rasterization.reference import (
    MAX_ALPHA,
    MIN_ALPHA,
    MIN_TRANSMITTANCE,
    covariance_of,
    project_reference,
    rasterize_reference,
)
from rasterizer_scenes import Scene, make_scene, with_cov3d
from torch import Tensor

STEP = 1e-6
# Relative change of alpha and T that a step can make: 40 px per unit times 6 per px (the steepest footprint), and for
# scales 2 / 0.03 times the largest exponent 5.5, both times 1e-6, summed over the few layers that share a pixel.
MARGIN = 3e-3


def crowded_scene() -> Scene:
    """Pixels with dozens of layers, many of them capped or stopped, and colours from spherical harmonics."""
    scene = make_scene(80, max_opacity=1.0)
    scene["scales"] = scene["scales"] * 1.5
    generator = torch.Generator().manual_seed(5)
    # Around a colour of 0.5 and small, so that no colour comes near the clamp at 0.
    scene["sh"] = 0.04 * torch.randn(80, 16, 3, generator=generator, dtype=torch.float64)
    return scene


def draw(scene: Scene, rasterizer: Callable[..., Rasterization] = rasterize) -> tuple[Tensor, Tensor, Tensor]:
    """The scene with colours from ``sh`` where it has them, seen from where ``world_view`` puts the camera."""
    scene = dict(scene)
    sh = scene.pop("sh", None)
    if sh is not None:
        view = scene["world_view"]
        center = -view[:3, :3].T @ view[:3, 3]
        scene["colors"] = (spherical_harmonics(3, scene["means"] - center, sh) + 0.5).clamp_min(0)
    return tuple(rasterizer(**scene)[:3])


def away_from_steps(scene: Scene) -> Tensor:
    """bool [H,W]: no alpha or transmittance at this pixel is within ``MARGIN`` of a threshold."""
    camera = [scene[k] for k in ("world_view", "fx", "fy", "cx", "cy", "width", "height")]
    cov = covariance_of(scene["scales"], scene["quats"])
    centers, k, z, radii = project_reference(scene["means"], cov, *camera, 0.2)
    order = torch.nonzero(radii > 0)[:, 0]
    order = order[torch.argsort(z[order])]
    width, height = scene["width"], scene["height"]
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    d = torch.stack([xs, ys], -1).reshape(1, -1, 2) - centers[order, None]
    power = -0.5 * torch.einsum("gpi,gij,gpj->gp", d, torch.linalg.inv(k[order]), d)
    alpha = scene["opacities"][order] * torch.exp(power)
    front = torch.cumprod(1 - torch.where(alpha >= MIN_ALPHA, alpha.clamp_max(MAX_ALPHA), 0), 0)
    steps = ((alpha, MIN_ALPHA), (alpha, MAX_ALPHA), (front, MIN_TRANSMITTANCE))
    near = sum((value / step - 1).abs() < MARGIN for value, step in steps)
    assert z[order].diff().min() > 10 * STEP  # so that the differences do not change the order in depth
    return (near == 0).all(0).reshape(height, width)


def functional(scene: Scene) -> Callable[..., Tensor]:
    """A fixed random weighted sum of image, alpha and depth over the pixels of ``away_from_steps``."""
    generator = torch.Generator().manual_seed(1)
    safe = away_from_steps(scene)
    assert 0.5 < safe.double().mean() < 1  # most pixels count, and some are near a threshold
    weights = [torch.randn(p.shape, generator=generator, dtype=torch.float64) * safe for p in draw(scene)]
    return lambda *s: torch.stack([(w * p).sum() for w, p in zip(weights, draw(*s), strict=True)]).sum()


def assert_slope(loss: Callable[[Tensor], Tensor], at: Tensor, moved: Callable[[Tensor], Tensor] | None = None) -> None:
    """<gradient of ``loss``, direction> is the central difference of ``moved`` (default: ``loss``) along directions."""
    leaf = at.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(leaf), leaf)
    moved = moved or loss
    for seed in range(3):
        direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(seed), dtype=at.dtype)
        direction = direction.clamp(-2, 2)
        numeric = (moved(at + STEP * direction) - moved(at - STEP * direction)) / (2 * STEP)
        analytic = (grad * direction).sum()
        # Round-off of the loss (1e-13 of some hundreds) over the step; the rest is the third derivative's.
        torch.testing.assert_close(analytic, numeric, rtol=1e-6, atol=1e-4)
        assert analytic.abs() > 1e-2  # far above the tolerance


@pytest.mark.parametrize("name", ["means", "scales", "quats", "opacities", "sh", "background", "world_view"])
def test_slope_of_a_crowded_image(name: str) -> None:
    scene = crowded_scene()
    loss = functional(scene)
    assert_slope(lambda value: loss(scene | {name: value}), scene[name])


@pytest.mark.parametrize("name", ["cov3d", "colors"])
def test_slope_with_plain_colors_and_covariances(name: str) -> None:
    scene = crowded_scene()
    safe = functional({k: v for k, v in scene.items() if k != "sh"})
    plain = {k: v for k, v in with_cov3d(scene).items() if k != "sh"}
    assert_slope(lambda value: safe(plain | {name: value}), plain[name])


def test_slope_of_the_projected_means() -> None:
    """The operator ignores the values of means2d, but the reference adds them to the means, in NDC units."""
    scene = crowded_scene()
    loss = functional(scene)
    assert_slope(
        lambda value: loss(scene | {"means2d": value}),
        torch.zeros_like(scene["means"]),
        lambda value: loss(scene | {"means2d": value}, rasterize_reference),
    )


def test_slope_under_a_scale_modifier() -> None:
    scene = crowded_scene()
    loss = functional(scene)
    smaller = scene | {"scales": scene["scales"] / 0.7, "scale_modifier": 0.7}  # the same image
    assert_slope(lambda value: loss(smaller | {"scales": value}), smaller["scales"])


def test_slope_of_the_camera_pose() -> None:
    """Rotation and translation as a twist, which moves the camera as a rigid body and with it the view directions."""
    scene = crowded_scene()
    loss = functional(scene)
    basis = torch.zeros(6, 4, 4, dtype=torch.float64)
    for axis, (i, j) in enumerate(((1, 2), (2, 0), (0, 1))):
        basis[axis, i, j], basis[axis, j, i] = -1, 1
        basis[3 + axis, axis, 3] = 1

    def moved(twist: Tensor) -> Tensor:
        pose = torch.linalg.matrix_exp(torch.einsum("k,kij->ij", twist, basis)) @ scene["world_view"]
        return loss(scene | {"world_view": pose})

    assert_slope(moved, torch.zeros(6, dtype=torch.float64))


def test_gradcheck_of_the_projection_outside_the_field_of_view() -> None:
    """Beyond 1.3 times the field of view the position in the Jacobian is clamped, on each of the four sides."""
    view = torch.eye(4, dtype=torch.float64)
    sides = torch.tensor([[-1.0, 0.1], [1, -0.2], [0.2, -1], [-0.1, 1], [1, 1], [0.1, 0.2]], dtype=torch.float64)
    depth = torch.tensor([[2.0], [2.5], [3.0], [2.2], [2.7], [3.1]], dtype=torch.float64)
    means = torch.cat([2.2 * sides * depth, depth], 1)
    generator = torch.Generator().manual_seed(0)
    scales = 1.5 + torch.rand(6, 3, generator=generator, dtype=torch.float64)  # wide: they reach the image
    quats = torch.randn(6, 4, generator=generator, dtype=torch.float64) * 0.6  # not normalised
    camera = (20.0, 22.0, 17.0, 15.0, 32, 32, 0.9, 0.2)

    def project(*inputs: Tensor) -> tuple[Tensor, ...]:
        m, s, q, w = inputs
        return torch.ops.diff_gaussian_rasterization.project(m, s, q, None, w, None, *camera)[:3]

    inputs = tuple(t.clone().requires_grad_() for t in (means, scales, quats, view))
    assert (project(*inputs)[2] > 0).all()  # none is culled
    assert torch.autograd.gradcheck(project, inputs, eps=1e-6, atol=1e-6)
