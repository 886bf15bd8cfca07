"""Growth and pruning of anchors against values of the official code and against a plain loop."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from anchor_scene import parity, random_anchors, random_decoder
from densify_reference import grow_and_prune_reference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from momentum_gs.config.schema import GrowthConfig, OptimConfig
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.core.types import RenderOutput
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.expand import decode
from momentum_gs.train.growth.anchors import GrowthStats, grow_and_prune
from momentum_gs.train.growth.report import Draw, GrowthReport
from momentum_gs.train.optim import anchor_optimizer

# interval * success = 8: offsets need more than 4 views, anchors more than 8.
CONFIG = GrowthConfig(interval=10, success_threshold=0.8, init_factor=16, hierarchy_factor=4, depth=3)


def draws(seed: int) -> Draw:
    return lambda level, offsets: keyed_uniform(offsets, "test", seed, level)


def every_offset(level: int, offsets: Tensor) -> Tensor:
    return torch.ones(len(offsets))


def random_stats(anchors: Anchors, seed: int) -> GrowthStats:
    """Statistics on both sides of every threshold."""
    rng = torch.Generator().manual_seed(seed)
    n, k = len(anchors), anchors.n_offsets
    denom = torch.randint(0, 10, (n * k, 1), generator=rng).float()
    shown = torch.randint(0, 20, (n, 1), generator=rng).float()
    return GrowthStats(
        offset_gradient_accum=denom * torch.rand(n * k, 1, generator=rng) * 1.2e-3,
        offset_denom=denom,
        opacity_accum=shown * torch.rand(n, 1, generator=rng) * 0.01,
        anchor_denom=shown,
    )


def test_parity() -> None:
    figures = parity("densify")
    names = ("anchor", "offset", "anchor_feat", "scaling", "rotation", "opacity")
    anchors = Anchors(*(figures[f"before_{name}"] for name in names)).as_leaves()
    # The original misspells anchor_denom.
    seen = {k.removeprefix("stat_").replace("demon", "denom"): v for k, v in figures.items() if k.startswith("stat_")}
    stats = GrowthStats.from_rows(seen)
    config = GrowthConfig(
        interval=int(figures["check_interval"]),
        success_threshold=float(figures["success_threshold"]),
        grad_threshold=float(figures["grad_threshold"]),
        min_opacity=float(figures["min_opacity"]),
        depth=int(figures["update_depth"]),
        init_factor=int(figures["update_init_factor"]),
        hierarchy_factor=int(figures["update_hierarchy_factor"]),
    )
    grown, after, report = grow_and_prune(
        anchors, None, stats, float(figures["voxel_size"]), config, lambda level, at: figures[f"rand_{level}"][at]
    )
    assert len(grown) == len(figures["before_anchor"]) + sum(report.grown) - report.pruned
    assert report.pruned > 0 and report.grown[0] > 0 and report.grown[1] > 0
    for name, row in zip(names, grown.rows().values(), strict=True):
        # The same rows in the same order, but for one rounding in the logarithm of a scale or an opacity.
        torch.testing.assert_close(
            row.detach(), figures[f"after_{name}"], rtol=2e-7, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
    for name, row in after.rows().items():
        theirs = name.replace("denom", "demon") if name == "anchor_denom" else name
        assert torch.equal(row, figures[f"after_stat_{theirs}"]), name


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("voxel_size", [0.002, 0.03])
@pytest.mark.parametrize("cap", [None, 0, 61, 75])
def test_same_as_the_plain_loop(seed: int, voxel_size: float, cap: int | None) -> None:
    anchors = random_anchors(60, n_offsets=3, feature_dim=4, seed=seed)
    with torch.no_grad():
        anchors.position *= 0.3
        anchors.log_scale += 2  # some above the bound of 0.05
    stats = random_stats(anchors, seed)
    rows, seen, refused = grow_and_prune_reference(anchors, stats, voxel_size, CONFIG, draws(seed), cap)
    grown, after, report = grow_and_prune(anchors, None, stats, voxel_size, CONFIG, draws(seed), cap)
    assert report.pruned > 0 and report.refused == refused
    if cap is None:
        assert min(report.grown) > 0 and refused == 0
    else:
        # Each of these caps is met: none of the seeds proposes fewer anchors than there is room for.
        assert refused > 0 and len(grown) == max(cap, 60 - report.pruned)
    for name, row in grown.rows().items():
        # The loop takes its logarithms in NumPy.
        torch.testing.assert_close(row.detach(), torch.from_numpy(rows[name]), rtol=3e-7, atol=0)
    for name, row in after.rows().items():
        assert torch.equal(row, torch.from_numpy(seen[name])), name


def test_new_anchors_may_be_born_small() -> None:
    anchors, n = random_anchors(50, seed=3), 50
    whole, _, _ = grow_and_prune(anchors, None, random_stats(anchors, 3), 0.05, CONFIG, every_offset)
    anchors = random_anchors(50, seed=3)
    config = replace(CONFIG, birth_scale=0.25)
    small, _, report = grow_and_prune(anchors, None, random_stats(anchors, 3), 0.05, config, every_offset)
    old = n - report.pruned
    assert sum(report.grown) > 0
    # Only the scales of their Gaussians: the scales of their offsets and all earlier anchors are the same.
    torch.testing.assert_close(small.scales[old:, 3:], whole.scales[old:, 3:] / 4)
    assert torch.equal(small.log_scale[old:, :3], whole.log_scale[old:, :3])
    assert torch.equal(small.log_scale[:old], whole.log_scale[:old])


@pytest.mark.parametrize("bound", [None, 0.05, -1.0])
def test_max_log_scale_bounds_the_scales_of_gaussians(bound: float | None) -> None:
    anchors = random_anchors(10)
    with torch.no_grad():
        anchors.log_scale += 2
    before = anchors.log_scale.detach().clone()
    config = replace(CONFIG, max_log_scale=bound)
    after = grow_and_prune(anchors, None, GrowthStats.zeros(anchors), 0.01, config, draws(0))[0].log_scale
    assert torch.equal(after[:, :3], before[:, :3])
    assert torch.equal(after[:, 3:], before[:, 3:].clamp(max=bound) if bound is not None else before[:, 3:])


def test_nothing_seen_changes_nothing() -> None:
    anchors = random_anchors(10)
    before = {name: row.detach().clone() for name, row in anchors.rows().items()}
    grown, _, report = grow_and_prune(anchors, None, GrowthStats.zeros(anchors), 0.01, CONFIG, draws(0))
    assert report.pruned == 0 and sum(report.grown) == 0
    assert all(torch.equal(row, before[name]) for name, row in grown.rows().items())


def test_growing_again_from_the_same_gradients_adds_no_duplicate() -> None:
    """A cell that holds an anchor gets no other one, whichever offset proposes it."""
    anchors = random_anchors(50, seed=3)
    config = GrowthConfig(interval=10, success_threshold=0.8, init_factor=16, depth=1, min_opacity=0.0)
    first, stats, report = grow_and_prune(anchors, None, random_stats(anchors, 3), 0.05, config, every_offset)
    assert report.grown[0] > 0
    again = random_stats(anchors, 3)
    padded = GrowthStats.from_rows(
        {k: torch.cat([v, s[len(v) :]]) for (k, v), s in zip(again.rows().items(), stats.rows().values(), strict=True)}
    )
    _, _, report = grow_and_prune(first, None, padded, 0.05, config, every_offset)
    assert report.grown == (0,)


def test_of_equal_gradients_the_coarser_cells_and_then_the_first_are_kept() -> None:
    anchors = random_anchors(40, seed=2)
    stats = random_stats(anchors, 2)
    stats.offset_denom.fill_(9)
    stats.offset_gradient_accum.fill_(9)
    stats.anchor_denom.fill_(0)
    all_of_them, _, free = grow_and_prune(anchors, None, stats, 0.01, CONFIG, every_offset)
    stats.offset_denom.fill_(9)
    stats.offset_gradient_accum.fill_(9)
    room = free.grown[0] + free.grown[1] // 2
    capped, _, report = grow_and_prune(anchors, None, stats, 0.01, CONFIG, every_offset, 40 + room)
    assert min(free.grown) > 1
    assert report.grown == (free.grown[0], free.grown[1] // 2, 0) and report.refused == sum(free.grown) - room
    assert torch.equal(capped.position, all_of_them.position[: 40 + room])


@pytest.mark.parametrize("log_scale", [1e3, 60.0, float("nan")])
def test_an_anchor_with_a_diverged_scale_grows_nothing_and_does_not_stop_others(log_scale: float) -> None:
    found = []
    for lost in (True, False):
        anchors, stats = random_anchors(60, seed=1), random_stats(random_anchors(60), 1)
        stats.anchor_denom.zero_()
        if lost:
            anchors.log_scale.data[7, :3] = log_scale
        else:
            stats.offset_denom.view(60, -1)[7] = 0
        found.append(grow_and_prune(anchors, None, stats, 0.02, CONFIG, every_offset)[0])
    assert len(found[0]) > 60 and torch.equal(found[0].position, found[1].position)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a GPU: operators whose output size depends on values, and copies to the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        waits = ("nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "repeat_interleave")
        self.count += by_mask or name in (*waits, "_local_scalar_dense", "item", "equal")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("cap", "expected"), [(None, 3 + 3 * 3), (61, 3 + 3 * 3 + 2)])
def test_the_host_waits_as_often_as_the_docstring_says(
    cap: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors, copies = random_anchors(60, seed=1), []
    to_host = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: copies.append(tensor.numel()) or to_host(tensor))
    optimizer = anchor_optimizer(anchors, OptimConfig(), 1.0)
    stats = random_stats(anchors, 1)
    with Waits() as waits:
        _, _, report = grow_and_prune(anchors, optimizer, stats, 0.02, CONFIG, draws(1), cap)
    assert len(report.grown) == 3 and report.pruned > 0
    assert waits.count + len(copies) == expected
    assert max(copies) == 3 * 2 * 3  # Lowest and highest cell of each level.


def test_growth_inside_everywhere_is_growth_without_a_border() -> None:
    for seed, cap in [(1, None), (2, 65)]:
        anchors = random_anchors(60, seed=seed)
        free = grow_and_prune(anchors, None, random_stats(anchors, seed), 0.02, CONFIG, draws(seed), cap)
        bound = grow_and_prune(
            anchors, None, random_stats(anchors, seed), 0.02, CONFIG, draws(seed), cap,
            lambda places: torch.ones(len(places), dtype=torch.bool),
        )  # fmt: skip
        assert bound[2] == free[2] and sum(free[2].grown) > 0
        for one, other in zip(bound[:2], free[:2], strict=True):
            assert all(torch.equal(row, other.rows()[name]) for name, row in one.rows().items())


@pytest.mark.parametrize("seed", range(3))
def test_no_anchor_grows_outside_and_the_cap_counts_those_inside(seed: int) -> None:
    anchors = random_anchors(60, seed=seed)

    def grow(cap: int | None, inside: Any = None) -> tuple[Anchors, GrowthReport]:
        grown, stats, report = grow_and_prune(
            anchors, None, random_stats(anchors, seed), 0.02, CONFIG, draws(seed), cap, inside
        )
        assert len(stats.anchor_denom) == len(grown) == 60 - report.pruned + sum(report.grown)
        return grown, report

    def inside(places: Tensor) -> Tensor:
        return places[:, 0] > 0.2

    everything, free = grow(None)
    kept = 60 - free.pruned
    wanted = everything.position[kept:][inside(everything.position[kept:])]
    half, report = grow(None, inside)
    # New anchors are those of growth without the border; old ones stay even if they are outside.
    assert torch.equal(half.position[kept:], wanted) and torch.equal(half.position[:kept], everything.position[:kept])
    assert torch.equal(half.feature[kept:], everything.feature[kept:][inside(everything.position[kept:])])
    assert report.refused == 0 and 0 < len(wanted) < sum(free.grown)

    assert torch.equal(grow(kept + len(wanted), inside)[0].position, half.position), "there is room for all"
    capped, report = grow(kept + len(wanted) - 2, inside)
    assert report.refused == 2 and len(capped) == kept + len(wanted) - 2
    assert inside(capped.position[kept:]).all()
    none, report = grow(None, lambda places: torch.zeros(len(places), dtype=torch.bool))
    assert (len(none), sum(report.grown), report.refused) == (kept, 0, 0)


def test_only_offsets_with_a_large_gradient_draw_a_number() -> None:
    anchors, asked = random_anchors(60, seed=1), []
    stats = random_stats(anchors, 1)
    large = (stats.offset_denom > 4) & (stats.offset_gradient_accum >= CONFIG.grad_threshold * stats.offset_denom)
    expected = large.squeeze(1).nonzero().squeeze(1)

    def rand(level: int, offsets: Tensor) -> Tensor:
        asked.append((level, offsets))
        return every_offset(level, offsets)

    grow_and_prune(anchors, None, stats, 0.02, CONFIG, rand)
    assert [level for level, _ in asked] == [0, 1, 2]
    assert all(torch.equal(offsets, expected) for _, offsets in asked)


def test_a_block_above_its_cap_is_pruned_but_not_grown() -> None:
    anchors = random_anchors(60, seed=4)
    unbound = grow_and_prune(anchors, None, random_stats(anchors, 4), 0.02, CONFIG, draws(4))[2]
    grown, _, report = grow_and_prune(anchors, None, random_stats(anchors, 4), 0.02, CONFIG, draws(4), 5)
    assert len(grown) == 60 - report.pruned > 5
    assert report == GrowthReport((0,) * len(unbound.grown), unbound.pruned, sum(unbound.grown))


def test_moments_follow_their_anchors_and_the_next_step_moves_none() -> None:
    anchors = random_anchors(60, seed=1)
    optimizer = anchor_optimizer(anchors, OptimConfig(), 1.0)
    sum(row.square().sum() for name, row in anchors.rows().items() if name in Anchors.LEARNABLE).backward()
    optimizer.step()
    moments = optimizer.state[anchors.feature]["exp_avg"].clone()
    position = anchors.position.clone()
    grown, _, report = grow_and_prune(anchors, optimizer, random_stats(anchors, 1), 0.02, CONFIG, draws(1))
    n_kept = 60 - report.pruned
    kept = (position[:, None] == grown.position[None, :n_kept]).all(2).any(1)
    assert torch.equal(optimizer.state[grown.feature]["exp_avg"][:n_kept], moments[kept])
    assert not optimizer.state[grown.feature]["exp_avg"][n_kept:].any()
    assert {id(group["params"][0]) for group in optimizer.param_groups} == {
        id(grown.rows()[k]) for k in Anchors.LEARNABLE
    }
    before = grown.offset.detach().clone()
    optimizer.step()
    assert torch.equal(grown.offset, before)
    assert len(optimizer.state) == len(Anchors.LEARNABLE)


def test_growth_that_changes_nothing_clears_the_gradients_too() -> None:
    anchors = random_anchors(5)
    optimizer = anchor_optimizer(anchors, OptimConfig(), 1.0)
    anchors.feature.sum().backward()
    grown, _, _ = grow_and_prune(anchors, optimizer, GrowthStats.zeros(anchors), 0.01, CONFIG, draws(0))
    assert all(grown.rows()[name].grad is None for name in Anchors.LEARNABLE)


def test_every_anchor_may_go() -> None:
    anchors = random_anchors(4)
    stats = GrowthStats.zeros(anchors)
    stats.anchor_denom += 9
    grown, after, report = grow_and_prune(
        anchors, anchor_optimizer(anchors, OptimConfig(), 1.0), stats, 0.01, CONFIG, draws(0)
    )
    assert len(grown) == 0 and report.pruned == 4
    assert all(len(row) == 0 for row in after.rows().values())
    # Growth of an empty model works, too.
    assert len(grow_and_prune(grown, None, after, 0.01, CONFIG, draws(0))[0]) == 0


def test_observe_counts_as_a_loop_does() -> None:
    anchors = random_anchors(12)
    stats = GrowthStats.zeros(anchors)
    expected = {name: row.clone() for name, row in stats.rows().items()}
    rng = torch.Generator().manual_seed(0)
    for visible in (torch.tensor([1, 4, 7, 11]), torch.tensor([4, 5]), torch.tensor([], dtype=torch.int64)):
        decoded = decode(anchors, random_decoder(), torch.tensor([0.0, 0.0, 4.0]), visible)
        n = len(decoded.gaussians)
        screen = torch.zeros(n, 3, requires_grad=True)
        screen.grad = torch.randn(n, 3, generator=rng)
        radii = torch.randint(0, 3, (n,), generator=rng, dtype=torch.int32)
        blank = torch.zeros(1, 1)
        stats.observe(decoded, RenderOutput(blank.expand(3, 1, 1), blank, blank, radii, screen))
        gaussian = 0
        for i, anchor in enumerate(visible.tolist()):
            expected["anchor_denom"][anchor] += 1
            for k in range(4):
                opacity = decoded.neural_opacity[4 * i + k].detach()
                if opacity > 0:
                    expected["opacity_accum"][anchor] += opacity
                    if radii[gaussian] > 0:
                        expected["offset_denom"][4 * anchor + k] += 1
                        expected["offset_gradient_accum"][4 * anchor + k] += screen.grad[gaussian, :2].norm()
                    gaussian += 1
        assert gaussian == n
    for name, row in stats.rows().items():
        # Sums of a few float32 numbers in another order.
        torch.testing.assert_close(row, expected[name], rtol=1e-6, atol=1e-7)


def test_rows_and_back() -> None:
    stats = random_stats(random_anchors(3), 0)
    again = GrowthStats.from_rows(stats.rows())
    assert all(again.rows()[name] is row for name, row in stats.rows().items())
