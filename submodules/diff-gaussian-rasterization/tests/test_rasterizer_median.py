"""Median depth: against the readable reference, and facts about it."""

from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import median_depth, rasterize
from diff_gaussian_rasterization.reference import median_depth_reference
from rasterizer_scenes import Scene, make_scene
from test_rasterizer_emulated import emulated, emulator  # noqa: F401  (fixtures)
from torch import Tensor

PARTS: list[dict[str, Any]] = [{}, {"window": (7, 5, 30, 21)}, {"antialiasing": True}]


def crowd(**settings: Any) -> Scene:
    """Gaussians that make some pixels, but not all, more than half opaque; without colours."""
    scene = make_scene(100, max_opacity=0.6, **settings)
    return {name: value for name, value in scene.items() if name not in ("colors", "background")}


def check(scene: Scene) -> None:
    """Values and gradients by means and world_view."""
    found, grads = [], []
    for median_of in (median_depth, median_depth_reference):
        leaves = {name: scene[name].clone().requires_grad_() for name in ("means", "world_view")}
        median = median_of(**(scene | leaves))
        weights = torch.rand(median.shape, generator=torch.Generator().manual_seed(0)).double()
        grads.append(torch.autograd.grad((median * weights).sum(), list(leaves.values())))
        found.append(median.detach())
    # Both take the same Gaussian, so what remains is how camera z is rounded.
    torch.testing.assert_close(*found, atol=1e-12, rtol=1e-12)
    assert 0.1 < float((found[0] > 0).double().mean()) < 1
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("part", PARTS)
def test_matches_the_reference(part: dict[str, Any]) -> None:
    check(crowd() | part)


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("part", PARTS)
def test_the_cuda_sources_match_the_reference(part: dict[str, Any]) -> None:
    check(crowd() | part)


def test_covariances_may_be_given() -> None:
    scene = crowd()
    round_ones = torch.tensor([0.01, 0, 0, 0.01, 0, 0.01], dtype=torch.float64)
    scene |= {"scales": None, "quats": None, "cov3d": round_ones.expand(len(scene["means"]), 6)}
    torch.testing.assert_close(median_depth(**scene), median_depth_reference(**scene), atol=1e-12, rtol=1e-12)


def layers(depths: list[float], opacities: list[float]) -> Scene:
    """Large Gaussians one behind the other: at the pixel in the middle, their opacities are their alphas."""
    scene = crowd(width=5, height=5)
    for name in ("means", "scales", "quats", "opacities"):
        scene[name] = scene[name][: len(depths)].clone()
    scene["means"][:] = 0.0
    scene["means"][:, 2] = torch.tensor(depths, dtype=torch.float64)
    scene["scales"][:] = 3.0
    scene["opacities"][:, 0] = torch.tensor(opacities, dtype=torch.float64)
    return scene | {"world_view": torch.eye(4, dtype=torch.float64), "cx": 2.5, "cy": 2.5}


@pytest.mark.parametrize(
    ("opacities", "expected"),
    [
        ([0.6, 0.9, 0.9], 1.0),
        ([0.4, 0.1, 0.9], 3.0),  # 0.6, 0.54, 0.054 are left
        ([0.4, 0.2, 0.9], 2.0),  # 0.48 is left
        ([0.2, 0.2, 0.2], 0.0),  # 0.512 is left
    ],
)
def test_is_where_half_of_the_light_is_gone(opacities: list[float], expected: float) -> None:
    assert float(median_depth(**layers([1.0, 2.0, 3.0], opacities))[2, 2]) == pytest.approx(expected)


def test_what_is_faint_in_front_does_not_move_it() -> None:
    scene = layers([1.0, 10.0], [0.3, 0.95])
    assert float(median_depth(**scene)[2, 2]) == pytest.approx(10.0)
    drawn = rasterize(**scene, colors=scene["opacities"], background=torch.zeros(1, dtype=torch.float64))
    assert float((drawn.depth / drawn.alpha)[2, 2]) < 8  # the mean


def test_without_gaussians_there_is_none() -> None:
    scene = layers([], [])
    for median_of in (median_depth, median_depth_reference):
        median = median_of(**scene)
        assert median.shape == (5, 5) and not median.any()


def test_same_bits_for_any_number_of_threads() -> None:
    before, found = torch.get_num_threads(), list[Tensor]()
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            found.append(median_depth(**crowd(width=150, height=90, dtype=torch.float32)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_wrong_shape_is_refused_by_name() -> None:
    scene = crowd()
    with pytest.raises(ValueError, match="opacities has shape"):
        median_depth(**(scene | {"opacities": scene["opacities"][:-1]}))
