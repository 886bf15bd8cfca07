"""The k-d tree against all pairs, where trees go wrong: copies, lines, clusters, far away, too few."""

from collections.abc import Callable

import pytest
import torch
from simple_knn._C import distCUDA2
from simple_knn.reference import mean_squared_distance
from torch import Tensor

# Around the sizes of a leaf (16) and of a packet (4 to 16), and one that needs several levels.
SIZES = [2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 100, 1999]


def random(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clusters(count: int) -> Tensor:
    """Dense clumps of very different size, far from each other."""
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
    "one place and a stranger": lambda n: torch.cat([random(1).expand(n - 1, 3), random(1, seed=5)]),
    "far from the origin": lambda n: random(n) + torch.tensor([4.0e6, -2.0e6, 1.0e3]),
    "sorted": lambda n: random(n).sort(dim=0).values,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
@pytest.mark.parametrize("cloud", CLOUDS)
def test_equals_all_pairs(cloud: str, dtype: torch.dtype) -> None:
    for count in SIZES:
        points = CLOUDS[cloud](count).to(dtype)
        # The same differences, squared and summed; only fused operations may round differently: a few steps each.
        torch.testing.assert_close(
            distCUDA2(points), mean_squared_distance(points), rtol=8 * torch.finfo(dtype).eps, atol=0, msg=str(count)
        )


def test_by_hand() -> None:
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [9, 9, 9]])
    result = distCUDA2(points)
    assert float(result[0]) == pytest.approx((1 + 4 + 9) / 3)
    assert float(result[1]) == pytest.approx((1 + 5 + 10) / 3)


def test_too_few_points_count_those_that_exist() -> None:
    assert distCUDA2(torch.empty(0, 3)).tolist() == []
    assert distCUDA2(torch.ones(1, 3)).tolist() == [0.0]
    assert distCUDA2(torch.tensor([[0.0, 0, 0], [3, 4, 0]])).tolist() == [25.0, 25.0]
    assert distCUDA2(torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]])).tolist() == [5.0, 2.5, 6.5]


def test_same_bits_for_any_order_and_number_of_threads() -> None:
    points = clusters(50_000).float()
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = distCUDA2(points)
        torch.set_num_threads(3)
        three, shuffled = distCUDA2(points), distCUDA2(points[order])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)
    assert torch.equal(one[order], shuffled)


def test_many_copies_stay_fast() -> None:
    # 200,000 copies: a tree that opens equal boxes would compare 4e10 pairs, minutes instead of a blink.
    assert distCUDA2(torch.ones(200_000, 3)).abs().max() == 0


def test_strided_and_differentiable_points_are_taken_as_they_are() -> None:
    points = random(100).float()
    assert torch.equal(distCUDA2(points.T.contiguous().T), distCUDA2(points))
    assert not distCUDA2(points.clone().requires_grad_()).requires_grad


def test_declared_as_torch_expects() -> None:
    torch.library.opcheck(torch.ops.simple_knn.mean_squared_distance, (random(20),))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (torch.zeros(4, 2), r"points have shape \[4, 2\], expected \[N,3\]"),
        (torch.zeros(4, 3, dtype=torch.int64), "points are Long, expected float32 or float64"),
        (torch.tensor([[0.0, 0, 0], [0, float("nan"), 0]]), "point 1 is not finite"),
        (torch.tensor([[0.0, 0, float("inf")]]), "point 0 is not finite"),
    ],
)
def test_refusals_say_what_was_found(points: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        distCUDA2(points)
