"""Gaussians that are drawn among others and get no gradients."""

import pytest
import torch
from diff_gaussian_rasterization import Around, rasterize
from rasterizer_scenes import Scene, make_scene

FIELDS = Around._fields
PARTS = {
    "whole": {},
    "window": {"window": (9, 3, 40, 30)},
    "tiles": {"tiles": torch.tensor([[1, 0, 1, 1]] * 3) > 0},
    "antialiased": {"antialiasing": True},
}


def two(dtype: torch.dtype, channels: int = 3) -> tuple[Scene, Around, Scene]:
    """A scene, what stands around it, and one scene of both."""
    scene, other = (make_scene(90, channels=channels, dtype=dtype, seed=seed) for seed in (0, 1))
    around = Around(*(other[name] for name in FIELDS))
    return scene, around, scene | {name: torch.cat([scene[name], other[name]]) for name in FIELDS}


def drawn(scene: Scene, outputs: tuple[str, ...], columns: int, **options: object) -> tuple[list, dict]:
    """The outputs, and the gradients of a fixed functional of some of them."""
    inputs = {name: scene[name].clone().requires_grad_() for name in (*FIELDS, "background")}
    inputs["means2d"] = scene["means"].new_zeros(len(scene["means"]), columns).requires_grad_()
    out = rasterize(**(scene | inputs), **options)
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(getattr(out, name).shape, generator=generator, dtype=torch.float64) for name in outputs]
    total = sum((getattr(out, name) * weight).sum() for name, weight in zip(outputs, weights, strict=True))
    return list(out), dict(zip(inputs, torch.autograd.grad(total, list(inputs.values())), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("outputs", "columns", "channels"), [(("image",), 3, 3), (("image", "alpha", "depth"), 4, 5)])
def test_drawn_as_one_scene_with_the_same_bits_and_gradients(
    dtype: torch.dtype, part: str, outputs: tuple[str, ...], columns: int, channels: int
) -> None:
    scene, around, both = two(dtype, channels)
    size = len(scene["means"])
    (*images, radii), gradients = drawn(scene, outputs, columns, around=around, **PARTS[part])
    (*expected, all_radii), of_both = drawn(both, outputs, columns, **PARTS[part])
    assert all(torch.equal(image, other) for image, other in zip(images, expected, strict=True))
    assert torch.equal(radii, all_radii[:size]) and bool(all_radii[size:].any())
    for name, gradient in gradients.items():
        assert torch.equal(gradient, of_both[name] if name == "background" else of_both[name][:size]), name


def test_rows_of_what_is_fixed_are_zero() -> None:
    *_, both = two(torch.float64)
    count = len(both["means"])
    camera = [both[name] for name in ("fx", "fy", "cx", "cy", "width", "height")]
    raw = torch.ops.diff_gaussian_rasterization
    shapes = (both["scales"], both["quats"], None)
    screen = raw.project(both["means"], *shapes, both["world_view"], None, *camera, 1.0, 0.2)
    out = raw.composite(*screen, both["opacities"], both["colors"], both["background"], *camera[4:])
    every = raw.composite_backward(*out[:3], *out, count)
    for fixed in (0, 1, count // 2, count):
        some = raw.composite_backward(*out[:3], *out, count, fixed=fixed)
        for rows, all_rows in zip(some[:-1], every[:-1], strict=True):
            assert torch.equal(rows[: count - fixed], all_rows[: count - fixed]) and not rows[count - fixed :].any()
        assert torch.equal(some[-1], every[-1]), "the background's gradient"
    with pytest.raises(RuntimeError, match=f"fixed is {count + 1}, expected 0 to {count}"):
        raw.composite_backward(*out[:3], *out, count, fixed=count + 1)


def test_nothing_around_and_nothing_but_that() -> None:
    scene, around, _ = two(torch.float32)
    none = Around(*(value[:0] for value in around))
    assert torch.equal(rasterize(**scene, around=none).image, rasterize(**scene).image)
    empty = scene | {name: scene[name][:0] for name in FIELDS}
    alone = rasterize(**(scene | around._asdict())).image
    assert torch.equal(rasterize(**empty, around=around).image, alone)


def test_what_does_not_fit_is_named() -> None:
    scene, around, _ = two(torch.float32)
    with pytest.raises(ValueError, match=r"around.colors has shape \[90, 4\], expected \[n, 3\] with n=90"):
        rasterize(**scene, around=around._replace(colors=torch.zeros(90, 4)))
    with pytest.raises(ValueError, match="around.means is torch.float64"):
        rasterize(**scene, around=around._replace(means=around.means.double()))
