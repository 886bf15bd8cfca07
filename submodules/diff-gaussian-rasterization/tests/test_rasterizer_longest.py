"""Blocks take the tiles with the longest lists first: which order this is, and that nothing but time depends on it."""

import ctypes
from typing import Any

import pytest
import torch
from emulated_as_float import ROOT, TILE_ORDERS, Drawn, draw, results
from rasterizer_scenes import make_scene
from test_rasterizer_cuda import Backend, emulator  # noqa: F401 (fixture)
from test_rasterizer_emulated import crowd
from torch import Tensor

pytestmark = pytest.mark.slow

INT32 = torch.iinfo(torch.int32)


@pytest.fixture(scope="module")
def probe(emulator: Backend) -> ctypes.CDLL:  # noqa: F811
    import cuda_emulator

    return ctypes.CDLL(str(cuda_emulator.build([ROOT / "tests" / "longest_probe.cu"], ROOT / "csrc")))


def order_of(probe: ctypes.CDLL, tile_start: Tensor) -> list[int]:
    starts, order = tile_start.to(torch.int32), torch.full((len(tile_start) - 1,), -1, dtype=torch.int32)
    probe.order_of(ctypes.c_void_p(starts.data_ptr()), ctypes.c_int64(len(order)), ctypes.c_void_p(order.data_ptr()))
    return order.tolist()


def expected_order(lengths: list[int]) -> list[int]:
    """By the bits of the length, longest first; in the order of the image where these are equal."""
    return sorted(range(len(lengths)), key=lambda tile: -max(lengths[tile], 0).bit_length())


@pytest.mark.parametrize("order", ["forward", "reverse", "1"])
@pytest.mark.parametrize("tiles", [1, 31, 256, 257, 5000])
def test_every_tile_once_longest_first(
    probe: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, tiles: int, order: str
) -> None:
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    lengths = torch.exp2(torch.rand(tiles, generator=torch.Generator().manual_seed(tiles)) * 12 - 2).long()
    found = order_of(probe, torch.nn.functional.pad(lengths.cumsum(0), (1, 0)))
    assert found == expected_order(lengths.tolist())
    assert sorted(found) == list(range(tiles))
    ordered = lengths[found].tolist()
    assert all(later < 2 * max(sooner, 1) for sooner, later in zip(ordered, ordered[1:], strict=False))
    assert tiles < 31 or 0 in ordered  # they come last
    assert ordered == sorted(ordered, key=lambda length: length == 0)


def test_every_power_of_two_has_a_class(probe: ctypes.CDLL) -> None:
    longest = INT32.max
    for length in (0, 1, 2, 3, 2**30, longest):  # in front of a list of one
        assert order_of(probe, torch.tensor([-1, 0, length])) == ([1, 0] if length > 1 else [0, 1])


def test_starts_that_are_none_still_give_every_tile_once(probe: ctypes.CDLL) -> None:
    # A GPU does not look into the tensors that it is called with; an order with a tile that is not there would be read
    # out of bounds.
    starts = torch.tensor([5, 5, 3, INT32.max, INT32.min, INT32.max, 0, -7, 100])
    assert sorted(order_of(probe, starts)) == list(range(8))


def test_tiles_that_are_not_drawn_come_last(probe: ctypes.CDLL, emulator: Backend) -> None:  # noqa: F811
    scene = make_scene(150, width=70, height=50, dtype=torch.float32)
    tiles = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    with emulator():
        order = order_of(probe, draw(scene, tiles=tiles).tile_start)
        every = draw(scene).tile_start.diff() > 0
    assert every[tiles.flatten()].all()
    assert set(order[: int(tiles.sum())]) == set(torch.nonzero(tiles.flatten()).flatten().tolist())


@pytest.fixture(scope="module")
def ordered(emulator: Backend, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:  # noqa: F811
    scenes = {
        f"{channels} channels, {str(dtype).removeprefix('torch.')}": crowd(channels, width=100, height=70, dtype=dtype)
        for channels in (3, 9)
        for dtype in (torch.float32, torch.float64)
    }
    jobs = {
        f"{name}, {order}": {"scene": scene, "outputs": "image alpha depth", "tiles": order}
        for name, scene in scenes.items()
        for order in TILE_ORDERS
    }
    return results(jobs, tmp_path_factory.mktemp("orders"))


def test_every_order_of_tiles_gives_the_same_bits(ordered: dict[str, dict[str, Any]]) -> None:
    for name, found in ordered.items():
        expected = ordered[name.rpartition(", ")[0] + ", longest"]
        assert all(torch.equal(a, b) for a, b in zip(found["drawn"], expected["drawn"], strict=True)), name
        assert all(torch.equal(value, expected["grads"][key]) for key, value in found["grads"].items()), name
        lengths = Drawn(*found["drawn"]).tile_start.diff()
        assert len({length.bit_length() for length in lengths.tolist()}) > 2  # there are orders to choose from
