"""Facts about rows of anchors."""

import torch
from anchor_scene import random_anchors

from momentum_gs.model.anchors import Anchors


def test_rows_and_back_are_the_same_tensors() -> None:
    anchors = random_anchors(5)
    again = Anchors.from_rows(anchors.rows() | {"unrelated": torch.zeros(1)})
    assert all(again.rows()[name] is row for name, row in anchors.rows().items())


def test_only_the_learnable_rows_require_a_gradient() -> None:
    anchors = random_anchors(5)
    for made in (anchors, anchors.to("cpu"), anchors.subset(torch.tensor([0, 3])), Anchors.cat([anchors, anchors])):
        for name, row in made.rows().items():
            assert row.is_leaf
            assert row.requires_grad == (name in Anchors.LEARNABLE)


def test_cat_of_subsets_has_the_same_rows() -> None:
    anchors = random_anchors(9)
    mask = torch.arange(9) % 3 == 0
    joined = Anchors.cat([anchors.subset(mask), anchors.subset(~mask)])
    order = torch.cat([mask.nonzero(), (~mask).nonzero()]).squeeze(1)
    for name, row in anchors.rows().items():
        assert torch.equal(joined.rows()[name], row[order])
    by_index = anchors.subset(mask.nonzero().squeeze(1))
    assert all(torch.equal(by_index.rows()[k], v) for k, v in anchors.subset(mask).rows().items())


def test_subset_copies() -> None:
    anchors = random_anchors(3)
    part = anchors.subset(torch.ones(3, dtype=torch.bool))
    with torch.no_grad():
        part.offset.zero_()
    assert anchors.offset.abs().sum() > 0


def test_sizes() -> None:
    anchors = random_anchors(7, n_offsets=3, feature_dim=12)
    assert (len(anchors), anchors.n_offsets, anchors.feature_dim) == (7, 3, 12)
    # One rounding each by exp and log.
    torch.testing.assert_close(anchors.scales.log(), anchors.log_scale, rtol=0, atol=1e-6)


def test_fresh_anchors_have_zero_offsets_and_no_rotation() -> None:
    rows = random_anchors(4)
    fresh = Anchors.fresh(rows.position, rows.feature, rows.log_scale, 6)
    assert fresh.n_offsets == 6
    assert not fresh.offset.any()
    assert torch.equal(fresh.rotation, torch.tensor([[1.0, 0, 0, 0]]).expand(4, 4))
    # float32 of the logit and its sigmoid: two roundings.
    torch.testing.assert_close(fresh.opacity.sigmoid(), torch.full((4, 1), 0.1), rtol=3e-7, atol=0)
