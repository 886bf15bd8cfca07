"""The k-of-n schedule: facts that hold for every n, k, number of steps and kind."""

import itertools
import json
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from momentum_gs.config.schema import BlocksConfig
from momentum_gs.core.errors import UserError
from momentum_gs.train.blocks.schedule import Schedule, check_counts, ranks_of

CASES = [(4, 2, 2000), (8, 3, 1700), (5, 5, 1000), (7, 1, 501), (9, 4, 1001)]
KINDS = ["permutation", "sequential", "random"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k", "steps"), CASES)
def test_every_block_trains_all_its_steps(n: int, k: int, steps: int, kind: str) -> None:
    rounds = Schedule(n, k, steps, BlocksConfig(schedule=kind, interval=500), seed=3)
    done: Counter[int] = Counter()
    for round_ in rounds:
        assert 1 <= len(round_.blocks) <= k
        assert len(set(round_.blocks)) == len(round_.blocks)
        done.update(dict.fromkeys(round_.blocks, round_.steps))
    assert done == dict.fromkeys(range(n), steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k", "steps"), CASES)
def test_every_block_ends_on_the_frozen_decoder(n: int, k: int, steps: int, kind: str) -> None:
    rounds = Schedule(n, k, steps, BlocksConfig(schedule=kind, interval=500), seed=3)
    live = [r.decoder_live for r in rounds]
    assert live == sorted(live, reverse=True), "once frozen, the decoder stays so"
    frozen = [b for r in rounds if not r.decoder_live for b in r.blocks]
    assert sorted(frozen) == list(range(n))


def test_global_steps_are_contiguous() -> None:
    rounds = Schedule(8, 3, 1700, BlocksConfig(), seed=0)
    for before, after in zip(rounds, rounds[1:], strict=False):
        assert after.first_step == before.first_step + before.steps


def test_permutation_depends_on_the_seed_and_only_on_it() -> None:
    def schedule(seed: int) -> list[tuple[int, ...]]:
        return [r.blocks for r in Schedule(8, 2, 5000, BlocksConfig(), seed)]

    assert schedule(1) == schedule(1)
    assert schedule(1) != schedule(2)
    assert len(set(schedule(1))) > 4, "epochs are shuffled anew"


def test_sequential_is_the_official_order() -> None:
    rounds = Schedule(4, 2, 1000, BlocksConfig(schedule="sequential", decoder_freeze_rounds=0), seed=0)
    assert [r.blocks for r in rounds] == [(0, 2), (1, 3), (0, 2), (1, 3)]
    first = Schedule(8, 4, 500, BlocksConfig(schedule="sequential", decoder_freeze_rounds=0), seed=0)
    assert [r.blocks for r in first] == [(0, 2, 4, 6), (1, 3, 5, 7)]
    assert all(r.decoder_live for r in rounds)


def test_impossible_counts_are_refused_with_arithmetic() -> None:
    with pytest.raises(UserError, match=r"k = 5 exceeds the n = 4"):
        check_counts(4, 5, 1)
    with pytest.raises(UserError, match=r"3 ranks share k = 2 active blocks, so 1 would be idle"):
        check_counts(4, 2, 3)
    with pytest.raises(UserError, match=r"500 in intervals of 500 make 1 rounds a block"):
        Schedule(4, 2, 500, BlocksConfig(), seed=0)


def lagging(n: int, k: int, intervals: int, weights: torch.Tensor, groups: int = 1) -> Schedule:
    config = BlocksConfig(schedule="lagging", interval=10, groups=groups)
    schedule = Schedule(n, k, 10 * intervals, config, seed=0)
    for i in range(len(schedule)):
        schedule.draw(i + 1, weights)
    return schedule


def test_lagging_blocks_train_in_proportion_to_their_weight() -> None:
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.5, 1.75])
    schedule = lagging(6, 2, 61, weights)
    done = Counter(b for round_ in schedule if round_.decoder_live for b in round_.blocks)
    assert sum(done.values()) == 6 * 60, "as many intervals as any schedule gives"
    share = weights / weights.sum() * 6 * 60
    # The intervals that a block has trained differ from its share by less than one, and at the end by at most k = 2.
    assert all(abs(done[b] - share[b]) <= 2 for b in range(6)), (done, share)
    frozen = [b for round_ in schedule if not round_.decoder_live for b in round_.blocks]
    assert sorted(frozen) == list(range(6)), "every block is fine-tuned once"


@settings(max_examples=30)
@given(n=st.integers(2, 12), k=st.integers(1, 12), seed=st.integers(0, 100))
def test_lagging_starves_no_block(n: int, k: int, seed: int) -> None:
    k = min(k, n)
    weights = 1 + torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 0.999
    live = [round_ for round_ in lagging(n, k, 41, weights) if round_.decoder_live]
    # A block's share grows by at least k / (2n) a round, so it is due after 2n / k rounds; up to n blocks may be due
    # before it.
    longest = math.ceil(2 * n / k) + math.ceil(n / k)
    for block in range(n):
        at = [-1, *(i for i, round_ in enumerate(live) if block in round_.blocks), len(live)]
        assert max(b - a for a, b in itertools.pairwise(at)) <= longest + 1


def test_lagging_goes_on_where_a_checkpoint_left_it() -> None:
    config = BlocksConfig(schedule="lagging", interval=10)
    whole, parts = Schedule(5, 2, 200, config, 0), Schedule(5, 2, 200, config, 0)
    weights = [1 + torch.rand(5, generator=torch.Generator().manual_seed(i)) for i in range(len(whole))]
    for i in range(len(whole)):
        whole.draw(i + 1, weights[i])
    for i in range(7):
        parts.draw(i + 1, weights[i])
    resumed = Schedule(5, 2, 200, config, 0)
    resumed.load_state(json.loads(json.dumps(parts.state())))
    assert resumed[:8] == whole[:8]
    assert resumed.drawn == 8
    for i in range(7, len(whole)):
        resumed.draw(i + 1, weights[i])
    assert resumed[:] == whole[:]


@pytest.mark.parametrize("kind", [*KINDS, "lagging"])
@pytest.mark.parametrize(("n", "k", "groups"), [(8, 4, 2), (7, 3, 3), (9, 2, 2)])
def test_groups_stay_with_their_ranks(n: int, k: int, groups: int, kind: str) -> None:
    schedule = Schedule(n, k, 100, BlocksConfig(schedule=kind, interval=10, groups=groups), seed=2)
    done: Counter[int] = Counter()
    for ranks in (1, groups, 2 * groups):
        ranks_of_group: dict[int, set[int]] = {}
        for i in range(len(schedule)):
            schedule.draw(i, torch.ones(n))
            round_ = schedule[i]
            for block, rank in zip(round_.blocks, ranks_of(round_.blocks, groups, ranks), strict=True):
                ranks_of_group.setdefault(block % groups, set()).add(rank)
                assert rank < ranks
            if ranks == 1:
                done.update(round_.blocks)
        machines = {group: {rank * groups // ranks for rank in found} for group, found in ranks_of_group.items()}
        if ranks >= groups:
            assert machines == {group: {group} for group in range(groups)}, "one machine a group"
    if kind != "lagging":
        assert done == dict.fromkeys(range(n), 10)


def test_some_blocks_train_on() -> None:
    schedule = Schedule.continued([5, 3], 4, 120, 1000, BlocksConfig(interval=50), seed=0)
    assert [round_.first_step for round_ in schedule] == [1000, 1050, 1100]
    assert [round_.steps for round_ in schedule] == [50, 50, 20]
    assert all(sorted(round_.blocks) == [3, 5] and not round_.decoder_live for round_ in schedule)
    assert schedule.total == 1120


def test_groups_that_do_not_fit_are_refused_with_arithmetic() -> None:
    with pytest.raises(UserError, match=r"k = 3 active blocks in 2 groups leave 1 over"):
        check_counts(8, 3, 1, groups=2)
    with pytest.raises(UserError, match=r"3 ranks cannot be shared among 2 groups"):
        check_counts(8, 4, 3, groups=2)
