"""The trees against all pairs, on hard inputs: copies, lines, clusters, large coordinates, few points."""

from collections.abc import Callable

import pytest
import torch
from simple_knn._C import distCUDA2
from simple_knn.reference import mean_squared_distance
from torch import Tensor

# Around the sizes of a leaf (16; CUDA: 8), of a packet of queries (4 to 16), of a block of threads (128), and one that
# needs several levels of the tree.
SIZES = [2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100, 129, 1999]


def random(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clusters(count: int) -> Tensor:
    """Dense clusters of very different size, far from each other."""
    place = random(7, seed=1)[torch.arange(count) % 7] * 1e4
    return place + random(count, seed=2) * 10.0 ** (torch.arange(count) % 7 - 4)[:, None]


CLOUDS: dict[str, Callable[[int], Tensor]] = {
    "gaussian": random,
    "clusters": clusters,
    "plane": lambda n: random(n) * torch.tensor([1.0, 1.0, 0.0]),
    "line along an axis": lambda n: random(n) * torch.tensor([0.0, 1.0, 0.0]),
    "slanted line": lambda n: random(n)[:, :1] * torch.tensor([1.0, -2.0, 3.0]),
    "lattice": lambda n: (random(n) * 3).round(),
    "pairs of copies": lambda n: random(n)[torch.arange(n) // 2],
    "one place": lambda n: random(1).expand(n, 3),
    "one place and an outlier": lambda n: torch.cat([random(1).expand(n - 1, 3), random(1, seed=5)]),
    "far from the origin": lambda n: random(n) + torch.tensor([4.0e6, -2.0e6, 1.0e3]),
    "sorted": lambda n: random(n).sort(dim=0).values,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("cloud", CLOUDS)
def test_equals_all_pairs(device: str, cloud: str, dtype: torch.dtype) -> None:
    for count in SIZES:
        points = CLOUDS[cloud](count).to(device, dtype)
        # The same differences, squared and summed; only fused operations may round differently, by a few steps.
        torch.testing.assert_close(
            distCUDA2(points), mean_squared_distance(points), rtol=8 * torch.finfo(dtype).eps, atol=0, msg=str(count)
        )


def test_by_hand(device: str) -> None:
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [9, 9, 9]], device=device)
    result = distCUDA2(points)
    assert float(result[0]) == pytest.approx((1 + 4 + 9) / 3)
    assert float(result[1]) == pytest.approx((1 + 5 + 10) / 3)


def test_too_few_points_count_those_that_exist(device: str) -> None:
    def result(*points: list[float]) -> list[float]:
        return distCUDA2(torch.tensor(points, device=device).reshape(-1, 3)).tolist()

    assert result() == []
    assert result([1.0, 1, 1]) == [0.0]
    assert result([0.0, 0, 0], [3, 4, 0]) == [25.0, 25.0]
    assert result([0.0, 0, 0], [1, 0, 0], [3, 0, 0]) == [5.0, 2.5, 6.5]


def test_same_bits_for_any_number_of_threads() -> None:
    points = clusters(50_000).float()
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            results.append(distCUDA2(points))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_same_bits_for_any_order_of_the_points(device: str) -> None:
    points = clusters(20_000).float().to(device)
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(3)).to(device)
    result = distCUDA2(points)
    assert torch.equal(result[order], distCUDA2(points[order]))
    assert torch.equal(result, distCUDA2(points))


@pytest.fixture(scope="module")
def many() -> tuple[Tensor, Tensor]:
    """More points than the reference can take, and the result of the CPU kernels."""
    points = clusters(30_000)
    return points, distCUDA2(points)


def test_cpu_and_cuda_agree(many: tuple[Tensor, Tensor], device: str) -> None:
    points, expected = many
    # Only fused operations may round differently.
    torch.testing.assert_close(distCUDA2(points.to(device)).cpu(), expected, rtol=1e-15, atol=0)


def test_many_copies_stay_fast(device: str) -> None:
    # 200,000 copies: a tree that descends into boxes at an equal distance would compare 4e10 pairs, for minutes.
    assert distCUDA2(torch.ones(200_000, 3, device=device)).abs().max() == 0


# Both zeros, the smallest numbers (their squares underflow), the largest (their differences and squares overflow).
AWKWARD = [0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-20, 1.0, 1.0000001, -3.0, 1e18, 1e30, 3.4e38, -3.4e38]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
def test_awkward_coordinates(device: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(7)
    for count in [*range(1, 30), 200]:
        awkward = torch.tensor(AWKWARD)[torch.randint(len(AWKWARD), (count, 3), generator=generator)]
        ordinary = torch.rand(count, 3, generator=generator)
        mixed = torch.where(torch.rand(count, 3, generator=generator) < 0.5, awkward, ordinary)
        for points in (awkward, mixed):
            cloud = points.to(device, dtype)
            # atol: squares that underflow may each be rounded to the smallest denormal (1.4e-45) or to 0.
            torch.testing.assert_close(distCUDA2(cloud), mean_squared_distance(cloud), rtol=1e-6, atol=5e-45)


def test_strided_points_and_points_that_require_a_gradient(device: str) -> None:
    points = random(100).float().to(device)
    assert torch.equal(distCUDA2(points.T.contiguous().T), distCUDA2(points))
    assert not distCUDA2(points.clone().requires_grad_()).requires_grad


def test_declared_as_torch_expects(device: str) -> None:
    torch.library.opcheck(torch.ops.simple_knn.mean_squared_distance, (random(20).to(device),))


def test_compiles_into_one_graph(device: str) -> None:
    def spacing(points: Tensor) -> Tensor:
        return (distCUDA2(points * 2) + 1).sqrt()

    points = random(50).to(device)
    # aot_eager traces without generating code, which is enough to find a graph break.
    torch.testing.assert_close(torch.compile(spacing, fullgraph=True, backend="aot_eager")(points), spacing(points))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(12), r"points have shape \[12\], expected \[N,3\]"),
        (torch.zeros(4, 2), r"points have shape \[4, 2\], expected \[N,3\]"),
        (torch.zeros(4, 3, dtype=torch.int64), "points are Long, expected float32 or float64"),
        (torch.zeros(4, 3, dtype=torch.float16), "points are Half, expected float32 or float64"),
        (torch.tensor([[0.0, 0, 0], [0, float("nan"), 0]]), "point 1 is not finite"),
        (torch.tensor([[0.0, 0, float("inf")]]), "point 0 is not finite"),
        (torch.full((300, 3), float("nan"), dtype=torch.float64), "point 0 is not finite"),
    ],
)
def test_refusals_say_what_was_found(device: str, points: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        distCUDA2(points.to(device))
