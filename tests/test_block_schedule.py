"""The k-of-n schedule: facts that hold for every n, k, number of steps and kind."""

from collections import Counter

import pytest

from momentum_gs.config.schema import BlocksConfig
from momentum_gs.core.errors import UserError
from momentum_gs.train.block_schedule import check_counts, Schedule

CASES = [(4, 2, 2000), (8, 3, 1700), (5, 5, 1000), (7, 1, 501), (9, 4, 1001)]
KINDS = ["permutation", "sequential", "random"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k", "steps"), CASES)
def test_every_block_trains_all_its_steps(n: int, k: int, steps: int, kind: str) -> None:
    rounds = Schedule(n, k, steps, BlocksConfig(schedule=kind, interval=500), seed=3)
    done: Counter[int] = Counter()
    for turn in rounds:
        assert 1 <= len(turn.blocks) <= k
        assert len(set(turn.blocks)) == len(turn.blocks)
        done.update(dict.fromkeys(turn.blocks, turn.steps))
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
    assert [r.blocks for r in rounds] == [(0, 1), (2, 3), (0, 1), (2, 3)]
    assert all(r.decoder_live for r in rounds)


def test_impossible_counts_are_refused_with_arithmetic() -> None:
    with pytest.raises(UserError, match=r"k = 5 exceeds the n = 4"):
        check_counts(4, 5, 1)
    with pytest.raises(UserError, match=r"3 ranks share k = 2 active blocks, so 1 would be idle"):
        check_counts(4, 2, 3)
    with pytest.raises(UserError, match=r"500 in intervals of 500 make 1 rounds a block"):
        Schedule(4, 2, 500, BlocksConfig(), seed=0)
