"""Windows: a part of the image has the bits of the same part of the whole image, and its gradients."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diff_gaussian_rasterization import cpu_kernels, ops, rasterize, visible_radii
from diff_gaussian_rasterization.reference import rasterize_reference
from rasterizer_scenes import Scene, make_scene, with_cov3d
from torch import Tensor

SIZE = (150, 110)
LONG = 20
"""Axis ratio of long Gaussians."""
RAW = torch.ops.diff_gaussian_rasterization
PLANES = ("image", "alpha", "depth")
LEAVES = ("means", "opacities", "colors", "scales", "quats", "world_view", "background")


def window_scene(seed: int = 0, dtype: torch.dtype = torch.float32) -> Scene:
    """Gaussians in and around the image; some opaque, which reach farther than their radii; some long."""
    width, height = SIZE
    scene = make_scene(250, width=width, height=height, seed=seed, dtype=dtype)
    scene["opacities"][::3] = 1.0
    scene["scales"][::5, 0] *= LONG
    return scene | {"fx": 0.9 * width, "fy": 0.9 * height}


def windows(count: int, seed: int = 0) -> list[ops.Window]:
    """The whole image, single pixels in two corners, and random windows."""
    width, height = SIZE
    generator = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=generator))

    some: list[ops.Window] = [(0, 0, width, height), (width - 1, height - 1, 1, 1), (0, height - 1, 1, 1)]
    while len(some) < count:
        x, y = below(width), below(height)
        some.append((x, y, 1 + below(width - x), 1 + below(height - y)))
    return some


def part(plane: Tensor, window: ops.Window) -> Tensor:
    x, y, width, height = window
    return plane[..., y : y + height, x : x + width]


def gradients(scene: Scene, weights: list[Tensor], **options: object) -> dict[str, Tensor]:
    """Gradients of <weights, outputs> by every tensor and by means2d."""
    inputs = {name: scene[name].clone().requires_grad_() for name in LEAVES}
    inputs["means2d"] = torch.zeros_like(scene["means"]).requires_grad_()
    out = rasterize(**(scene | inputs), **options)
    loss = sum((getattr(out, name) * weight).sum() for name, weight in zip(PLANES, weights, strict=True))
    return dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))


def weights_of(channels: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((channels, *SIZE[::-1]), SIZE[::-1], SIZE[::-1])
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def assert_gradients_close(actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Equal up to the order of sums.

    The terms have the same bits. A sum of n terms of either sign has an error of about sqrt(n) half eps of their size
    in any order, and n is up to 16500 here, the pixels of the image: 64 eps. After the sums, the gradient of the
    inverse of a covariance multiplies the error by its condition number, ``LONG`` squared.
    """
    for name, value in expected.items():
        error, scale = float((actual[name] - value).abs().max()), float(value.abs().max())
        tolerance = 64 * torch.finfo(dtype).eps * (1 if name in ("opacities", "colors", "background") else LONG**2)
        assert error <= tolerance * scale, (name, error, scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_window_has_the_bits_of_the_whole(seed: int, dtype: torch.dtype) -> None:
    scene = window_scene(seed, dtype)
    for variant in (scene, with_cov3d(scene)):
        whole = rasterize(**variant)
        for window in windows(12, seed):
            drawn = rasterize(**variant, window=window)
            for name in PLANES:
                assert torch.equal(getattr(drawn, name), part(getattr(whole, name), window)), (window, name)


def test_window_that_is_the_image_is_no_window() -> None:
    scene = window_scene()
    scene["means"] = scene["means"] * 2  # some are culled
    for a, b in zip(rasterize(**scene), rasterize(**scene, window=(0, 0, *SIZE)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_those_of_the_part(dtype: torch.dtype) -> None:
    scene = window_scene(dtype=dtype)
    weights = weights_of(3, dtype)
    for window in windows(6):
        outside = [torch.zeros_like(weight) for weight in weights]
        for masked, weight in zip(outside, weights, strict=True):
            part(masked, window).copy_(part(weight, window))
        expected = gradients(scene, outside)
        actual = gradients(scene, [part(weight, window) for weight in weights], window=window)
        assert_gradients_close(actual, expected, dtype)


def test_culling_leaves_what_reaches_the_window() -> None:
    scene = window_scene()
    names = ("means", "scales", "quats", "world_view", "fx", "fy", "cx", "cy", "width", "height")
    whole = rasterize(**scene).radii
    for window in windows(8):
        radii = rasterize(**scene, window=window).radii
        assert torch.equal(radii, visible_radii(**{name: scene[name] for name in names}, window=window))
        assert torch.equal(radii, torch.where(radii > 0, whole, 0))
    assert 0 < int((radii > 0).sum()) < int((whole > 0).sum())


def test_reference_draws_windows_too() -> None:
    scene = make_scene(60, dtype=torch.float64)
    window = (11, 5, 30, 19)
    drawn, expected = rasterize(**scene, window=window), rasterize_reference(**scene, window=window)
    assert torch.equal(drawn.radii, expected.radii)
    for name in PLANES:
        torch.testing.assert_close(getattr(drawn, name), getattr(expected, name), rtol=0, atol=1e-12)
        assert torch.equal(getattr(expected, name), part(getattr(rasterize_reference(**scene), name), window))


def test_bits_do_not_depend_on_where_in_a_large_image() -> None:
    # Coordinates of four digits, which leave float32 fewer digits after the point, and long Gaussians.
    scene = make_scene(400, width=6000, height=40, dtype=torch.float32)
    scene |= {"fx": 5400.0, "fy": 36.0}
    scene["scales"][::4] *= torch.tensor([8.0, 0.1, 0.1])
    whole = rasterize(**scene)
    for window in ((5003, 7, 901, 30), (2047, 0, 1, 40), (4097, 13, 1033, 1), (31, 1, 5969, 39)):
        drawn = rasterize(**scene, window=window)
        for name in PLANES:
            assert torch.equal(getattr(drawn, name), part(getattr(whole, name), window)), (window, name)


@pytest.mark.slow
@pytest.mark.skipif(not cpu_kernels().startswith("x86-64"), reason="built without a choice between variants")
def test_every_variant_keeps_the_bits() -> None:
    for variant in {"v3", cpu_kernels().removeprefix("x86-64-")}:
        environment = {**os.environ, "MOMENTUM_GS_CPU": variant}
        command = [sys.executable, "-m", "pytest", "-q", "-k", "has_the_bits", str(Path(__file__).resolve())]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "window", [(0, 0, 0, 5), (-1, 0, 5, 5), (100, 0, 51, 5), (0, 109, 5, 2), (0, 0, 151, 110), (0, 0, 5)]
)
def test_window_outside_of_the_image_is_refused(window: tuple[int, ...]) -> None:
    scene = window_scene()
    with pytest.raises(ValueError, match=r"rasterize: window is \(.*inside of the image of 150x110 pixels"):
        rasterize(**scene, window=window)
    with pytest.raises(ValueError, match="rasterize: window is "):
        names = ("means", "scales", "quats", "world_view", "fx", "fy", "cx", "cy", "width", "height")
        visible_radii(**{name: scene[name] for name in names}, window=window)
    camera = [scene[name] for name in ("fx", "fy", "cx", "cy", "width", "height")]
    shape = [scene["means"], scene["scales"], scene["quats"], None, scene["world_view"]]
    drawn = [*RAW.project(*shape, None, *camera, 1.0, 0.2), scene["opacities"], scene["colors"], scene["background"]]
    for call in (
        lambda: RAW.project(*shape, None, *camera, 1.0, 0.2, window),
        lambda: RAW.visible_radii(*shape, *camera, 1.0, 0.2, window),
        lambda: RAW.composite(*drawn, *SIZE, window),
    ):
        with pytest.raises(RuntimeError, match=r"rasterize: window is \[.*inside of an image of 150x110 pixels"):
            call()


# ------------------------------------------------------------------------------------------------------ masks of tiles


def mask_of(window: ops.Window, share: float = 0.4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random mask of tiles, and the pixels [h,w] of the squares that it names."""
    _, _, width, height = window
    shape = (-(-height // ops.TILE), -(-width // ops.TILE))
    tiles = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    pixels = tiles.repeat_interleave(ops.TILE, 0).repeat_interleave(ops.TILE, 1)
    return tiles, pixels[:height, :width]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", [None, (13, 6, 121, 77), (60, 41, 10, 50)])
def test_tiles_are_drawn_as_without_a_mask_and_the_others_are_background(
    window: ops.Window | None, dtype: torch.dtype
) -> None:
    scene = window_scene(dtype=dtype)
    whole = rasterize(**scene, window=window)
    for share in (0.0, 0.4, 1.0):
        tiles, pixels = mask_of(window or (0, 0, *SIZE), share)
        drawn = rasterize(**scene, window=window, tiles=tiles)
        background = scene["background"][:, None, None]
        assert torch.equal(drawn.image, torch.where(pixels, whole.image, background))
        assert torch.equal(drawn.alpha, torch.where(pixels, whole.alpha, 0))
        assert torch.equal(drawn.depth, torch.where(pixels, whole.depth, 0))
        assert torch.equal(drawn.radii, whole.radii)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_tiles_that_are_not_drawn_go_to_the_background(dtype: torch.dtype) -> None:
    scene, window = window_scene(dtype=dtype), (13, 6, 121, 77)
    tiles, pixels = mask_of(window)
    weights = [part(weight, window) for weight in weights_of(3, dtype)]
    expected = gradients(scene, [torch.where(pixels, weight, 0) for weight in weights], window=window)
    expected["background"] += torch.where(pixels, 0, weights[0]).sum((1, 2))
    assert_gradients_close(gradients(scene, weights, window=window, tiles=tiles), expected, dtype)


def test_no_pairs_of_tiles_that_are_not_drawn() -> None:
    scene = window_scene()
    camera = [scene[name] for name in ("fx", "fy", "cx", "cy", "width", "height")]
    projected = RAW.project(*(scene[name] for name in ("means", "scales", "quats")), None, scene["world_view"], None,
                            *camera, 1.0, 0.2)  # fmt: skip
    blend = (*projected, scene["opacities"], scene["colors"], scene["background"], *SIZE, None)
    tiles, _ = mask_of((0, 0, *SIZE))
    assert RAW.composite(*blend, torch.zeros_like(tiles))[7].shape[1] == 0
    assert 0 < RAW.composite(*blend, tiles)[7].shape[1] < RAW.composite(*blend)[7].shape[1]
    assert torch.equal(RAW.composite(*blend, torch.ones_like(tiles))[7], RAW.composite(*blend)[7])


@pytest.mark.parametrize("window", [None, (11, 5, 120, 79), (30, 40, 17, 16)])
def test_radii_of_tiles_leave_what_reaches_one_that_is_drawn(window: ops.Window | None) -> None:
    scene = window_scene()
    names = ("means", "scales", "quats", "world_view", "fx", "fy", "cx", "cy", "width", "height")
    shapes = {name: scene[name] for name in names}
    radii = visible_radii(**shapes, window=window)
    tiles, _ = mask_of(window or (0, 0, *SIZE), 0.3 if window else 0.05)
    left = visible_radii(**shapes, window=window, tiles=tiles)
    assert torch.equal(left, torch.where(left > 0, radii, 0)) and int((left > 0).sum()) < int((radii > 0).sum())
    part_of = scene | {name: scene[name][left > 0] for name in ("means", "scales", "quats", "opacities", "colors")}
    for plane in PLANES:
        drawn = (getattr(rasterize(**every, window=window, tiles=tiles), plane) for every in (scene, part_of))
        assert torch.equal(*drawn)
    assert not visible_radii(**shapes, window=window, tiles=torch.zeros_like(tiles)).any()


def test_reference_draws_tiles_too() -> None:
    scene, window = make_scene(60, dtype=torch.float64), (11, 5, 30, 19)
    tiles, _ = mask_of(window)
    drawn = rasterize(**scene, window=window, tiles=tiles)
    expected = rasterize_reference(**scene, window=window, tiles=tiles)
    for name in PLANES:
        torch.testing.assert_close(getattr(drawn, name), getattr(expected, name), rtol=0, atol=1e-12)


def test_masks_that_do_not_fit_are_refused() -> None:
    scene, window = window_scene(), (13, 6, 121, 77)
    tiles, _ = mask_of(window)
    camera = [scene[name] for name in ("fx", "fy", "cx", "cy", "width", "height")]
    projected = RAW.project(*(scene[name] for name in ("means", "scales", "quats")), None, scene["world_view"], None,
                            *camera, 1.0, 0.2)  # fmt: skip
    blend = (*projected, scene["opacities"], scene["colors"], scene["background"], *SIZE, window)
    drawn = RAW.composite(*blend, tiles)
    for wrong in (tiles[1:], tiles[None], tiles.T, tiles.to(torch.uint8), tiles.to("meta")):
        with pytest.raises(ValueError, match=r"rasterize: tiles is .*, expected torch.bool \[5, 8\] on cpu"):
            rasterize(**scene, window=window, tiles=wrong)
        if wrong.is_meta:
            continue
        with pytest.raises(RuntimeError, match=r"rasterize: tiles is .*, expected bool \[5, 8\] on cpu"):
            RAW.composite(*blend, wrong)
        with pytest.raises(RuntimeError, match=r"rasterize: tiles is .*, expected bool \[5, 8\] on cpu"):
            RAW.composite_backward(*drawn[:3], *drawn, len(scene["means"]), *window[:2], wrong)
