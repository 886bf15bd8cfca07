"""The number of blocks with which no block exceeds a bound on anchors."""

from dataclasses import replace

import pytest
import torch
from tiny_scene import nadir_camera

from momentum_gs.config.schema import BlocksConfig, Config, ModelConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_any_view
from momentum_gs.model.init import voxelize
from momentum_gs.partition.assign import assign_cameras
from momentum_gs.partition.budget import GROWTH, blocks_within
from momentum_gs.partition.cover import block_boxes, view_cover
from momentum_gs.partition.layout import automatic_layout

CONFIG = Config(model=ModelConfig(voxel_size=0.2))
# 19 x 19 cameras at a height of 4 above a ground of 40 x 40; each image shows 4.8 x 3.6 of it.
CAMERAS = [nadir_camera(f"{x}-{y}", float(x), float(y)) for x in range(-18, 19, 2) for y in range(-18, 19, 2)]


def ground() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    xy = (torch.rand(20_000, 2, generator=generator, dtype=torch.float64) - 0.5) * 40
    return torch.cat([xy, torch.zeros(len(xy), 1, dtype=torch.float64)], 1)


def total(points: torch.Tensor) -> int:
    return int(GROWTH * len(voxelize(points, 0.2)))


@pytest.mark.slow
def test_what_fits_as_a_whole_is_not_cut() -> None:
    points = ground()
    assert blocks_within(total(points), CAMERAS, points, CONFIG) == (1, total(points))
    assert blocks_within(total(points) - 1, CAMERAS, points, CONFIG)[0] > 1


@pytest.mark.slow
def test_largest_block_is_within_the_bound_and_as_expected() -> None:
    points = ground()
    limits = [total(points) * share // 100 for share in (60, 30, 15)]
    found = [blocks_within(limit, CAMERAS, points, CONFIG) for limit in limits]
    assert [n for n, _ in found] == sorted({n for n, _ in found})  # less memory, more blocks
    anchors = voxelize(points, 0.2)
    for (n, largest), limit in zip(found, limits, strict=True):
        assert limit / 3 < largest <= limit
        # The blocks as they will be: all anchors that their views see. The estimate uses a sample of the points.
        table = automatic_layout(CAMERAS, points, replace(CONFIG.partition, blocks=n)).table()
        boxes = block_boxes(table, points)
        names = assign_cameras(CAMERAS, table, lambda c, t=table, b=boxes: view_cover(c, t, b), 0.05)  # type: ignore[misc]
        seen = max(int(in_any_view(anchors, [c for c in CAMERAS if c.name in set(block)]).sum()) for block in names)
        assert largest == pytest.approx(GROWTH * seen, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "limit"), [(CONFIG, 100), (replace(CONFIG, blocks=BlocksConfig(init="full")), 40_000)]
)
def test_a_bound_that_no_number_of_blocks_meets_is_a_clear_error(config: Config, limit: int) -> None:
    """One view alone shows more than the bound; or every block starts from the whole cloud."""
    with pytest.raises(UserError, match=r"blocks: auto finds no number .* at best, with 1, .*max_gb_per_block"):
        blocks_within(limit, CAMERAS, ground(), config)
