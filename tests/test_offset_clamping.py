"""Offset clamping: Gaussians stay on their anchor's side of the border."""

import torch
from torch import Tensor

from momentum_gs.data.blocks import BlockGrid
from momentum_gs.model.anchors import Anchors
from momentum_gs.train.offset_clamping import HALVINGS, clamp_offsets_

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

    assert clamp_offsets_(anchors, GRID.cell_of, 2) == int(crossing.sum())

    assert ((inside(centers(anchors), 2) == here) | ~crossing).all()
    assert torch.equal(anchors.offset[~crossing], offsets[~crossing])
    assert clamp_offsets_(anchors, GRID.cell_of, 2) == 0


def test_an_offset_is_shortened_to_the_border() -> None:
    anchors = Anchors.fresh(torch.tensor([[0.3, 0.5, 0.0]]), torch.zeros(1, 4), torch.zeros(1, 6), n_offsets=2)
    anchors.offset[0, 0] = torch.tensor([-1.0, 0.25, 0.0])
    anchors.offset[0, 1] = torch.tensor([-0.2, 0.0, 0.0])

    # Block 3 is x > 0, y > 0; the first offset leaves it at 0.3 of its length.
    assert clamp_offsets_(anchors, GRID.cell_of, 3) == 1

    fraction = -anchors.offset[0, 0, 0].item()
    assert 0.3 - 0.5**HALVINGS <= fraction <= 0.3
    assert torch.allclose(anchors.offset[0, 0], fraction * torch.tensor([-1.0, 0.25, 0.0]))


def test_crops_by_anchor_and_by_gaussian_are_the_same_afterwards() -> None:
    anchors = anchors_around_the_middle()
    for block in range(GRID.n):
        clamp_offsets_(anchors, GRID.cell_of, block)
    by_anchor = GRID.cell_of(anchors.position.double())
    by_gaussian = GRID.cell_of(centers(anchors).flatten(0, 1)).view(len(anchors), -1)
    assert torch.equal(by_anchor[:, None].expand_as(by_gaussian), by_gaussian)
