"""Depth and normals of the surface: planar depth, blended normals, and what they share with the colours."""

import math
from dataclasses import replace

import pytest
import torch
from anchor_scene import random_anchors, random_decoder
from diff_gaussian_rasterization.reference import rasterize_reference
from splat_scene import random_splats
from torch import Tensor

from momentum_gs.core.geometry import matrix_to_quat, quat_to_matrix
from momentum_gs.core.types import Camera, Gaussians, RenderOutput
from momentum_gs.core.window import Window, window_of
from momentum_gs.model.splats import Harmonics
from momentum_gs.render.nudge import nudged
from momentum_gs.render.rasterize import median_depth, rasterize
from momentum_gs.render.surface import (
    CHANNELS,
    Surface,
    expected_depth,
    normals_of_depth,
    pixel_rays,
    planes,
    points_of_depth,
    sample_map,
    take_planes,
    with_planes,
)
from momentum_gs.render.view import render_surface, render_view

GREY = torch.tensor([0.2, 0.3, 0.4])
CPU = torch.device("cpu")


def turn(axis: tuple[float, float, float], angle: float) -> Tensor:
    half = torch.tensor(axis, dtype=torch.float64)
    half = half / half.norm() * math.sin(angle / 2)
    return quat_to_matrix(torch.cat([torch.tensor([math.cos(angle / 2)], dtype=torch.float64), half]))


def camera(rotation: Tensor | None = None, center: tuple[float, float, float] = (0, 0, -4)) -> Camera:
    """Without arguments, it looks along the world's z axis at the origin; the principal point is off the middle."""
    rotation = torch.eye(3, dtype=torch.float64) if rotation is None else rotation
    place = torch.tensor(center, dtype=torch.float64)
    return Camera("a.png", 48, 36, 60.0, 50.0, 20.5, 15.5, rotation, -rotation @ place)


def disc(normal: Tensor, mean: tuple[float, float, float] = (0, 0, 0), opacity: float = 0.9) -> Gaussians:
    """A flat Gaussian that covers most of the view."""
    z = normal.double() / normal.double().norm()
    x = torch.linalg.cross(z, torch.tensor([0.3, 1.0, 0.2], dtype=torch.float64))
    x = x / x.norm()
    rotation = torch.stack([x, torch.linalg.cross(z, x), z], dim=1)
    return Gaussians(
        means=torch.tensor([mean], dtype=torch.float64), scales=torch.tensor([[1.5, 1.2, 1e-3]], dtype=torch.float64),
        quats=matrix_to_quat(rotation)[None], opacities=torch.tensor([[opacity]], dtype=torch.float64),
        colors=torch.rand(1, 3, dtype=torch.float64),
    )  # fmt: skip


def surface_of(gaussians: Gaussians, view: Camera, window: Window | None = None) -> tuple[RenderOutput, Surface]:
    black = gaussians.means.new_zeros(3 + CHANNELS)
    return take_planes(rasterize(with_planes(gaussians, view), view, black, window), view, window)


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.5, 0.2, -1), (-0.7, 0.6, -0.8), (0.5, 0.2, 1)])
def test_planar_depth_of_a_flat_gaussian_is_where_the_ray_meets_its_plane(normal: tuple[float, float, float]) -> None:
    view, mean = camera(), (0.2, -0.1, 0.3)
    n = torch.tensor(normal, dtype=torch.float64)
    _, surface = surface_of(disc(n, mean), view)
    towards = n / n.norm() * (-1 if normal[2] > 0 else 1)
    rays = pixel_rays(view, n)
    wanted = (towards @ (torch.tensor(mean) - view.center)) / (towards[:, None, None] * rays).sum(dim=0)
    assert surface.there.sum() > 300
    torch.testing.assert_close(surface.depth[surface.there], wanted[surface.there])
    torch.testing.assert_close(surface.normal[:, 15, 20], towards)


def test_planar_depth_does_not_depend_on_opacity_and_expected_depth_is_that_of_the_mean() -> None:
    n, view = torch.tensor([0.4, 0.0, -1.0]), camera()
    opaque, thin = surface_of(disc(n), view), surface_of(disc(n, opacity=0.5), view)
    both = opaque[1].there & thin[1].there
    torch.testing.assert_close(opaque[1].depth[both], thin[1].depth[both])
    drawn = expected_depth(thin[0])
    torch.testing.assert_close(drawn[both], torch.full_like(drawn[both], 4.0))


def test_median_depth_is_that_of_the_gaussian_which_takes_most_of_the_light() -> None:
    n, view = torch.tensor([0.0, 0.0, -1.0]), camera()
    both = [disc(n, (0, 0, -1), opacity=0.3), disc(n, (0, 0, 2), opacity=0.9)]
    gaussians = Gaussians(*(torch.cat([getattr(g, f) for g in both]) for f in Gaussians.__dataclass_fields__))
    median, drawn = median_depth(gaussians, view), expected_depth(surface_of(gaussians, view)[0]).detach()
    assert float(median[15, 20]) == pytest.approx(6.0)
    assert 3.0 < float(drawn[15, 20]) < 5.5
    assert set(median.unique().tolist()) <= {0.0, 3.0, 6.0}


def test_two_gaussians_of_one_plane_show_that_plane() -> None:
    n, view = torch.tensor([0.3, -0.2, -1.0], dtype=torch.float64), camera()
    along = torch.linalg.cross(n, torch.tensor([0.0, 1, 0], dtype=torch.float64))
    first, second = disc(n, opacity=0.6), disc(n, tuple((0.5 * along).tolist()), opacity=0.6)
    both = Gaussians(*(torch.cat([getattr(g, f) for g in (first, second)]) for f in Gaussians.__dataclass_fields__))
    surface, alone = surface_of(both, view)[1], surface_of(first, view)[1]
    there = surface.there & alone.there
    torch.testing.assert_close(surface.depth[there], alone.depth[there])


def test_normals_turn_with_the_scene_and_depths_stay() -> None:
    rotation, n = turn((1, 2, -0.5), 0.8), torch.tensor([0.4, 0.3, -1.0], dtype=torch.float64)
    view = camera()
    turned = replace(view, rotation=view.rotation @ rotation.T)
    before = surface_of(disc(n, (0.2, 0.1, 0.0)), view)[1]
    moved = replace(
        disc(n, (0.2, 0.1, 0.0)),
        means=disc(n, (0.2, 0.1, 0.0)).means @ rotation.T,
        quats=matrix_to_quat(rotation @ quat_to_matrix(disc(n).quats[0]))[None],
    )
    after = surface_of(moved, turned)[1]
    torch.testing.assert_close(after.depth, before.depth)
    torch.testing.assert_close(after.normal, torch.einsum("ij,jhw->ihw", rotation, before.normal))


def test_normals_of_depth_are_the_blended_normals_of_a_plane() -> None:
    n, view = torch.tensor([0.4, -0.3, -1.0], dtype=torch.float64), camera()
    surface = surface_of(disc(n), view)[1]
    found = normals_of_depth(surface.depth, view)
    known = found.abs().sum(dim=0) > 0
    assert known.sum() > 300 and not known[0].any()
    torch.testing.assert_close(found[:, known], surface.normal[:, known])


def test_points_of_depth_project_back_to_their_pixels() -> None:
    view = camera(turn((1, 0, 0), 0.5))
    depth = 1 + torch.rand(36, 48, dtype=torch.float64)
    points = points_of_depth(depth, view).flatten(1).T + view.center
    found, z = sample_map(depth[None], points, view)
    torch.testing.assert_close(z, depth.flatten())
    torch.testing.assert_close(found[0], depth.flatten())


def random_gaussians(n: int = 12) -> Gaussians:
    rng = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    return Gaussians(
        means=0.6 * normal(n, 3), scales=0.3 * (0.5 * normal(n, 3)).exp(),
        quats=torch.nn.functional.normalize(normal(n, 4)), opacities=normal(n, 1).sigmoid(), colors=normal(n, 3),
    )  # fmt: skip


def test_twin_in_plain_torch() -> None:
    """The same maps from the readable rasterizer, and the same gradients of their sum."""
    view = camera()
    leaves = [
        Gaussians(*(getattr(random_gaussians(), f).requires_grad_() for f in Gaussians.__dataclass_fields__))
        for _ in range(2)
    ]
    intrinsics = {k: getattr(view, k) for k in ("fx", "fy", "cx", "cy", "width", "height")}
    wide = with_planes(leaves[1], view)
    plain = rasterize_reference(
        **vars(wide), world_view=view.world_view, background=wide.means.new_zeros(7), **intrinsics
    )
    surface = surface_of(leaves[0], view)[1]
    there = surface.there
    assert there.sum() > 500
    normal, distance = plain.image[3:6, there], plain.image[6, there]
    depth = distance / (normal * pixel_rays(view, normal)[:, there]).sum(dim=0)
    unit = normal / normal.norm(dim=0)
    torch.testing.assert_close(surface.depth[there], depth)
    torch.testing.assert_close(surface.normal[:, there], unit)
    weight = torch.rand(len(depth), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (weight * (surface.depth[there] + surface.normal[0, there])).sum().backward()
    (weight * (depth + unit[0])).sum().backward()
    for name in ("means", "scales", "quats", "opacities"):
        torch.testing.assert_close(getattr(leaves[0], name).grad, getattr(leaves[1], name).grad)


def test_gradients_against_finite_differences() -> None:
    view = camera()
    start = random_gaussians(4)
    there = surface_of(start, view)[1].there

    def found(means: Tensor, scales: Tensor, quats: Tensor, opacities: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(quats)
        surface = surface_of(Gaussians(means, scales, unit, opacities, start.colors), view)[1]
        return torch.cat([surface.depth[there][::97], surface.normal[:, there][:, ::97].flatten()])

    leaves = [getattr(start, f).clone().requires_grad_() for f in ("means", "scales", "quats", "opacities")]
    assert torch.autograd.gradcheck(found, leaves, eps=1e-7, atol=1e-4, rtol=1e-3)


def test_gradient_of_a_pose_is_that_of_the_moved_camera() -> None:
    view, start = camera(), random_gaussians()
    nudge = torch.zeros(6, dtype=torch.float64, requires_grad=True)

    def total(gaussians: Gaussians, at: Camera) -> Tensor:
        surface = surface_of(gaussians, at)[1]
        return (surface.depth * (surface.alpha > 0.3)).sum()

    total(nudged(start, view, nudge), view).backward()
    step = 1e-6
    moved = [replace(view, translation=view.translation - torch.tensor([0, 0, s])) for s in (step, -step)]
    wanted = (total(start, moved[0]) - total(start, moved[1])) / (2 * step)
    assert nudge.grad is not None
    torch.testing.assert_close(nudge.grad[5], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["anchors", "gaussians"])
def test_colours_and_alpha_are_those_without_surface(kind: str) -> None:
    model, decoder = (
        (random_anchors(30), random_decoder()) if kind == "anchors" else (random_splats(60), Harmonics(2))
    )
    view = camera()
    plain, with_surface = (render_view(model, decoder, view, GREY, surface=s) for s in (False, True))
    assert plain.surface is None and with_surface.surface is not None
    assert torch.equal(plain.output.image, with_surface.output.image)
    assert torch.equal(plain.output.alpha, with_surface.output.alpha)
    assert with_surface.surface.there.any()
    lengths = with_surface.surface.normal.norm(dim=0)[with_surface.surface.there]
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


@pytest.mark.parametrize("kind", ["anchors", "splats"])
def test_surface_alone_has_the_bits_of_the_one_beside_the_colours(kind: str) -> None:
    model, around, decoder = (
        (random_anchors(30), random_anchors(10), random_decoder()) if kind == "anchors"
        else (random_splats(60), random_splats(20), Harmonics(2))
    )  # fmt: skip
    both = render_view(model, decoder, camera(), GREY, around=around, surface=True).surface
    alone = render_surface(model, decoder, camera(), around)
    assert both is not None and both.there.any() and not alone.depth.requires_grad
    for name in ("depth", "normal", "alpha"):
        assert torch.equal(getattr(alone, name), getattr(both, name)), name


def test_learned_background_stays_behind_the_colours() -> None:
    model, decoder = random_anchors(5), random_decoder(background_degree=2)
    plain, with_surface = (render_view(model, decoder, camera(), GREY, surface=s) for s in (False, True))
    assert torch.equal(plain.output.image, with_surface.output.image)


def test_window_is_that_part_of_the_surface() -> None:
    model, view = random_splats(60), camera()
    owned = torch.zeros(32, 32, dtype=torch.bool)
    owned[8:20, 4:18] = True
    window = window_of(owned, view, CPU)
    assert window is not None
    whole = render_view(model, Harmonics(1), view, GREY, surface=True).surface
    part = render_view(model, Harmonics(1), view, GREY, surface=True, window=window).surface
    assert whole is not None and part is not None
    counts = window.weights > 0
    torch.testing.assert_close(part.depth[counts], window.crop(whole.depth)[counts])
    torch.testing.assert_close(part.normal[:, counts], window.crop(whole.normal)[:, counts])


def test_normals_face_the_camera() -> None:
    gaussians, view = random_gaussians(50), camera()
    normal, distance = planes(gaussians, view)
    torch.testing.assert_close(normal.norm(dim=1), torch.ones(50, dtype=torch.float64))
    assert (distance <= 0).all()
    smallest = gaussians.scales.argmin(dim=1)
    axes = quat_to_matrix(gaussians.quats)[torch.arange(50), :, smallest]
    torch.testing.assert_close((axes * normal).sum(dim=1).abs(), torch.ones(50, dtype=torch.float64))
