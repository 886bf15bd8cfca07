"""Densification of explicit Gaussians: against a loop over them, and facts that hold for any scene."""

from functools import partial

import pytest
import torch
from splat_scene import random_splats
from torch import Tensor

from momentum_gs.config.schema import GaussiansConfig, OptimConfig
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.core.types import RenderOutput
from momentum_gs.model.splats import Splats
from momentum_gs.train.growth.splats import SplatStats, densify_and_prune, reset_opacity
from momentum_gs.train.optim import splat_optimizer

CONFIG = GaussiansConfig(min_opacity=0.1, max_world_size=0.02)
EXTENT = 20.0
"""With it, Gaussians above 0.2 are split and above 0.4 pruned; the largest of ``random_splats`` are around 0.2."""


def draw(level: int, index: Tensor) -> Tensor:
    return keyed_uniform(index, 0, "test")


def some_stats(splats: Splats, seed: int = 0) -> SplatStats:
    """Gradients on both sides of the threshold, and some Gaussians that no view has drawn."""
    rng = torch.Generator().manual_seed(seed)
    denom = torch.randint(0, 4, (len(splats), 1), generator=rng).float()
    gradient = torch.rand(len(splats), 1, generator=rng) * 2 * CONFIG.grad_threshold
    return SplatStats(gradient * denom, denom, 50 * torch.rand(len(splats), 1, generator=rng))


densify = partial(densify_and_prune, extent=EXTENT, config=CONFIG, draw=draw, prune_large=True)


def one_by_one(splats: Splats, stats: SplatStats, prune_large: bool) -> dict[str, Tensor]:
    """What 3DGS does, for one Gaussian after another: it clones, splits, and then prunes all of them."""
    rows = {name: row.detach() for name, row in splats.rows().items()}
    stay: list[dict[str, Tensor]] = []
    clones: list[dict[str, Tensor]] = []
    children: tuple[list[dict[str, Tensor]], ...] = ([], [])
    for i in range(len(splats)):
        row = {name: values[i] for name, values in rows.items()}
        hot = stats.denom[i] > 0 and stats.gradient_accum[i] / stats.denom[i] >= CONFIG.grad_threshold
        if hot and row["log_scale"].exp().max() > CONFIG.percent_dense * EXTENT:
            for c, copies in enumerate(children):
                uniform = draw(0, 6 * i + 3 * c + torch.arange(3)).double() + 2.0**-25
                normal = 2**0.5 * torch.erfinv(2 * uniform - 1).float()
                apart = quat_to_matrix(row["rotation"]) @ (normal * row["log_scale"].exp())
                shrunk = (row["log_scale"].exp() / 1.6).log()
                copies.append(row | {"position": row["position"] + apart, "log_scale": shrunk})
        else:
            stay.append(row)
            if hot:
                clones.append(row)

    def survives(row: dict[str, Tensor]) -> bool:
        large = prune_large and row["log_scale"].exp().max() > CONFIG.max_world_size * EXTENT
        return bool(row["opacity"].sigmoid() >= CONFIG.min_opacity) and not large

    left = [row for part in (stay, clones, *children) for row in part if survives(row)]
    return {name: torch.stack([row[name] for row in left]) for name in rows}


@pytest.mark.parametrize("prune_large", [False, True])
def test_same_as_one_by_one(prune_large: bool) -> None:
    splats = random_splats(400)
    stats = some_stats(splats)
    wanted = one_by_one(splats, stats, prune_large)
    edited, zeroed, report = densify(splats, None, stats, prune_large=prune_large)
    for name, row in edited.rows().items():
        # The normal quantile comes from two functions, and products are grouped differently.
        torch.testing.assert_close(row.detach(), wanted[name], rtol=1e-5, atol=1e-5)
        assert row.requires_grad and row.grad is None
    clones, splits = report.grown
    assert min(clones, splits, report.pruned) > 10, "every branch is taken"
    assert len(edited) == 400 + clones + splits - report.pruned
    assert not any(row.any() for row in zeroed.rows().values()) and len(zeroed.denom) == len(edited)


@pytest.mark.slow
def test_positions_of_children_are_drawn_from_their_parent() -> None:
    n = 40_000
    one = random_splats(1, degree=0)
    splats = Splats.cat([one] * n)
    stats = SplatStats(torch.ones(n, 1), torch.ones(n, 1), torch.zeros(n, 1))
    config = GaussiansConfig(percent_dense=1e-6, min_opacity=1e-6)
    edited, _, report = densify(splats, None, stats, config=config, prune_large=False)
    assert report.grown == (0, n) and len(edited) == 2 * n
    apart = (edited.position - one.position).detach()
    turned = quat_to_matrix(one.rotation[0]).detach()
    covariance = turned @ torch.diag(one.scales[0].detach() ** 2) @ turned.T
    scale = float(covariance.trace())
    # With m samples a mean has an error of sigma / sqrt(m), a covariance of about sigma^2 * sqrt(2 / m): five times
    # that.
    assert apart.mean(0).norm() < 5 * (scale / (2 * n)) ** 0.5
    assert (apart.T @ apart / (2 * n) - covariance).abs().max() < 5 * scale * (1 / n) ** 0.5
    assert not torch.equal(edited.position[:n], edited.position[n:]), "the two children are two draws"


def test_children_do_not_depend_on_other_splats() -> None:
    splats = random_splats(100)
    stats = some_stats(splats)
    quiet = SplatStats.from_rows({name: row.clone() for name, row in stats.rows().items()})
    quiet.gradient_accum[:50] = 0
    config = GaussiansConfig(min_opacity=1e-6)
    less = densify(splats.subset(torch.arange(100)), None, quiet, config=config, prune_large=False)[0]
    more = densify(splats, None, stats, config=config, prune_large=False)[0]
    there = {tuple(place) for place in more.position.tolist()}
    assert {tuple(place) for place in less.position[100:].tolist()} <= there


def test_moments_follow_their_splats() -> None:
    splats = random_splats(200)
    optimizer = splat_optimizer(splats, OptimConfig(), CONFIG, 1.0)
    for row in splats.rows().values():
        row.grad = torch.randn_like(row)
    optimizer.step()
    # The moments are different, so each identifies its Gaussian.
    before = {tuple(m): tuple(p) for m, p in zip(optimizer.state[splats.position]["exp_avg"].tolist(),
                                                 splats.position.tolist(), strict=True)}  # fmt: skip
    edited, _, report = densify(splats, optimizer, some_stats(splats))
    moments = optimizer.state[edited.position]["exp_avg"]
    new = (moments == 0).all(dim=1)
    assert {g["params"][0] is edited.rows()[g["name"]] for g in optimizer.param_groups} == {True}
    kept = zip(moments[~new].tolist(), edited.position[~new].tolist(), strict=True)
    assert all(before[tuple(moment)] == tuple(place) for moment, place in kept)
    n_kept = 200 - report.pruned - report.grown[1]
    assert not new[:n_kept].any() and new[n_kept:].all()


@pytest.mark.parametrize("more", [0, 1, 30, 10_000])
def test_with_a_cap_the_largest_gradients_grow(more: int) -> None:
    splats = random_splats(400)
    gradient = (some_stats(splats).gradient_accum / some_stats(splats).denom.clamp_min(1)).squeeze(1)
    free, _, free_report = densify(splats.subset(torch.arange(400)), None, some_stats(splats), prune_large=False)
    lasting = len(free) - sum(free_report.grown)
    edited, _, report = densify(splats, None, some_stats(splats), prune_large=False, cap=lasting + more)
    assert len(edited) == min(lasting + more, len(free))
    assert report.refused == len(free) - len(edited)
    if 0 < more < sum(free_report.grown):
        # A clone has the same position as its source, and a split removes its own: positions identify both.
        places = [tuple(p) for p in edited.position.tolist()]
        opaque = splats.opacity.squeeze(1).sigmoid() >= CONFIG.min_opacity
        grown = torch.tensor([places.count(tuple(p)) != 1 for p in splats.position.tolist()]) & opaque
        hot = (gradient >= CONFIG.grad_threshold) & opaque
        assert int(grown.sum()) == more
        assert gradient[grown].min() >= gradient[hot & ~grown].max()


def test_a_block_above_its_cap_is_only_pruned() -> None:
    splats = random_splats(400)
    edited, _, report = densify(splats, None, some_stats(splats), prune_large=False, cap=1)
    assert report.grown == (0, 0) and len(edited) == 400 - report.pruned > 1


def test_large_on_the_screen_is_pruned_where_asked() -> None:
    splats = random_splats(100)
    quiet = SplatStats(torch.zeros(100, 1), torch.ones(100, 1), torch.arange(100.0).unsqueeze(1))
    config = GaussiansConfig(min_opacity=1e-6, max_screen_radius=20, max_world_size=1.0)
    for prune_large, left in ((True, 21), (False, 100)):
        stats = SplatStats.from_rows(quiet.rows())
        kept = densify(splats.subset(torch.arange(100)), None, stats, config=config, prune_large=prune_large)[0]
        assert torch.equal(kept.position, splats.position[:left])


def test_a_reset_bounds_opacities_and_forgets_their_moments() -> None:
    splats = random_splats(50)
    optimizer = splat_optimizer(splats, OptimConfig(), CONFIG, 1.0)
    for row in splats.rows().values():
        row.grad = torch.ones_like(row)
    optimizer.step()
    before = splats.opacity.detach().sigmoid().clone()
    reset_opacity(splats, optimizer)
    # The bound is 0.01, rounded by a logit and a sigmoid in float32.
    torch.testing.assert_close(splats.opacity.detach().sigmoid(), before.clamp_max(0.01), rtol=1e-5, atol=0)
    assert not optimizer.state[splats.opacity]["exp_avg_sq"].any()
    assert optimizer.state[splats.rotation]["exp_avg_sq"].any(), "the others keep theirs"
    after = splats.opacity.detach().clone()
    optimizer.step()
    assert torch.equal(splats.opacity, after), "opacities do not change in this step"


def test_statistics_count_drawn_splats_only() -> None:
    stats = SplatStats.zeros(random_splats(3))
    screen = torch.zeros(3, 3, requires_grad=True)
    screen.grad = torch.tensor([[3.0, 4.0, 9.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    radii = torch.tensor([7, 0, 2], dtype=torch.int32)
    output = RenderOutput(torch.zeros(3, 1, 1), torch.zeros(1, 1), torch.zeros(1, 1), radii, screen)
    stats.observe(output)
    stats.observe(output)
    assert stats.gradient_accum.flatten().tolist() == [10.0, 0.0, 4.0]
    assert stats.denom.flatten().tolist() == [2.0, 0.0, 2.0]
    assert stats.max_radius.flatten().tolist() == [7.0, 0.0, 2.0]
