"""The emulator that runs CUDA sources on the CPU: correct kernels give correct results, errors are found."""

import ctypes
from pathlib import Path

import cuda_emulator
import numpy as np
import pytest

PROBE = Path(cuda_emulator.__file__).parent / "probe.cu"
ORDERS = ["forward", "reverse", "1", "2"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_emulator.why_not() is not None, reason=cuda_emulator.why_not() or ""),
]


@pytest.fixture(scope="module")
def probe() -> ctypes.CDLL:
    library = ctypes.CDLL(str(cuda_emulator.build([PROBE], PROBE.parent)))
    library.run.restype = ctypes.c_char_p
    return library


def at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def run(probe: ctypes.CDLL, kernel: str, size: int = 128) -> tuple[str, np.ndarray]:
    """Error message and output of a kernel that 2 blocks of 64 threads run on the input 0, 1, 2..."""
    given, result = np.arange(128, dtype=np.int32), np.zeros(size, dtype=np.int32)
    return probe.run(kernel.encode(), at(given), at(result)).decode(), result


@pytest.mark.parametrize("order", ORDERS)
def test_results_of_the_device_in_any_order(probe: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
    error, result = run(probe, "reversed")
    assert not error and result.tolist() == [*range(63, -1, -1), *range(127, 63, -1)]
    error, result = run(probe, "sums")
    # The sum of all; of the first halves of the four warps; the left neighbour of lane 5; for lanes 5 and 13, the first
    # lane of their eight.
    halves = sum(sum(range(32 * warp, 32 * warp + 16)) for warp in range(4))
    assert not error and result[:5].tolist() == [128 * 127 // 2, halves, 4, 0, 8]
    error, result = run(probe, "votes")
    assert not error
    assert result.view(np.uint32)[:8].tolist() == [0xAAAAAAAA, 32, 1, 1, 0, 1, 0xFF, 32]
    error, result = run(probe, "some_return_early")
    assert not error and result[:40].tolist() == [i + (32 if i < 32 else 8) for i in range(40)]
    assert not result[40:64].any()


def test_a_missing_barrier_shows_as_dependence_on_the_order(
    probe: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for order in ("forward", "reverse"):
        monkeypatch.setenv("CUDA_EMULATOR_ORDER", order)
        results.append(run(probe, "without_barrier")[1].tolist())
    assert results[0] != results[1]


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent_barrier", "different barriers: block (0, 0, 0); 5 at the barrier"),
        ("missing_lanes", "deadlock: block (0, 0, 0); 48 at the barrier"),
        ("outside_own_mask", "lane 1 is not in its own mask"),
    ],
)
def test_wrong_waits_end_with_their_places(probe: ctypes.CDLL, kernel: str, message: str) -> None:
    error, _ = run(probe, kernel)
    assert message in error and "probe.cu:" in error
    assert not run(probe, "reversed")[0]  # the next launch is not affected


def test_a_lane_that_is_absent_gives_no_number(probe: ctypes.CDLL) -> None:
    error, result = run(probe, "from_absent_lane")
    assert not error and result[:16].tolist() == [-1] * 16


def test_threads_and_blocks_count_along_x_first(probe: ctypes.CDLL) -> None:
    result = np.zeros(360, dtype=np.int32)
    probe.run_places(at(result))
    expected = [y * 100 + by * 10 + bx for by in range(3) for bx in range(2) for y in range(6) for _ in range(10)]
    assert result.tolist() == expected


def test_sorts_as_cub(probe: ctypes.CDLL) -> None:
    keys = np.array([0.5, -0.0, -3, np.inf, 0.0, -np.inf, 0.5, 1e-40], dtype=np.float32)
    values, keys_out, values_out = np.arange(8, dtype=np.int32), np.empty_like(keys), np.empty(8, dtype=np.int32)
    probe.sort(at(keys), at(values), at(keys_out), at(values_out), 8)
    # Stable, and the two zeros are equal.
    assert values_out.tolist() == [5, 2, 1, 4, 7, 0, 6, 3]
    assert keys_out.tolist() == [float(keys[i]) for i in values_out]
    bits = np.array([0x13, 0x02, 0x21, 0x11], dtype=np.uint32)
    out = np.empty_like(bits)
    assert probe.sort_low_bits(at(bits), at(out), 4, 4) == 0
    assert out.tolist() == [0x21, 0x11, 0x02, 0x13]


def test_scans_and_selects_as_cub(probe: ctypes.CDLL) -> None:
    given = np.array([3, 1, 4, 1, 5, 9, 2, 6], dtype=np.int32)
    inclusive, exclusive, odd = (np.zeros(8, dtype=np.int32) for _ in range(3))
    kept = np.zeros(1, dtype=np.int32)
    probe.scan_and_select(at(given), at(inclusive), at(exclusive), at(odd), at(kept), 8)
    assert inclusive.tolist() == given.cumsum().tolist()
    assert exclusive.tolist() == (given.cumsum() - given).tolist()
    assert odd[: kept[0]].tolist() == [3, 1, 1, 5, 9]
