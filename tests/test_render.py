"""One view: what is drawn, what is left out, gradients, and scores."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from anchor_scene import random_anchors, random_decoder
from torch import Tensor

from momentum_gs.core.geometry import in_view
from momentum_gs.core.types import Camera, Gaussians, PointCloud
from momentum_gs.core.window import Window
from momentum_gs.data.images import write_png
from momentum_gs.data.scene import Scene
from momentum_gs.data.views import Views
from momentum_gs.render.rasterize import rasterize, visible_anchors
from momentum_gs.render.score import score_views
from momentum_gs.render.view import render_image, render_view

GREY = torch.tensor([0.2, 0.3, 0.4])
CPU = torch.device("cpu")


def camera(name: str = "a.png", distance: float = 4.0) -> Camera:
    """Looks along the world's z axis at the origin; the principal point is off the middle."""
    return Camera(
        name, 48, 36, 60.0, 50.0, 20.5, 15.5, torch.eye(3, dtype=torch.float64),
        torch.tensor([0, 0, distance], dtype=torch.float64),
    )  # fmt: skip


def one_gaussian(mean: list[float], opacity: float = 0.8, color: tuple[float, ...] = (1.0, 0.5, 0.0)) -> Gaussians:
    return Gaussians(
        means=torch.tensor([mean], dtype=torch.float32),
        scales=torch.full((1, 3), 0.05),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
        opacities=torch.tensor([[opacity]]),
        colors=torch.tensor([color]),
    )


def test_gaussian_is_drawn_where_the_camera_sees_it() -> None:
    # (20.5, 15.5) is the centre of pixel (20, 15): there the Gaussian has its peak, and alpha is its opacity.
    output = rasterize(one_gaussian([0, 0, 0]), camera(), GREY)
    wanted = 0.8 * torch.tensor([1.0, 0.5, 0.0]) + 0.2 * GREY
    torch.testing.assert_close(output.image[:, 15, 20], wanted)
    torch.testing.assert_close(output.alpha[15, 20], torch.tensor(0.8))
    torch.testing.assert_close(output.depth[15, 20], torch.tensor(0.8 * 4.0))
    # 0.4 to the right at depth 4 is fx * 0.1 = 6 pixels.
    moved = rasterize(one_gaussian([0.4, 0, 0]), camera(), GREY)
    torch.testing.assert_close(moved.alpha[15, 26], torch.tensor(0.8))


def test_any_number_of_channels() -> None:
    color = (0.1, 0.2, 0.3, 0.4, 0.5)
    output = rasterize(one_gaussian([0, 0, 0], opacity=0.5, color=color), camera(), torch.ones(5))
    torch.testing.assert_close(output.image[:, 15, 20], 0.5 * torch.tensor(color) + 0.5)


def test_nothing_in_view_leaves_the_background() -> None:
    behind = rasterize(one_gaussian([0, 0, -9]), camera(), GREY)
    empty = Gaussians(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 1), torch.zeros(0, 3))
    for output in (behind, rasterize(empty, camera(), GREY)):
        assert output.image.equal(GREY[:, None, None].expand(3, 36, 48))
        assert not output.alpha.any() and not output.radii.any()


def test_screen_gradient_is_in_ndc() -> None:
    """On the optical axis a step dx in the world moves a Gaussian by fx/z dx pixels, which are 2/width in NDC each."""
    gaussian = one_gaussian([0, 0, 0])
    gaussian.means.requires_grad_()
    output = rasterize(gaussian, camera(), GREY)
    (output.image * torch.linspace(-1, 1, 48)[None, None]).sum().backward()
    assert gaussian.means.grad is not None and output.screen_means.grad is not None
    in_world, in_ndc = float(gaussian.means.grad[0, 0]), float(output.screen_means.grad[0, 0])
    assert in_world != 0
    assert in_world == pytest.approx(in_ndc * (2 / 48) * (60 / 4), rel=1e-5)  # float32


def test_window_and_tiles_are_parts_of_the_image() -> None:
    gaussian = one_gaussian([0, 0, 0])
    whole = rasterize(gaussian, camera(), GREY)
    window = Window(10, 7, torch.ones(20, 33), torch.ones(2, 3, dtype=torch.bool), 0.0, 0.0, (48, 36))
    drawn = rasterize(gaussian, camera(), GREY, window)
    assert drawn.image.equal(whole.image[:, 7:27, 10:43]) and drawn.depth.equal(whole.depth[7:27, 10:43])
    left = torch.tensor([[True, False, False], [False, False, False]])
    tiles = rasterize(gaussian, camera(), GREY, replace(window, tiles=left))
    assert tiles.image[:, :16, :16].equal(drawn.image[:, :16, :16]) and drawn.alpha[:16, :16].any()
    assert tiles.image[:, :, 16:].equal(GREY[:, None, None].expand(3, 20, 17)) and not tiles.alpha[16:].any()


def test_screen_means_carry_no_gradient_where_none_is_wanted() -> None:
    with torch.no_grad():
        assert not rasterize(one_gaussian([0, 0, 0]), camera(), GREY).screen_means.requires_grad


def test_visible_anchors_are_those_that_touch_the_image() -> None:
    anchors = random_anchors(500)
    rows = visible_anchors(anchors, camera(distance=2.0))
    assert rows.dtype == torch.int64 and rows.equal(rows.sort().values)
    assert 50 < len(rows) < 450  # the scene has both kinds
    seen = in_view(anchors.position, camera(distance=2.0)).nonzero()[:, 0]
    assert set(seen.tolist()) <= set(rows.tolist())
    # Anchors of this size, at most 0.5, are not visible from a margin of five image widths on.
    wide = in_view(anchors.position, camera(distance=2.0), near=0.0, margin=5.0)
    assert bool(wide[rows].all())


def test_windows_see_fewer_anchors() -> None:
    anchors, view = random_anchors(500), camera(distance=2.0)
    window = Window(0, 0, torch.ones(18, 24), torch.ones(2, 2, dtype=torch.bool), 0.0, 0.0, (48, 36))
    whole, part = visible_anchors(anchors, view), visible_anchors(anchors, view, window)
    assert set(part.tolist()) < set(whole.tolist())
    assert visible_anchors(anchors, view, replace(window, weights=torch.ones(36, 48))).equal(whole)


def test_invisible_anchors_do_not_matter() -> None:
    anchors, decoder, view = random_anchors(500), random_decoder(), camera(distance=2.0)
    rows = visible_anchors(anchors, view)
    assert render_image(anchors, decoder, view, GREY).equal(render_image(anchors.subset(rows), decoder, view, GREY))


def test_render_image_is_clamped_and_has_no_gradient() -> None:
    image = render_image(random_anchors(200), random_decoder(), camera(), torch.full((3,), 1.5))
    assert not image.requires_grad and float(image.max()) == 1.0


def test_the_teacher_gives_targets_and_does_not_change_the_image() -> None:
    anchors, student, teacher = random_anchors(200), random_decoder(seed=1), random_decoder(seed=2)
    alone = render_view(anchors, student, camera(), GREY)
    taught = render_view(anchors, student, camera(), GREY, teacher)
    assert alone.targets is None and taught.targets is not None
    assert taught.output.image.equal(alone.output.image)
    same = render_view(anchors, student, camera(), GREY, student).targets
    assert same is not None and same.color.equal(alone.decoded.gaussians.colors)
    assert not taught.targets.color.requires_grad
    attached = render_view(anchors, student, camera(), GREY, teacher, detach_teacher=False).targets
    assert attached is not None and attached.color.requires_grad


def test_gradients_of_the_image_reach_anchors_and_decoder() -> None:
    anchors, decoder = random_anchors(200), random_decoder()
    render_view(anchors, decoder, camera(), GREY).output.image.square().mean().backward()
    for name in ("offset", "feature", "log_scale"):
        gradient = getattr(anchors, name).grad
        assert gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in decoder.parameters())


def targets(folder: Path, cameras: list[Camera], images: list[Tensor]) -> Views:
    for view, image in zip(cameras, images, strict=True):
        write_png(folder / view.name, image)
    points = PointCloud(torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.uint8))
    scene = Scene(folder, cameras, [], points, {view.name: folder / view.name for view in cameras})
    return Views(scene, 1 << 20, CPU)


def test_scores_are_means_over_views(tmp_path: Path) -> None:
    anchors, decoder = random_anchors(300), random_decoder()
    cameras = [camera("near.png", 3.0), camera("far.png", 6.0)]
    truth = render_image(anchors, decoder, cameras[0], GREY)
    with targets(tmp_path, cameras, [truth, torch.zeros(3, 36, 48)]) as views:
        near, far = (score_views(anchors, decoder, [view], views, GREY) for view in cameras)
        both = score_views(anchors, decoder, cameras, views, GREY)
        with pytest.raises(ValueError, match="no cameras"):
            score_views(anchors, decoder, [], views, GREY)
    # Rounding to 8 bits has a uniform error of up to half a step: 58.9 dB; 1 dB of margin, as there are few pixels.
    assert near.psnr > 57.9 and near.ssim > 0.999
    assert far.psnr < 20
    assert both.psnr == pytest.approx((near.psnr + far.psnr) / 2)
    assert both.ssim == pytest.approx((near.ssim + far.ssim) / 2)
