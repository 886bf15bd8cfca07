"""Maps of the block that each pixel shows: positions in closed form, borders, files."""

from pathlib import Path

import pytest
import torch
from tiny_scene import nadir_camera

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import project
from momentum_gs.core.types import Camera, RenderOutput
from momentum_gs.data.images import write_png
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.eval.cells import BORDER_SHARE, CellLabels, read_cells, world_points, write_cells

AABB = (-5.0, -5.0, -5.0, 5.0, 5.0, 5.0)
CPU = torch.device("cpu")


def table(dim: tuple[int, int, int], joined: tuple[int, ...] | None = None) -> PartitionTable:
    n = len(set(joined)) if joined else dim[0] * dim[1] * dim[2]
    return PartitionTable(AABB, dim, torch.eye(3, dtype=torch.float64), [[]] * n, joined=joined)


def plane(alpha: float, height: float, shape: tuple[int, int] = (36, 48)) -> RenderOutput:
    """The render of a camera that looks straight down on a plane of constant alpha."""
    share = torch.full(shape, alpha)
    return RenderOutput(torch.zeros(3, *shape), share, share * height, torch.zeros(1, dtype=torch.int32), share)


def test_a_flat_ground_is_cut_where_the_partition_cuts_it() -> None:
    camera = nadir_camera("a.png", 0.33, 0.0)
    labels = CellLabels(table((2, 1, 1)), CPU).of(plane(0.8, 4.0), camera)
    x = 0.33 + (torch.arange(48) + 0.5 - camera.cx) / camera.fx * 4
    # Inside the box the contracted coordinate is (x / 5) / 4 + 0.5, and a cell has a width of 0.5.
    near = x.abs() < BORDER_SHARE * 0.5 * 4 * 5
    expected = 1 + 2 * (x >= 0).long() + near.long()
    assert set(expected.tolist()) == {1, 2, 3, 4}  # the image holds both blocks, inside and near the border
    assert torch.equal(labels, expected.expand(36, 48))


def test_pixels_that_show_the_background_belong_to_no_block() -> None:
    assert not CellLabels(table((2, 1, 1)), CPU).of(plane(0.09, 4.0), nadir_camera("a.png", 0, 0)).any()


def test_cells_of_one_block_have_no_border_between_them() -> None:
    points = torch.tensor([[0.01, 1.0, 0.0], [2.0, 0.01, 0.0], [-2.0, 0.01, 0.0]], dtype=torch.float64)
    assert CellLabels(table((2, 2, 1)), CPU).near_border(points).tolist() == [True, True, True]
    # Cells 0, 1 and 2 are one L-shaped block: the only borders are the two of cell 3.
    joined = CellLabels(table((2, 2, 1), (0, 0, 0, 1)), CPU)
    assert joined.near_border(points).tolist() == [True, True, False]
    assert not CellLabels(table((1, 1, 1)), CPU).near_border(points).any()
    # The ends of space are no borders.
    far = torch.tensor([[1e9, 1e9, 1e9], [-1e9, -1e9, -1e9]], dtype=torch.float64)
    assert not CellLabels(table((2, 2, 2)), CPU).near_border(far).any()


def test_world_points_project_back_to_their_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    offset = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    camera = Camera("a.png", 48, 36, 41.0, 39.0, 20.0, 19.0, rotation, offset)
    pixels = torch.stack([torch.arange(36), torch.arange(36) + 5], dim=1)
    depth = torch.rand(36, generator=generator) + 1
    back, z = project(world_points(depth, pixels, camera), camera)
    # float64 throughout: round-off of pixel numbers of two digits.
    assert torch.allclose(back.flip(1), pixels.double() + 0.5, atol=1e-9, rtol=0)
    assert torch.allclose(z, depth.double(), atol=1e-12, rtol=0)


def test_files_keep_16_bits_and_other_files_are_refused(tmp_path: Path) -> None:
    labels = torch.randint(0, 2**16, (36, 48), generator=torch.Generator().manual_seed(0))
    write_cells(tmp_path / "a" / "0.png", labels)
    assert torch.equal(read_cells(tmp_path / "a" / "0.png", 48, 36), labels)
    with pytest.raises(UserError, match=r"0\.png: 48x36 of uint16, expected a 16-bit map of 36x48"):
        read_cells(tmp_path / "a" / "0.png", 36, 48)
    write_png(tmp_path / "8bit.png", torch.rand(3, 36, 48))
    with pytest.raises(UserError, match="expected a 16-bit map"):
        read_cells(tmp_path / "8bit.png", 48, 36)


def test_more_blocks_than_a_map_holds_are_refused() -> None:
    with pytest.raises(UserError, match="expected at most 32767"):
        CellLabels(table((32, 32, 33)), CPU)
