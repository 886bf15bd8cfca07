"""The CUDA sources under the emulator, as production runs them, and where their own invariants break.

Double goes through the sizes of float (emulated_as_float.py), so that batches, slots and chunks are held against the
readable reference at double's precision, which float would hide.
"""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import rasterize
from diff_gaussian_rasterization.reference import rasterize_reference
from emulated_as_float import EMULATOR, NAME, ROOT, Drawn, draw, results
from rasterizer_scenes import Scene, make_scene, screen_scene
from test_rasterizer_cuda import run
from test_rasterizer_hostile import fuzz_scene, put, scaled
from test_rasterizer_ops import gradients
from torch import Tensor

pytestmark = pytest.mark.slow

CLOSE = 1e-10
"""Of the largest value: sums of some thousand terms in another order, in double."""
FEATURES = {
    "N=3": (3, "image alpha"),
    "N=4": (3, "image alpha depth"),
    "N=8": (6, "image depth"),
    "2 x N=8": (9, "image depth"),
}
"""What fills a chunk of the backward kernel: channels, and outputs that have gradients."""


def crowd(channels: int, **settings: Any) -> Scene:
    """More Gaussians on a tile than a batch holds."""
    scene = make_scene(190, channels=channels, max_opacity=0.4, **({"width": 50, "height": 37} | settings))
    scene["scales"] = scene["scales"] * 2.5
    return scene


def over_tiles() -> Scene:
    """16 tiles, a power of two; every other Gaussian on so many that a whole warp writes them."""
    scene = make_scene(60, width=64, height=64, max_opacity=0.3)
    scene["scales"][::2] *= 8
    return scene | {"cx": 32.0, "cy": 32.0}


CAPACITIES = (100, 100_000)
"""Pairs that are expected: too few and too many."""
JOBS: dict[str, dict[str, Any]] = {
    **{name: {"scene": crowd(channels), "outputs": outputs} for name, (channels, outputs) in FEATURES.items()},
    **{f"miscount {n}": {"scene": over_tiles(), "outputs": "image depth", "miscount": n} for n in (0, 1, 40, -1)},
    "checked": {"scene": over_tiles(), "outputs": "image", "miscount": -1, "check": True},
    **{
        f"miscount {n} in {size}": {"scene": over_tiles(), "outputs": "image depth", "miscount": n, "capacity": size}
        for n in (0, 1, 40, -1)
        for size in CAPACITIES
    },
    **{
        f"checked in {n}": {"scene": over_tiles(), "outputs": "image", "miscount": -1, "check": True, "capacity": n}
        for n in CAPACITIES
    },
    "checked and right": {"scene": over_tiles(), "outputs": "image", "check": True},
}


@pytest.fixture(scope="module")
def emulator() -> Any:
    if not EMULATOR.joinpath("cuda_emulator").is_dir():
        pytest.skip(f"no CUDA emulator in {EMULATOR}: the rasterizer is tested outside of its repository")
    sys.path.insert(0, str(EMULATOR))
    import cuda_emulator

    if reason := cuda_emulator.why_not():
        pytest.skip(reason)
    return cuda_emulator


@pytest.fixture(scope="module")
def as_float(emulator: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return results(JOBS, tmp_path_factory.mktemp("as_float"))


@pytest.fixture
def emulated(emulator: Any) -> Iterator[None]:
    """The operators of the CPU are those of the CUDA sources, compiled as for a GPU."""
    emulator.load(ROOT / "csrc")
    with emulator.instead_of_cpu(NAME):
        yield


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        scale = max(value.abs().max().item(), 1e-3) if value.numel() else 1.0
        torch.testing.assert_close(actual[name], value, atol=CLOSE * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", FEATURES)
def test_sizes_of_float_match_the_reference(as_float: dict[str, dict[str, Any]], name: str) -> None:
    found, (_, outputs) = as_float[name], FEATURES[name]
    scene = JOBS[name]["scene"]
    assert Drawn(*found["drawn"]).tile_start.diff().max() > 2 * 64  # batches of a list follow on each other
    expected = rasterize_reference(**scene)
    assert_close(found["grads"], {k: getattr(expected, k) for k in ("image", "alpha", "depth")})
    grads = gradients(rasterize_reference, scene, outputs)
    assert_close(found["grads"], {f"grad of {k}": v for k, v in grads.items()})


# ------------------------------------------------------------------------------------------- counts that are wrong


def pairs(drawn: Drawn) -> list[tuple[int, int, int]]:
    """(rank, number of the pair, tile) of everything in a list of a tile, in order."""
    tile = torch.repeat_interleave(torch.arange(len(drawn.tile_start) - 1), drawn.tile_start.diff())
    listed = drawn.lists[:, : len(tile)]
    return sorted(zip(listed[0].tolist(), listed[1].tolist(), tile.tolist(), strict=True))


@pytest.mark.parametrize("miscount", [1, 40])
def test_pairs_that_are_counted_but_not_met_change_nothing(as_float: dict[str, dict[str, Any]], miscount: int) -> None:
    right, wrong = (as_float[f"miscount {n}"] for n in (0, miscount))
    before, after = Drawn(*right["drawn"]), Drawn(*wrong["drawn"])
    assert after.lists.shape[1] > before.lists.shape[1] == before.tile_start[-1] == after.tile_start[-1]
    assert [(rank, tile) for rank, _, tile in pairs(after)] == [(rank, tile) for rank, _, tile in pairs(before)]
    for name, value in right["grads"].items():
        assert torch.equal(wrong["grads"][name], value), name


def test_pairs_that_are_met_but_not_counted_are_left_out(as_float: dict[str, dict[str, Any]]) -> None:
    # Writing over the end would put pairs of one Gaussian into those of the next.
    right, wrong = (as_float[f"miscount {n}"] for n in (0, -1))
    before, after = Drawn(*right["drawn"]), Drawn(*wrong["drawn"])
    last = set((before.pair_start[1:] - 1)[::3][before.pair_start.diff()[::3] > 0].tolist())
    assert len(last) > 10
    expected = [(rank, tile) for rank, number, tile in pairs(before) if number not in last]
    assert [(rank, tile) for rank, _, tile in pairs(after)] == expected
    assert all(value.isfinite().all() for value in wrong["grads"].values())


def test_wrong_counts_are_reported_where_asked_for(as_float: dict[str, dict[str, Any]]) -> None:
    drawn = Drawn(*as_float["miscount 0"]["drawn"])
    wrong = int((drawn.pair_start.diff()[::3] > 0).sum())
    expected = f"{wrong} of {len(drawn.order)} Gaussians meet other tiles when they are written than when they were"
    checked = ("checked", *(f"checked in {size}" for size in CAPACITIES))
    assert all(expected in as_float[name]["error"] for name in checked)
    assert "error" not in as_float["checked and right"]


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("miscount", [0, 1, 40, -1])
def test_wrong_counts_with_a_capacity_are_as_without_one(
    as_float: dict[str, dict[str, Any]], miscount: int, capacity: int
) -> None:
    plain, ample = as_float[f"miscount {miscount}"], as_float[f"miscount {miscount} in {capacity}"]
    listed = Drawn(*plain["drawn"]).tile_start[-1]
    for name, a, b in zip(Drawn._fields, plain["drawn"], ample["drawn"], strict=True):
        assert torch.equal(a[:, :listed], b[:, :listed]) if name == "lists" else torch.equal(a, b), name
    assert all(torch.equal(ample["grads"][name], value) for name, value in plain["grads"].items())


# ----------------------------------------------------------------------------------------------- as production runs


def test_thousands_of_gaussians_match_the_cpu(emulator: Any) -> None:
    scene = screen_scene(4000, 160, 90, pixels=3.0)
    double = {k: v.double() if isinstance(v, Tensor) else v for k, v in scene.items()}
    expected = run(double, "cpu", "image depth")
    emulator.load(ROOT / "csrc")
    with emulator.instead_of_cpu(NAME):
        assert_close(run(double, "cpu", "image depth"), expected)


def test_antialiasing_matches_the_reference(emulated: None) -> None:
    scene = make_scene() | {"antialiasing": True}
    scene["scales"] = scene["scales"] * 0.2  # footprints of about the filter's width
    expected = rasterize_reference(**scene)
    assert_close(rasterize(**scene)._asdict(), expected._asdict())
    assert_close(gradients(rasterize, scene), gradients(rasterize_reference, scene))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [3, 9])
def test_pairs_behind_what_is_opaque_have_no_row(emulated: None, dtype: torch.dtype, channels: int) -> None:
    scene = make_scene(190, channels=channels, dtype=dtype, max_opacity=1.0)
    scene["scales"] *= 2.5
    expected = run(scene, "cpu")
    drawn = draw(scene)
    hidden = (drawn.pair_start.diff() > 0) & (expected["grad of colors"][drawn.order.long()] == 0).all(1)
    assert int(hidden.sum()) > 20
    torch.use_deterministic_algorithms(True)  # what is allocated is then full of NaN
    try:
        assert torch.empty(1).isnan()
        found = run(scene, "cpu")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("order", ["forward", "reverse", "1"])
def test_tiles_are_counted_for_what_is_drawn_wherever_it_lies(
    emulated: None, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    scene = make_scene(700, width=64, height=64)  # three blocks, the last one not full
    scene["means"][::3, 2] *= -1  # behind the camera
    scene["opacities"][::5] = 1e-3  # meets no tile
    depths = scene["means"] @ scene["world_view"][2, :3] + scene["world_view"][2, 3]
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    radii = rasterize(**scene).radii
    drawn = draw(scene)
    visible = torch.nonzero(radii > 0).flatten()
    assert 256 < len(visible) < 700
    assert torch.equal(drawn.order.long(), visible[depths[visible].argsort(stable=True)])
    counts = drawn.pair_start.diff()
    assert torch.equal(counts, torch.bincount(drawn.lists[0], minlength=len(visible)).int())
    assert not counts[drawn.order % 5 == 0].any() and counts[drawn.order % 5 != 0].all()
    assert drawn.lists.shape[1] == drawn.pair_start[-1] == drawn.tile_start[-1] > 700


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_in_depth_keep_the_order_of_the_input(emulator: Any, dtype: torch.dtype) -> None:
    scene = make_scene(400, dtype=dtype) | {"world_view": torch.eye(4, dtype=dtype)}
    scene["means"][:, 2] = torch.arange(400, dtype=dtype).remainder(3) + 1  # three depths
    cpu = draw(scene)
    emulator.load(ROOT / "csrc")
    with emulator.instead_of_cpu(NAME):
        cuda = draw(scene)
    assert torch.equal(cuda.order, cpu.order) and len(cpu.order) > 300
    depth = scene["means"][cpu.order, 2]
    assert torch.equal(cpu.order, cpu.order[torch.argsort(depth * 400 + cpu.order)])
    torch.testing.assert_close(cuda.image, cpu.image, atol=2e-5 if dtype == torch.float32 else 1e-12, rtol=0)


POISONS = [put(float("nan")), put(float("inf")), put(-1e30), scaled("scales", -30, 15), scaled("opacities", -30, 3),
           scaled("means", -5, 8), scaled("quats", -20, 15)]  # fmt: skip


@pytest.mark.parametrize("seed", range(14))
def test_broken_and_extreme_gaussians_are_as_on_the_cpu(emulator: Any, seed: int) -> None:
    scene, rows, generator = fuzz_scene(seed, torch.float64)
    POISONS[seed % len(POISONS)](scene, rows, generator)
    expected = run(scene, "cpu", "image depth")
    emulator.load(ROOT / "csrc")
    with emulator.instead_of_cpu(NAME):
        actual = run(scene, "cpu", "image depth")
    # Whole pixels, rounded up: a last bit may be one of them.
    radii = actual.pop("radii") - expected.pop("radii")
    assert radii.numel() == 0 or radii.abs().max() <= 1
    assert_close(actual, expected)


@pytest.mark.parametrize("name", ["means", "scales", "quats", "opacities", "colors", "background", "world_view"])
def test_gradients_are_central_differences(emulated: None, name: str) -> None:
    # Few Gaussians, wide and faint: no pixel is within the difference step of 1/255, 0.99 or 1e-4, where values jump.
    scene = make_scene(4, width=9, height=7, max_opacity=0.5) | {"fx": 8.0, "fy": 8.0, "cx": 4.6, "cy": 3.4}
    scene["scales"] = scene["scales"] + 1.0

    def outputs(tensor: Tensor) -> tuple[Tensor, ...]:
        return tuple(rasterize(**(scene | {name: tensor}))[:3])

    assert torch.autograd.gradcheck(outputs, scene[name].clone().requires_grad_(), eps=1e-6, atol=1e-6, fast_mode=True)
