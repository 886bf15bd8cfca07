"""Facts about masks: which file belongs to which image, and that ignored pixels have no effect."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scene_files import random_image, write_image, write_scene
from tiny_run import CPU, make_config
from tiny_scene import write_tiny_scene

from momentum_gs.config.schema import LossConfig, SceneConfig
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.image import l1, psnr, ssim
from momentum_gs.core.types import TargetImage
from momentum_gs.core.window import RASTER, Window, window_of
from momentum_gs.data.masks import find_masks, read_mask
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.views import Views
from momentum_gs.render.score import score_views
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.decoders.shared import SharedDecoder
from momentum_gs.train.losses import reconstruction
from momentum_gs.train.step import StepInputs, train_step
from momentum_gs.train.view_order import ViewOrder

WHITE = np.full((30, 40), 255, np.uint8)
METRICS = (l1, psnr, ssim)


def load(root: Path, **settings: object) -> Scene:
    return load_scene(SceneConfig(path=str(root), **{"resolution": 1.0, "test_every": 0, **settings}))


# Files.


@pytest.mark.parametrize(
    ("name", "mask"),
    [("1.jpg", "1.jpg.png"), ("1.jpg", "1.png"), ("a/b c.png", "a/b c.png"), ("a/1.jpg", "a/1.jpg.png"),
     ("ö.png", "ö.png.png"), ("1.jpg", "1.jpg")],
)  # fmt: skip
def test_the_forms_of_a_masks_name(tmp_path: Path, name: str, mask: str) -> None:
    write_image(tmp_path / mask, WHITE)
    assert find_masks(tmp_path, [name]) == ({name: tmp_path / mask}, [])
    assert find_masks(tmp_path, ["other/" + name]) == ({}, [mask])


def test_the_longer_name_is_preferred_and_masks_without_an_image_are_named(tmp_path: Path) -> None:
    for name in ("1.jpg.png", "1.png", "x/2.png"):
        write_image(tmp_path / name, WHITE)
    assert find_masks(tmp_path, ["1.jpg"]) == ({"1.jpg": tmp_path / "1.jpg.png"}, ["1.png", "x/2.png"])
    assert find_masks(tmp_path / "none", ["1.jpg"]) == ({}, [])


def test_black_is_ignored(tmp_path: Path) -> None:
    levels = np.array([[0, 7, 127, 128, 255]], np.uint8)
    colours = np.zeros((1, 5, 3), np.uint8)
    colours[0, :, 1] = levels[0]  # One bright channel is enough not to be black.
    for i, pixels in enumerate((levels, colours, levels.astype(np.uint16) * 257)):
        write_image(tmp_path / f"{i}.png", pixels)
        assert read_mask(tmp_path / f"{i}.png", 5, 1)[0, 0].tolist() == [0, 0, 0, 1, 1]


def test_a_pixel_of_a_reduced_mask_counts_if_all_its_pixels_count(tmp_path: Path) -> None:
    pixels = np.full((12, 16), 255, np.uint8)
    pixels[5, 6] = 0
    write_image(tmp_path / "a.png", pixels)
    small = read_mask(tmp_path / "a.png", 4, 3)[0]
    assert small[1, 1] == 0 and small.sum() == 11
    large = read_mask(tmp_path / "a.png", 32, 24)[0]
    assert large.sum() == 32 * 24 - 4 and not large[10:12, 12:14].any()


def test_a_scene_finds_its_masks_and_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scene(tmp_path, ["a/1.jpg", "2.png"])
    assert not load(tmp_path).mask_paths
    for name in ("a/1.jpg.png", "3.png"):
        write_image(tmp_path / "masks" / name, WHITE)
    capsys.readouterr()
    assert load(tmp_path).mask_paths == {"a/1.jpg": tmp_path / "masks" / "a" / "1.jpg.png"}
    printed = capsys.readouterr()
    assert "1 of 2 images have a mask" in printed.out
    assert "1 files in" in printed.err and "first: 3.png" in printed.err
    assert not load(tmp_path, masks="").mask_paths and not load(tmp_path, masks="other").mask_paths


def test_a_mask_of_another_shape_is_refused_and_a_smaller_one_is_not(tmp_path: Path) -> None:
    write_scene(tmp_path, ["1.png"])
    write_image(tmp_path / "masks" / "1.png", WHITE[::2, ::2])
    assert load(tmp_path).mask_paths
    write_image(tmp_path / "masks" / "1.png", WHITE[:20])
    with pytest.raises(UserError, match=r"masks/1\.png is 40x20, but its image is 40x30"):
        load(tmp_path)
    (tmp_path / "masks" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"masks/1\.png"):
        load(tmp_path)


def test_masks_of_both_parts_keep_to_their_images(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_scene(tmp_path / part, ["1.png"])
    write_image(tmp_path / "val" / "masks" / "1.png", WHITE)
    assert load(tmp_path).mask_paths == {"val/1.png": tmp_path / "val" / "masks" / "1.png"}


def test_masks_share_the_bound_of_the_cache(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(4)]
    write_scene(tmp_path, names)
    half = WHITE.copy()
    half[:, :20] = 0
    for name in names[:2]:
        write_image(tmp_path / "masks" / name, half)
    with Views(load(tmp_path), 8 * 1200, CPU) as views:
        found = [views.target(name) for name in names]
        assert views.held_bytes <= 8 * 1200
        again = views.target("0.png")
    plain = torch.from_numpy(random_image("0.png", 40, 30)[..., ::-1].transpose(2, 0, 1).copy()).float() / 255
    assert torch.equal(found[0].image, plain) and torch.equal(again.image, plain)
    for target in (found[0], found[1], again):
        assert target.mask is not None and target.mask.shape == (1, 30, 40)
        assert not target.mask[..., :20].any() and (target.mask[..., 20:] == 1).all()
    assert found[2].mask is None and found[3].mask is None
    with Views(load(tmp_path), 1 << 20, CPU) as views:
        for name in names:
            views.image(name)
        assert views.held_bytes == (4 + 4 + 3 + 3) * 1200
        counts = {camera.name: views.counts(camera) for camera in load(tmp_path).train}
        assert [counts[name] is None for name in names] == [False, False, True, True]
        assert counts["0.png"] is not None and counts["0.png"].equal(found[0].mask)


# Metrics and losses.


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(3, 24, 32, generator=draw), torch.rand(3, 24, 32, generator=draw)


@pytest.mark.parametrize("metric", METRICS)
def test_a_mask_of_ones_is_no_mask(metric) -> None:
    a, b = pair()
    # Another order of the same sum; SSIM is computed as 1 - (1 - x).
    torch.testing.assert_close(metric(a, b, torch.ones(1, 24, 32)), metric(a, b), rtol=1e-6, atol=1e-6)


@given(st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_ignored_pixels_change_no_value_and_get_no_gradient(seed: int, share: float) -> None:
    a, b = pair(seed)
    draw = torch.Generator().manual_seed(seed + 1)
    mask = (torch.rand(1, 24, 32, generator=draw) < share).float()
    mask[0, 0, 0] = 1
    other = torch.where(mask.bool(), b, torch.rand(3, 24, 32, generator=draw))
    a.requires_grad_()
    for metric in METRICS:
        value = metric(a, b, mask)
        assert torch.equal(value, metric(a, other, mask))
        (gradient,) = torch.autograd.grad(value, a)
        assert not gradient[:, ~mask[0].bool()].any()
        assert gradient.isfinite().all() and gradient.any()


def test_masked_means_are_those_of_the_pixels_that_count() -> None:
    a, b = pair()
    mask = torch.zeros(1, 24, 32)
    mask[:, 3:11, 5:20] = 1
    kept = (slice(None), slice(3, 11), slice(5, 20))
    # The same numbers summed in another order.
    torch.testing.assert_close(l1(a, b, mask), l1(a[kept], b[kept]), rtol=1e-5, atol=0)
    torch.testing.assert_close(psnr(a, b, mask), psnr(a[kept], b[kept]), rtol=1e-5, atol=0)


def test_masked_dssim_is_that_of_images_with_black_ignored_pixels_per_pixel_that_counts() -> None:
    a, b = pair()
    mask = torch.ones(1, 24, 32)
    mask[:, :, 16:] = 0
    torch.testing.assert_close(1 - ssim(a, b, mask), 2 * (1 - ssim(a * mask, b * mask)), rtol=1e-5, atol=0)
    assert ssim(a, a, mask) == pytest.approx(1, abs=1e-6)  # float32 moments


def test_a_view_of_which_nothing_counts_costs_nothing() -> None:
    a, b = pair()
    a.requires_grad_()
    terms = reconstruction(a, TargetImage(b, torch.zeros(1, 24, 32)), LossConfig())
    torch.stack(list(terms.values())).sum().backward()
    # SSIM of black images is 1 up to float32 round-off, which is multiplied by the number of pixels, as the number that
    # counts is taken as at least 1.
    assert terms["l1"] == 0 and abs(float(terms["dssim"].detach())) < 1e-3
    assert a.grad is not None and not a.grad.any()


# Training.


def masked_scene(root: Path) -> Scene:
    """The tiny scene with masks that ignore the pixels of x > 0."""
    scene = load(write_tiny_scene(root))
    for camera in scene.train:
        x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx * 4 + float(camera.center[0])
        mask = np.broadcast_to(np.where(x > 0, 0, 255).astype(np.uint8), (camera.height, camera.width))
        write_image(root / "masks" / camera.name, np.ascontiguousarray(mask))
    return load(root)


def train_block(scene: Scene, config, steps: int) -> tuple[AnchorBlock, int]:
    """A block after some steps, and how many anchors it began with."""
    block = AnchorBlock.from_points(0, scene.points, scene.train, config, CPU)
    before = len(block.model)
    shared, order = SharedDecoder(config, CPU, 1.0), ViewOrder([scene.train], config.seed)
    with Views(scene, 1 << 24, CPU) as views:
        inputs = StepInputs(config, LocalComm(), torch.zeros(3), lambda b: order.show(0, b.step, views))
        for _ in range(steps):
            train_step(inputs, shared, [block], (0,), torch.ones(1), True)
    return block, before


@pytest.mark.slow
def test_anchors_seen_through_ignored_pixels_alone_do_not_grow(tmp_path: Path) -> None:
    masked = masked_scene(tmp_path)
    config = make_config(tmp_path, tmp_path / "out", "stage=coarse", "growth.interval=50")
    # Farther from the border than any Gaussian reaches: their scales are 0.3 at the start, and they end at 3 sigma.
    reach = 1.5
    block, _ = train_block(masked, config, 25)
    ignored = (block.model.position[:, 0] > reach).repeat_interleave(block.model.n_offsets)
    shown = (block.model.position[:, 0] < -reach).repeat_interleave(block.model.n_offsets)
    seen = block.stats.offset_denom.squeeze(1) > 0
    gradient = block.stats.offset_gradient_accum.squeeze(1)
    assert (seen & ignored).any(), "they are drawn"
    assert not gradient[ignored].any()
    assert (gradient[seen & shown] > 0).float().mean() > 0.9
    growing = replace(config, growth=replace(config.growth, interval=10))
    grown = {}
    for name, scene in (("masked", masked), ("plain", replace(masked, mask_paths={}))):
        block, count = train_block(scene, growing, 30)
        new = block.model.position[count:] if len(block.model) >= count else block.model.position[:0]
        grown[name] = (int((new[:, 0] > reach).sum()), int((new[:, 0] < -reach).sum()))
    assert grown["masked"][0] == 0 and grown["masked"][1] > 0, grown
    assert grown["plain"][0] > 0, "without the mask they grow"


def test_without_a_mask_the_losses_are_means_over_all_pixels(tmp_path: Path) -> None:
    scene = load(write_tiny_scene(tmp_path))
    with Views(scene, 1 << 24, CPU) as views:
        target = views.target(scene.train[0].name)
    assert target.mask is None
    image = torch.rand(target.image.shape, generator=torch.Generator().manual_seed(0))
    terms = reconstruction(image, target, LossConfig(dssim=0.2))
    torch.testing.assert_close(terms["l1"], 0.8 * (image - target.image).abs().mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["dssim"], 0.2 * (1 - ssim(image, target.image)), rtol=0, atol=1e-7)


def test_a_part_of_an_image_has_the_bits_of_the_whole_ones(tmp_path: Path) -> None:
    scene = masked_scene(tmp_path)
    name = scene.train[0].name
    window = window_of(torch.arange(RASTER**2).view(RASTER, RASTER) % RASTER < 9, scene.train[0], CPU)
    assert window is not None
    with Views(scene, 1 << 24, CPU) as views:
        part, whole = views.target(name, window), views.target(name)
    assert part.mask is not None and float(part.share) < 1
    torch.testing.assert_close(vars(part), vars(window.target(whole)), rtol=0, atol=0)


@pytest.mark.slow
def test_scores_leave_out_ignored_pixels(tmp_path: Path) -> None:
    scene = masked_scene(tmp_path)
    config = make_config(tmp_path, tmp_path / "out", "stage=coarse")
    block = AnchorBlock.from_points(0, scene.points, scene.train, config, CPU)
    student = SharedDecoder(config, CPU, 1.0).student

    class Painted(Views):
        """Target images with noise in their ignored pixels."""

        def target(self, name: str, window: Window | None = None) -> TargetImage:
            found = super().target(name, window)
            assert found.mask is not None
            return replace(found, image=torch.where(found.mask.bool(), found.image, torch.rand_like(found.image)))

    found = []
    for kind in (Views, Painted):
        with kind(scene, 0, CPU) as views:
            found.append(score_views(block.model, student, scene.train, views, torch.zeros(3)))
    assert found[0] == found[1] and found[0] is not None
    black = [camera for camera in scene.train if float(camera.center[0]) > 3]
    with Views(scene, 0, CPU) as views:
        assert score_views(block.model, student, black, views, torch.zeros(3)) is None, "nothing counts in them"
