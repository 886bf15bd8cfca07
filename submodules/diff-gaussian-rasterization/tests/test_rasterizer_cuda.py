"""The CUDA kernels against the CPU kernels: on a GPU, and on the emulator that compiles the same sources with g++."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import (
    Capacity,
    Rasterization,
    checks,
    median_depth,
    ops,
    rasterize,
    spherical_harmonics,
    visible_radii,
)
from diff_gaussian_rasterization.library import HAS_CUDA
from rasterizer_scenes import Scene, make_scene, with_cov3d
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

ROOT = Path(__file__).parents[1]
# In the repository only: a submodule that is tested on its own has no emulator.
EMULATOR = ROOT.parents[1] / "tests" / "cuda_emulator"

Backend = Callable[[], AbstractContextManager[str]]
"""Where the CUDA kernels run while the context lasts; yields the device to put tensors on."""


@contextmanager
def on_gpu() -> Iterator[str]:
    yield "cuda"


@contextmanager
def on_emulator() -> Iterator[str]:
    import cuda_emulator

    with cuda_emulator.instead_of_cpu("diff_gaussian_rasterization"):
        yield "cpu"


@pytest.fixture(scope="session")
def gpu() -> Backend:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch finds none that it can use")
    if not HAS_CUDA:
        pytest.skip("needs a GPU: there is one, but the rasterizer was built for CPUs only (FORCE_CUDA=1 builds both)")
    return on_gpu


@pytest.fixture(scope="session")
def emulator() -> Backend:
    if not EMULATOR.is_dir():
        pytest.skip(f"no CUDA emulator at {EMULATOR}: the rasterizer is tested outside of its repository")
    sys.path.insert(0, str(EMULATOR.parent))
    import cuda_emulator

    reason = cuda_emulator.why_not()
    if reason:
        pytest.skip(reason)
    cuda_emulator.load(ROOT / "csrc")
    return on_emulator


# The emulator compiles the CUDA sources first.
@pytest.fixture(params=[pytest.param("gpu", marks=pytest.mark.gpu), pytest.param("emulator", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.getfixturevalue(request.param)


def moved(scene: Scene, device: str) -> Scene:
    there = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in scene.items()}
    if "around" in scene:
        there["around"] = ops.Around(*(v.to(device) for v in scene["around"]))
    return there


def run(scene: Scene, device: str, outputs: str = "image alpha depth") -> dict[str, Tensor]:
    """All outputs on ``device``, and gradients of a fixed random functional of ``outputs``; returned on the CPU."""
    scene = moved(scene, device)
    inputs = {k: v.clone().requires_grad_() for k, v in scene.items() if isinstance(v, Tensor) and k != "tiles"}
    inputs["means2d"] = torch.zeros_like(scene["means"]).requires_grad_()
    out: Rasterization = rasterize(**(scene | inputs))
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=scene["means"].dtype, device=device)
    for name in outputs.split():
        image = getattr(out, name)
        weights = torch.randn(image.shape, generator=generator, dtype=torch.float64)
        loss = loss + (image * weights.to(image)).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    result = {k: v.detach() for k, v in out._asdict().items()}
    for (name, value), grad in zip(inputs.items(), grads, strict=True):
        result[f"grad of {name}"] = torch.zeros_like(value) if grad is None else grad
    return {k: v.cpu() for k, v in result.items()}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal up to round-off.

    float64: sums of some thousand terms in another order. float32: the error of alpha is 2e-7, but where alpha is that
    close to 1/255 one of the two may draw a Gaussian at a pixel that the other skips: a few pixels may be off by one
    such step, and gradients, which are sums over pixels, by a term of that size.
    """
    assert torch.equal(actual["radii"], expected["radii"])
    for name, value in expected.items():
        if value.numel() == 0 or name == "radii":
            continue
        error, scale = (actual[name] - value).abs(), value.abs().max().item()
        if value.dtype == torch.float64:
            assert error.max() <= 1e-11 * scale, (name, error.max(), scale)
        elif name.startswith("grad"):
            assert error.max() <= 2e-3 * scale, (name, error.max(), scale)
            assert error.mean() <= 2e-5 * scale, (name, error.mean(), scale)
        else:
            assert error.max() <= 4 * 1.5 / 255, (name, error.max())  # depths up to 4
            assert (error > 2e-5).double().mean() <= 1e-3, name


def compare(backend: Backend, scene: Scene, outputs: str = "image alpha depth") -> dict[str, Tensor]:
    expected = run(scene, "cpu", outputs)
    with backend() as device:
        actual = run(scene, device, outputs)
    assert_same(actual, expected)
    return actual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3, 5, 9])
def test_value_and_gradients_match_the_cpu(backend: Backend, dtype: torch.dtype, channels: int) -> None:
    # 5 and 9 channels, and depth behind them: one full chunk of features, and one that is not full.
    scene = make_scene(200, channels=channels, width=70, height=50, dtype=dtype)
    result = compare(backend, scene)
    for name in ("means", "scales", "quats", "opacities", "colors", "world_view", "background", "means2d"):
        assert result[f"grad of {name}"].abs().max() > 0, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outputs", ["image", "alpha", "depth", "image alpha"])
def test_gradient_of_each_output_alone(backend: Backend, dtype: torch.dtype, outputs: str) -> None:
    compare(backend, make_scene(80, dtype=dtype), outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_footprints_over_many_tiles(backend: Backend, dtype: torch.dtype) -> None:
    # Up to 63 tiles each, more than one thread writes alone; and lists longer than one batch.
    scene = make_scene(70, width=131, height=97, dtype=dtype, max_opacity=0.3)
    scene["scales"][::2] *= 8
    compare(backend, with_cov3d(scene))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_median_depth_matches_the_cpu(backend: Backend, dtype: torch.dtype) -> None:
    scene = make_scene(200, width=131, height=97, dtype=dtype)
    rest = {name: value for name, value in scene.items() if name not in ("colors", "background")}
    with backend() as device:
        found = median_depth(**moved(rest, device)).cpu()
    expected = median_depth(**rest)
    # At a pixel whose transmittance is 0.5 up to its last bits, the next Gaussian's depth is as right.
    assert float(torch.isclose(found, expected, atol=1e-5, rtol=1e-5).double().mean()) > 0.999
    assert (expected > 0).any()


WINDOWS = [(0, 0, 131, 97), (130, 96, 1, 1), (17, 5, 90, 80), (33, 50, 7, 40)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", WINDOWS)
def test_window_has_the_bits_of_the_whole(
    backend: Backend, dtype: torch.dtype, window: tuple[int, int, int, int]
) -> None:
    scene = make_scene(90, width=131, height=97, dtype=dtype)
    scene["scales"][::4] *= 8
    scene["opacities"][::3] = 1
    x, y, width, height = window
    with backend() as device:
        whole = rasterize(**moved(scene, device))
        drawn = rasterize(**moved(scene, device), window=window)
        for name in ("image", "alpha", "depth"):
            assert torch.equal(getattr(drawn, name), getattr(whole, name)[..., y : y + height, x : x + width]), name
    compare(backend, scene | {"window": window})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_tiles_match_the_cpu(backend: Backend, dtype: torch.dtype, share: float) -> None:
    # Large footprints, so that for some of them a whole warp writes the tiles.
    scene = make_scene(70, width=131, height=97, dtype=dtype, max_opacity=0.3)
    scene["scales"][::2] *= 8
    tiles = torch.rand(6, 8, generator=torch.Generator().manual_seed(0)) < share
    result = compare(backend, scene | {"window": (5, 1, 120, 95), "tiles": tiles})
    hidden = ~tiles.repeat_interleave(16, 0).repeat_interleave(16, 1)[:95, :120]
    assert torch.equal(result["image"][:, hidden], scene["background"][:, None].expand(3, int(hidden.sum())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gaussians_around_match_the_cpu(backend: Backend, dtype: torch.dtype) -> None:
    scene, other = (make_scene(70, dtype=dtype, max_opacity=0.3, seed=seed) for seed in (0, 1))
    compare(backend, scene | {"around": ops.Around(*(other[name] for name in ops.Around._fields))})


def test_finished_pixels_take_no_more_gaussians(backend: Backend) -> None:
    # Opaque and large: every pixel is finished after some of the 300, and what lies behind gets zero gradients.
    scene = make_scene(300, dtype=torch.float64, max_opacity=0.99)
    scene["scales"] = scene["scales"] + 1.0
    result = compare(backend, scene)
    # A pixel is finished where the next Gaussian would bring its transmittance under 1e-4. As that one has an alpha of
    # at most 0.99, the transmittance is under 0.01 already.
    assert result["alpha"].min() > 0.98
    assert (result["grad of colors"].abs().sum(1) == 0).sum() > 100


@pytest.mark.parametrize("size", [(1, 1), (3, 391), (391, 3), (17, 15)])
def test_odd_image_sizes(backend: Backend, size: tuple[int, int]) -> None:
    compare(backend, make_scene(30, width=size[0], height=size[1]))


def test_empty_scene_is_background(backend: Backend) -> None:
    scene = make_scene(0, dtype=torch.float32)
    result = compare(backend, scene, "image")
    assert torch.equal(result["image"], scene["background"][:, None, None].expand(3, 37, 50))


def test_scene_behind_the_camera_is_background(backend: Backend) -> None:
    scene = make_scene(40, dtype=torch.float32)
    scene["means"] = scene["means"] - torch.tensor([0.0, 0.0, 9.0])
    result = compare(backend, scene)
    assert int(result["radii"].max()) == 0 and float(result["alpha"].max()) == 0
    assert float(result["grad of means"].abs().max()) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["means", "scales", "quats", "opacities", "colors"])
def test_bad_gaussians_leave_the_others_alone(backend: Backend, name: str, bad: float) -> None:
    scene = make_scene(60, dtype=torch.float32)
    rows = torch.arange(0, 60, 7)
    broken = scene | {name: scene[name].clone()}
    broken[name][rows, 0] = bad
    keep = torch.ones(60, dtype=torch.bool)
    keep[rows] = False
    without = scene | {k: scene[k][keep] for k in ("means", "scales", "quats", "opacities", "colors")}
    with backend() as device:
        actual, expected = run(broken, device), run(without, device)
    assert torch.equal(actual["image"], expected["image"]) and torch.equal(actual["depth"], expected["depth"])
    for key in ("means", "scales", "quats", "opacities", "colors", "world_view", "background"):
        assert actual[f"grad of {key}"].isfinite().all(), key


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e4, 1e15])
def test_extreme_scales_stay_finite(backend: Backend, scale: float) -> None:
    scene = make_scene(60, dtype=torch.float32)
    scene["scales"][::5] = scale
    with backend() as device:
        result = run(scene, device)
    assert result["alpha"].min() >= 0 and result["alpha"].max() <= 1
    for name, value in result.items():
        assert value.isfinite().all(), name


def test_visible_radii_match_the_cpu(backend: Backend) -> None:
    scene = make_scene(300, dtype=torch.float32)
    scene["means"] = scene["means"] * 4 - 3
    names = ("means", "scales", "quats", "world_view", "fx", "fy", "cx", "cy", "width", "height")
    tiles = torch.rand(-(-scene["height"] // 16), -(-scene["width"] // 16), generator=torch.Generator().manual_seed(0))
    counts = []
    for part in ({}, {"tiles": tiles < 0.4}):
        arguments = {k: scene[k] for k in names} | part
        expected = visible_radii(**arguments)
        with backend() as device:
            actual = visible_radii(**moved(arguments, device)).cpu()
        assert torch.equal(actual, expected)
        counts.append(int((expected > 0).sum()))
    assert 0 < counts[1] < counts[0] < 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_match_the_cpu(backend: Backend, degree: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(degree)
    dirs = torch.randn(300, 3, generator=generator, dtype=torch.float64).to(dtype)
    dirs[7] = 0
    sh = torch.randn(300, 16, 4, generator=generator, dtype=torch.float64).to(dtype)
    weights = torch.randn(300, 4, generator=generator, dtype=torch.float64).to(dtype)

    def both(device: str) -> list[Tensor]:
        inputs = [dirs.to(device).requires_grad_(), sh.to(device).requires_grad_()]
        out = spherical_harmonics(degree, *inputs)
        return [t.detach().cpu() for t in (out, *torch.autograd.grad((out * weights.to(device)).sum(), inputs))]

    # Sums of up to 16 products, fused or not.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    expected = both("cpu")
    with backend() as device:
        for actual, reference in zip(both(device), expected, strict=True):
            torch.testing.assert_close(actual, reference, atol=tolerance, rtol=tolerance)


def test_more_pairs_than_an_int32_counts_are_refused(backend: Backend) -> None:
    # 8192 Gaussians, each on all of the 512 x 512 tiles.
    count, size = 8192, 8192
    with backend() as device:
        options: dict[str, Any] = {"dtype": torch.float32, "device": device}
        arguments = (
            torch.full((count, 2), size / 2, **options),
            torch.tensor([[1e-9, 0.0, 1e-9]], **options).expand(count, 3),
            torch.ones(count, **options),
            torch.ones(count, dtype=torch.int32, device=device),
            torch.full((count, 1), 0.5, **options),
            torch.ones(count, 1, **options),
            torch.zeros(1, **options),
        )
        with pytest.raises(RuntimeError, match=r"rasterize: 2147483648 \(tile, Gaussian\) pairs, at most 2\^31 - 1"):
            torch.ops.diff_gaussian_rasterization.composite(*arguments, size, size)


@pytest.mark.gpu
def test_runs_have_the_same_bits(gpu: Backend) -> None:
    scene = make_scene(5000, width=400, height=300, dtype=torch.float32)
    first, second = (run(scene, "cuda") for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("order", ["reverse", "1", "2"])
def test_order_of_threads_does_not_matter(emulator: Backend, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Between two barriers the emulator runs the threads in the given order: a missing barrier changes the bits.
    scene = make_scene(120, channels=5, width=70, height=50, dtype=torch.float32)
    with emulator() as device:
        expected = run(scene, device)
        monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
        for name, value in run(scene, device).items():
            assert torch.equal(value, expected[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("capacity", [None, Capacity()])
def test_a_step_waits_for_the_device_once_and_with_a_capacity_never(gpu: Backend, capacity: Capacity | None) -> None:
    # For the number of pairs, which the allocation needs; nothing else may wait. Torch does not see waits for events.
    scene = moved(make_scene(500, dtype=torch.float32), "cuda")
    inputs = {k: v.requires_grad_() for k, v in scene.items() if isinstance(v, Tensor)}
    inputs["means2d"] = torch.zeros_like(scene["means"]).requires_grad_()

    def step() -> None:
        image = rasterize(**(scene | inputs), capacity=capacity).image
        torch.autograd.grad(image.sum(), list(inputs.values()), allow_unused=True)

    step()  # warm-up
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(warning.message) for warning in caught) == (capacity is None)


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "HAS_CUDA", False)
    scene = make_scene(3)
    with FakeTensorMode():  # CUDA tensors without a GPU
        scene |= {k: torch.empty(v.shape, device="cuda") for k, v in scene.items() if isinstance(v, Tensor)}
        with pytest.raises(ValueError, match="means is on cuda:0, but .* built for CPUs only; rebuild .* FORCE_CUDA=1"):
            rasterize(**scene)
