"""Seeded fuzzing: invalid and extreme Gaussians among ordinary ones, in images of every shape.

Invalid Gaussians are not drawn, and images and gradients have the bits that they have without them. Extreme Gaussians
are drawn, change no pixel that they do not cover, and their gradients are finite.
"""

from collections.abc import Callable

import pytest
import torch
from diff_gaussian_rasterization import Rasterization, rasterize, visible_radii
from diff_gaussian_rasterization.reference import rasterize_reference
from rasterizer_scenes import Scene, make_scene
from torch import Tensor

pytestmark = pytest.mark.slow

ROWS = ("means", "scales", "quats", "opacities", "colors")
SIZES = [(1, 1), (7919, 3), (3, 1009), (33, 31), (64, 64), (100, 75)]
SEEDS = 30  # every count with every size
Poison = Callable[[Scene, Tensor, torch.Generator], None]


def fuzz_scene(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Scene, Tensor, torch.Generator]:
    """A scene that fills the image, the rows to make invalid or extreme (bool), and a generator for ``Poison``."""
    width, height = SIZES[seed % len(SIZES)]
    count = (0, 1, 7, 60, 90)[seed % 5]
    scene = make_scene(count, width=width, height=height, dtype=dtype, seed=seed)
    scene |= {"fx": 0.9 * width, "fy": 0.9 * height, "cx": 0.5 * width, "cy": 0.55 * height}
    generator = torch.Generator().manual_seed(1000 + seed)
    return scene, torch.rand(count, generator=generator) < 0.3, generator


def magnitudes(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """[count, 1] ten to the power of exponents that are uniform in low to high."""
    exponent = low + (high - low) * torch.rand(count, 1, generator=generator, dtype=torch.float64)
    return 10.0**exponent


def put(value: float) -> Poison:
    """Writes the value into one random entry of one random tensor for each row."""

    def poison(scene: Scene, rows: Tensor, generator: torch.Generator) -> None:
        for row in torch.nonzero(rows)[:, 0].tolist():
            tensor = scene[ROWS[int(torch.randint(len(ROWS), (), generator=generator))]]
            tensor[row, int(torch.randint(tensor.shape[1], (), generator=generator))] = value

    return poison


def scaled(name: str, low: float, high: float) -> Poison:
    """Multiplies rows of a tensor by ten to a random exponent."""

    def poison(scene: Scene, rows: Tensor, generator: torch.Generator) -> None:
        count = int(rows.sum())
        scene[name][rows] = (scene[name][rows].double() * magnitudes(count, low, high, generator)).to(scene[name])

    return poison


def behind(scene: Scene, rows: Tensor, generator: torch.Generator) -> None:
    """Camera z from far behind up to the near plane, which is culled too."""
    rotation, translation = scene["world_view"][:3, :3], scene["world_view"][:3, 3]
    camera = scene["means"][rows] @ rotation.T + translation
    camera[:, 2] = 0.199 - magnitudes(len(camera), -30, 6, generator)[:, 0].to(camera)
    scene["means"][rows] = (camera - translation) @ rotation


def faint(scene: Scene, rows: Tensor, generator: torch.Generator) -> None:
    """Opacities under 1/255, which are never drawn, among them 0, negative ones and a denormal."""
    values = torch.tensor([0.0, -0.0, -1.0, -1e30, 1e-42, 1 / 256])
    pick = torch.randint(len(values), (int(rows.sum()), 1), generator=generator)
    scene["opacities"][rows] = values[pick].to(scene["opacities"])


def flat(scene: Scene, rows: Tensor, generator: torch.Generator) -> None:
    """Zero scales on one, two or all axes."""
    axes = torch.rand(int(rows.sum()), 3, generator=generator) < 0.6
    scene["scales"][rows] = torch.where(axes, 0, scene["scales"][rows])


def denormal(scene: Scene, rows: Tensor, generator: torch.Generator) -> None:
    """Denormals in random entries of every tensor; a Gaussian of denormal opacity is not drawn."""
    for name in ROWS:
        at = rows[:, None] & (torch.rand(scene[name].shape, generator=generator) < 0.4)
        scene[name][at] = 1e-41 if scene[name].dtype == torch.float32 else 1e-310


UNDRAWN: dict[str, Poison] = {
    "nan": put(float("nan")),
    "inf": put(float("inf")),
    "-inf": put(-float("inf")),
    "behind": behind,
    "faint": faint,
}
EXTREME: dict[str, Poison] = {
    "flat": flat,
    "denormal": denormal,
    "huge": scaled("scales", 1, 38),
    "tiny": scaled("scales", -44, -2),
    "far": scaled("means", 2, 15),
    "close": scaled("means", -40, 0),
    "quats": scaled("quats", -20, 6),
    # Larger colours make gradients that float32 cannot hold: they are multiplied by up to 99 and by squared distances.
    "bright": scaled("colors", 0, 20),
    "opaque": scaled("opacities", 0, 38),
}


def gradients(scene: Scene, seed: int) -> tuple[Rasterization, dict[str, Tensor]]:
    """The outputs, and the gradients of a randomly weighted sum of them."""
    leaves = {k: v.clone().requires_grad_() for k, v in scene.items() if isinstance(v, Tensor)}
    leaves["means2d"] = torch.zeros_like(scene["means"]).requires_grad_()
    out = rasterize(**(scene | leaves))
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(p.shape, generator=generator).to(p) for p in out[:3]]
    grads = torch.autograd.grad(out[:3], list(leaves.values()), weights)
    return Rasterization(*(t.detach() for t in out)), dict(zip(leaves, grads, strict=True))


def without(scene: Scene, rows: Tensor) -> Scene:
    return scene | {name: scene[name][~rows] for name in ROWS}


@pytest.mark.parametrize("kind", UNDRAWN)
def test_invalid_gaussians_change_nothing(kind: str) -> None:
    for seed in range(SEEDS):
        scene, rows, generator = fuzz_scene(seed)
        UNDRAWN[kind](scene, rows, generator)
        out, grads = gradients(scene, seed)
        expected, expected_grads = gradients(without(scene, rows), seed)
        for name in ("image", "alpha", "depth"):
            assert torch.equal(getattr(out, name), getattr(expected, name)), f"seed {seed}: {name}"
        assert torch.equal(out.radii[~rows], expected.radii), f"seed {seed}"
        for name, grad in grads.items():
            if name == "world_view":  # a sum over all rows; the invalid ones change how it is grouped
                torch.testing.assert_close(grad, expected_grads[name], rtol=1e-4, atol=1e-4)
            elif name == "background":
                assert torch.equal(grad, expected_grads[name]), f"seed {seed}"
            else:
                assert torch.equal(grad[~rows], expected_grads[name]), f"seed {seed}: {name}"
                assert not grad[rows].any(), f"seed {seed}: {name}"  # NaN counts as true


@pytest.mark.parametrize("kind", EXTREME)
def test_extreme_gaussians_change_only_pixels_they_cover(kind: str) -> None:
    for seed in range(SEEDS):
        scene, rows, generator = fuzz_scene(seed)
        EXTREME[kind](scene, rows, generator)
        out, grads = gradients(scene, seed)
        assert all(p.isfinite().all() for p in out[:3]), f"seed {seed}"
        assert out.alpha.numel() == 0 or (out.alpha.min() >= 0 and out.alpha.max() <= 1), f"seed {seed}"
        if kind != "bright":
            # The weights and the transmittance sum to 1, so a pixel is a mean of colours in 0 to 1. The tolerance is
            # the round-off of 90 layers.
            assert out.image.min() >= -1e-5 and out.image.max() <= 1 + 1e-5, f"seed {seed}"
        alone = rasterize(**without(scene, ~rows))
        untouched = alone.alpha == 0
        expected = rasterize(**without(scene, rows))
        for name in ("image", "alpha", "depth"):
            a, b = getattr(out, name), getattr(expected, name)
            assert torch.equal(a[..., untouched], b[..., untouched]), f"seed {seed}: {name}"
        for name, grad in grads.items():
            assert grad.isfinite().all(), f"seed {seed}: {name}"


@pytest.mark.parametrize("kind", [*UNDRAWN, "flat", "denormal", "tiny", "close"])
def test_fuzzed_scenes_match_the_reference(kind: str) -> None:
    """In double precision; of the extreme kinds, those whose covariance the reference can invert accurately."""
    for seed in range(0, SEEDS, 2):
        scene, rows, generator = fuzz_scene(seed, torch.float64)
        (UNDRAWN | EXTREME)[kind](scene, rows, generator)
        out = rasterize(**scene)
        expected = rasterize_reference(**(without(scene, rows) if kind in UNDRAWN else scene))
        for name in ("image", "alpha", "depth"):
            torch.testing.assert_close(getattr(out, name), getattr(expected, name), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_camera_that_is_not_finite_sees_the_background(value: float) -> None:
    scene = make_scene(60, dtype=torch.float32)
    background = scene["background"][:, None, None].expand(3, scene["height"], scene["width"])
    views = []
    for entry in range(12):  # the last row of the matrix is never read
        view = scene["world_view"].clone()
        view[entry // 4, entry % 4] = value
        views.append(scene | {"world_view": view})
    for broken in (*views, *(scene | {name: value} for name in ("fx", "fy", "cx", "cy"))):
        out, grads = gradients(broken, 0)
        assert torch.equal(out.image, background)
        assert not out.radii.any(), "an infinitely far Gaussian is culled as well"
        assert not any(grad.any() for name, grad in grads.items() if name != "background")


def test_visible_radii_agree_with_drawing_on_fuzzed_scenes() -> None:
    camera = ("world_view", "fx", "fy", "cx", "cy", "width", "height")
    for kind, poison in (UNDRAWN | EXTREME).items():
        for seed in range(0, SEEDS, 3):
            scene, rows, generator = fuzz_scene(seed)
            poison(scene, rows, generator)
            radii = visible_radii(scene["means"], scene["scales"], scene["quats"], **{k: scene[k] for k in camera})
            assert torch.equal(radii, rasterize(**scene).radii), f"{kind}, seed {seed}"
            assert radii.numel() == 0 or radii.min() >= 0
