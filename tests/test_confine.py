"""Gaussians stay on their anchor's side of the border."""

import torch
from torch import Tensor

from momentum_gs.data.blocks import BlockGrid
from momentum_gs.model.anchors import Anchors
from momentum_gs.train.confine import HALVINGS, REACH, confine_offsets_, confine_scales_

GRID = BlockGrid((-1, -1, -1, 1, 1, 1), (2, 2, 1))


def anchors_around_the_middle(n: int = 400) -> Anchors:
    generator = torch.Generator().manual_seed(3)
    position = torch.rand(n, 3, generator=generator) * 4 - 2
    anchors = Anchors.fresh(position, torch.zeros(n, 4), torch.full((n, 6), -1.0), n_offsets=5)
    anchors.offset += torch.randn(anchors.offset.shape, generator=generator)
    return anchors


def centers(anchors: Anchors) -> Tensor:
    return anchors.position[:, None].double() + (anchors.offset * anchors.scales[:, None, :3]).double()


def inside(points: Tensor, block: int) -> Tensor:
    return (GRID.cell_of(points.reshape(-1, 3)) == block).view(points.shape[:-1])


def test_no_gaussian_crosses_and_the_others_do_not_move() -> None:
    anchors = anchors_around_the_middle()
    before, offsets = inside(centers(anchors), 2), anchors.offset.clone()
    here = inside(anchors.position.double(), 2)[:, None]
    crossing = before != here
    assert crossing.any()
    assert (crossing & here).any()
    assert (crossing & ~here).any()

    assert confine_offsets_(anchors, GRID.cell_of, 2) == int(crossing.sum())

    assert ((inside(centers(anchors), 2) == here) | ~crossing).all()
    assert torch.equal(anchors.offset[~crossing], offsets[~crossing])
    assert confine_offsets_(anchors, GRID.cell_of, 2) == 0


def test_an_offset_is_shortened_to_the_border_along_its_own_line() -> None:
    anchors = Anchors.fresh(torch.tensor([[0.3, 0.5, 0.0]]), torch.zeros(1, 4), torch.zeros(1, 6), n_offsets=2)
    anchors.offset[0, 0] = torch.tensor([-1.0, 0.25, 0.0])
    anchors.offset[0, 1] = torch.tensor([-0.2, 0.0, 0.0])

    # Block 3 is x > 0, y > 0; the first offset leaves it at 0.3 of its length.
    assert confine_offsets_(anchors, GRID.cell_of, 3) == 1

    fraction = -anchors.offset[0, 0, 0].item()
    assert 0.3 - 0.5**HALVINGS <= fraction <= 0.3
    assert torch.allclose(anchors.offset[0, 0], fraction * torch.tensor([-1.0, 0.25, 0.0]))


def test_crops_by_anchor_and_by_gaussian_are_the_same_afterwards() -> None:
    anchors = anchors_around_the_middle()
    for block in range(GRID.n):
        confine_offsets_(anchors, GRID.cell_of, block)
    by_anchor = GRID.cell_of(anchors.position.double())
    by_gaussian = GRID.cell_of(centers(anchors).flatten(0, 1)).view(len(anchors), -1)
    assert torch.equal(by_anchor[:, None].expand_as(by_gaussian), by_gaussian)


def test_large_gaussians_keep_their_distance_and_ordinary_ones_may_cross() -> None:
    anchors = anchors_around_the_middle()
    anchors.log_scale += torch.randn(anchors.log_scale.shape, generator=torch.Generator().manual_seed(4)) - 2
    before = anchors.scales[:, 3:].double()
    median = before.amax(dim=1).median()
    # Blocks 1 and 3 are x > 0, and the box is far: to block 3 the border is x = 0 or y = 0, whichever is nearer.
    x, y, _ = anchors.position.double().unbind(dim=1)
    in_block = (x > 0) & (y > 0)
    outside = torch.where(x <= 0, torch.where(y <= 0, torch.maximum(-x, -y), -x), -y)
    distance = torch.where(in_block, torch.minimum(x, y), outside)

    assert confine_scales_(anchors, GRID.cell_of, 3) > 0

    after = anchors.scales[:, 3:].double()
    allowed = torch.maximum(distance / REACH, median)[:, None]
    # 1e-6: log and exp in float32. The six directions that are tried contain the shortest way to a plane border.
    assert (after <= allowed * (1 + 1e-6)).logical_or(outside_corner(x, y)[:, None]).all()
    assert torch.equal(after[before.amax(dim=1) <= median], before[before.amax(dim=1) <= median])
    assert (after <= before).all()
    # Halving tries: what was allowed keeps at least half of it.
    shrunk = after < before
    assert (after[shrunk] >= 0.5 * allowed.expand_as(after)[shrunk] * (1 - 1e-6)).all()


def outside_corner(x: Tensor, y: Tensor) -> Tensor:
    """Anchors diagonally across the corner, which no axis direction leads into the block from."""
    return (x <= 0) & (y <= 0)
