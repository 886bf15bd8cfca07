"""Lists that are made before the number of pairs is known: the same bits however many were expected."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import Around, Capacity, rasterize
from emulated_as_float import Drawn, draw
from rasterizer_scenes import Scene, make_scene
from test_rasterizer_cuda import Backend, backend, emulator, gpu, moved, run  # noqa: F401 (fixtures)

LAUNCHES = 6
"""Kernels behind the count: pairs, what is left of the capacity, ranks by tile, the tiles, their order, the image. cub
sorts."""


def scenes(dtype: torch.dtype) -> dict[str, Scene]:
    """Of one view each: what it is -> the scene."""
    usual, other = (make_scene(150, width=70, height=50, channels=c, dtype=dtype) for c in (3, 5))
    large = usual | {"scales": usual["scales"] * torch.where(torch.arange(150) % 2 == 0, 8.0, 1.0).to(dtype)[:, None]}
    behind = usual | {"means": usual["means"] * torch.tensor([1.0, 1.0, -1.0], dtype=dtype)}
    behind |= {"world_view": torch.eye(4, dtype=dtype)}
    names = ("means", "opacities", "colors", "scales", "quats")
    return {
        "usual": usual,
        "5 channels": other,
        "written by whole warps": large,
        "window": usual | {"window": (9, 3, 40, 30)},
        "tiles": usual | {"tiles": torch.tensor([[1, 0, 1, 1, 0]] * 4) > 0},
        "around": usual | {"around": Around(*(make_scene(60, dtype=dtype, seed=1)[name] for name in names))},
        "antialiased": usual | {"antialiasing": True},
        "nothing in view": behind,
        "nothing at all": usual | {name: usual[name][:0] for name in names},
    }


def pairs_of(scene: Scene, device: str) -> int:
    capacity = Capacity()
    rasterize(**moved(scene, device), capacity=capacity)
    for pairs in range(capacity.pairs + 1):  # a capacity remembers a quarter more
        if pairs + pairs // 4 >= capacity.pairs:
            return pairs
    raise AssertionError


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("what", scenes(torch.float32))
def test_any_capacity_gives_the_same_bits_and_gradients(backend: Backend, what: str, dtype: torch.dtype) -> None:  # noqa: F811
    scene = scenes(dtype)[what]
    with backend() as device:
        expected, pairs = run(scene, device), pairs_of(scene, device)
        assert (pairs > 200) == (not what.startswith("nothing"))
        for expects in {1, pairs // 2, pairs - 1, pairs, pairs + 1, 3 * pairs, 10**9} - {-1}:
            capacity = Capacity(expects)
            found = run(scene | {"capacity": capacity}, device)
            assert all(torch.equal(found[name], value) for name, value in expected.items()), expects
            assert capacity.pairs == max(pairs + pairs // 4, expects - expects // 64)


@pytest.mark.parametrize("expects", [1, 300, 10**6])
def test_what_the_backward_pass_reads_has_the_same_bits(backend: Backend, expects: int) -> None:  # noqa: F811
    with backend() as device:
        scene = moved(make_scene(150, width=70, height=50), device)
        expected = draw(scene)
        for name, value in zip(Drawn._fields, draw(scene, capacity=expects), strict=True):
            assert value.is_contiguous() and torch.equal(value, getattr(expected, name)), name


def test_a_scene_that_grows_and_shrinks_outgrows_its_capacity_and_forgets_it(backend: Backend) -> None:  # noqa: F811
    capacity = Capacity()
    with backend() as device:
        for count in (3, 40, 41, 400, 0, 5):  # the first knows nothing; the second, fourth and last do not fit
            scene = moved(make_scene(count, dtype=torch.float32), device)
            assert torch.equal(rasterize(**scene, capacity=capacity).image, rasterize(**scene).image), count
    most = capacity.pairs
    for _ in range(300):
        capacity.after(100)
    assert most > 500 and capacity.pairs == 125


@pytest.mark.parametrize("order", ["reverse", "1"])
def test_order_of_threads_does_not_matter(emulator: Backend, order: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    scene = scenes(torch.float32)["written by whole warps"]
    with emulator() as device:
        expected, pairs = run(scene, device), pairs_of(scene, device)
        monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
        for expects in (pairs // 2, 2 * pairs):
            found = run(scene | {"capacity": Capacity(expects)}, device)
            assert all(torch.equal(found[name], value) for name, value in expected.items()), expects


@pytest.mark.parametrize("expects", [1, 10**6])
def test_the_host_waits_once_with_work_behind_it(
    emulator: Backend,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expects: int,
) -> None:
    waits = tmp_path / "waits"
    scene = make_scene(150, dtype=torch.float32)
    with emulator() as device:
        monkeypatch.setenv("CUDA_EMULATOR_WAITS", str(waits))
        rasterize(**moved(scene, device), capacity=Capacity(expects))
        assert waits.read_text() == f"{LAUNCHES}\n"
        waits.unlink()
        run(scene | {"capacity": Capacity(expects)}, device)  # nor does the backward pass wait
        assert waits.read_text() == f"{LAUNCHES}\n"


def test_more_pairs_than_an_int32_counts_are_refused(backend: Backend) -> None:  # noqa: F811
    count, size = 8192, 8192  # each on all of the 512 x 512 tiles
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
        # A window of few tiles is drawn in time; the whole image has too many pairs for any capacity.
        with pytest.raises(RuntimeError, match=r"rasterize: 2147483648 \(tile, Gaussian\) pairs, at most 2\^31 - 1"):
            torch.ops.diff_gaussian_rasterization.composite(*arguments, size, size, capacity=1000)


@pytest.mark.parametrize("capacity", [-1, -(2**40)])
def test_a_capacity_below_zero_is_refused(backend: Backend, capacity: int) -> None:  # noqa: F811
    refused = f"rasterize: capacity is {capacity}, expected 0 pairs or more"
    with backend() as device, pytest.raises(RuntimeError, match=refused):
        draw(moved(make_scene(5), device), capacity=capacity)


def test_a_capacity_is_updated_on_a_cpu_too_and_changes_nothing() -> None:
    scene, capacity = make_scene(150), Capacity(1)
    for _ in range(2):
        assert torch.equal(rasterize(**scene, capacity=capacity).image, rasterize(**scene).image)
    assert capacity.pairs > 100
