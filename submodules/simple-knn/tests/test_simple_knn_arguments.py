"""The raw operator with points of other shapes, dtypes and layouts: an error, or the right result."""

import pytest
import simple_knn._C  # noqa: F401  (loads the operator)
import torch

distances = torch.ops.simple_knn.mean_squared_distance


@pytest.mark.parametrize("shape", [(12,), (4, 2), (4, 4), (2, 4, 3), (), (3, 0)])
def test_points_of_another_shape_are_refused(device: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="simple_knn: points have shape"):
        distances(torch.zeros(shape, device=device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool])
def test_points_of_another_dtype_are_refused(device: str, dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match="simple_knn: points are"):
        distances(torch.zeros(5, 3, dtype=dtype, device=device))


def test_layouts_do_not_matter(device: str) -> None:
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).to(device)
    expected = distances(points)
    for other in (points.T.contiguous().T, torch.stack([points, points + 1], -1)[..., 0], points.repeat(1, 2)[:, :3]):
        assert not other.is_contiguous()
        assert torch.equal(distances(other), expected)
    assert torch.equal(distances(points[:1].expand(9, 3)), torch.zeros(9, device=device))


def test_points_without_data_have_a_shape(device: str) -> None:
    assert distances(torch.empty(7, 3, device="meta")).shape == (7,)
