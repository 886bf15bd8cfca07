"""Absolute gradients of the projected means: against the readable reference, and facts about them."""

from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import rasterize
from diff_gaussian_rasterization.reference import rasterize_reference
from rasterizer_scenes import Scene, make_scene
from test_rasterizer_emulated import emulated, emulator  # noqa: F401  (fixtures)
from torch import Tensor


def gradient(draw: Any, scene: Scene, outputs: str, columns: int = 4) -> Tensor:
    """Of a fixed random functional of the outputs, by means2d."""
    leaf = torch.zeros(len(scene["means"]), columns, dtype=scene["means"].dtype, requires_grad=True)
    out = draw(**scene, means2d=leaf)
    generator = torch.Generator().manual_seed(1)
    planes = [getattr(out, name) for name in outputs.split()]
    weights = [torch.randn(plane.shape, generator=generator, dtype=torch.float64).to(plane) for plane in planes]
    (grad,) = torch.autograd.grad(sum((w * p).sum() for w, p in zip(weights, planes, strict=True)), leaf)
    return grad


def check(scene: Scene, outputs: str, tolerance: float = 1e-10) -> None:
    found, expected = (gradient(draw, scene, outputs) for draw in (rasterize, rasterize_reference))
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)
    assert (found[:, 2:] >= found[:, :2].abs() - 1e-9).all() and (found[:, 2:] > found[:, :2].abs() + 1e-3).any()


@pytest.mark.parametrize("outputs", ["image", "depth", "image alpha depth"])
@pytest.mark.parametrize("channels", [1, 3, 9])
def test_matches_the_reference(outputs: str, channels: int) -> None:
    check(make_scene(channels=channels), outputs)


@pytest.mark.parametrize("part", [{"window": (7, 5, 30, 21)}, {"tiles": torch.tensor([[1, 0, 1, 1]] * 3) > 0}])
def test_parts_match_the_reference(part: dict[str, Any]) -> None:
    check(make_scene() | part, "image alpha")


def test_single_precision_is_close() -> None:
    check(make_scene(dtype=torch.float32), "image", 2e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("part", [{}, {"window": (7, 5, 30, 21)}, {"tiles": torch.tensor([[1, 0, 1, 1]] * 3) > 0}])
def test_the_cuda_sources_match_the_reference(part: dict[str, Any]) -> None:
    check(make_scene(channels=5) | part, "image alpha depth")


def test_one_pixel_adds_what_it_adds() -> None:
    # With a gradient at one pixel alone, nothing cancels.
    scene = make_scene()
    leaf = torch.zeros(60, 4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(rasterize(**scene, means2d=leaf).image[1, 20, 30], leaf)
    torch.testing.assert_close(grad[:, 2:], grad[:, :2].abs())
    assert grad.any()


def test_columns_that_are_not_asked_for_change_nothing() -> None:
    two, three, four = (gradient(rasterize, make_scene(), "image", columns) for columns in (2, 3, 4))
    assert torch.equal(two, three[:, :2]) and torch.equal(two, four[:, :2])


def test_same_bits_for_any_number_of_threads() -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            found.append(gradient(rasterize, make_scene(300, width=150, height=90), "image"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])
