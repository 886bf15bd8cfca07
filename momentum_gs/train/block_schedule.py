"""Which blocks train when: the k-of-n rounds of an experiment, known in full before it starts.

The schedule depends on the experiment's settings alone (n, k, steps, interval, seed), never on the number of ranks.
"""

from dataclasses import dataclass

import torch

from momentum_gs.config.schema import BlocksConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.seeds import keyed_generator


@dataclass(frozen=True)
class Round:
    """A stretch of steps in which the same blocks are active."""

    blocks: tuple[int, ...]
    """Distinct active blocks; rank r trains ``blocks[i]`` for which i mod R = r."""
    steps: int
    """Steps of this round; every active block trains each of them."""
    first_step: int
    """Global steps before this round."""
    decoder_live: bool
    """False in the last epoch, where anchors settle against the decoder that is saved."""


def check_counts(n: int, k: int, ranks: int) -> None:
    """Refuses what cannot be scheduled, with the arithmetic.

    Raises:
        UserError: unless ranks <= k <= n.
    """
    if k > n:
        raise UserError(f"blocks: active k = {k} exceeds the n = {n} blocks of the partition; set blocks.active <= {n}")
    if ranks > k:
        raise UserError(
            f"blocks: {ranks} ranks share k = {k} active blocks, so {ranks - k} would be idle; "
            f"start at most {k} ranks or raise blocks.active (at most n = {n})"
        )


def make_schedule(n: int, k: int, steps: int, config: BlocksConfig, seed: int) -> list[Round]:
    """All rounds of an experiment, in order. Every block gets exactly ``steps`` block steps.

    An epoch gives every block one interval, in ceil(n/k) rounds; the last round of an epoch is smaller where k does
    not divide n. ``random`` has no epochs: each round draws among the blocks that still have intervals left. In every
    schedule the last ``decoder_freeze_rounds`` intervals of all blocks come after all others, with a frozen decoder.

    Raises:
        UserError: where freezing would leave the decoder untrained.
    """
    lengths = [config.interval] * (steps // config.interval)
    if steps % config.interval:
        lengths.append(steps % config.interval)
    frozen = config.decoder_freeze_rounds
    if frozen >= len(lengths):
        raise UserError(
            f"blocks: steps = {steps} in intervals of {config.interval} make {len(lengths)} rounds a block, of which "
            f"decoder_freeze_rounds = {frozen} are frozen: none would train the decoder; lower interval or freeze fewer"
        )
    live = len(lengths) - frozen
    rounds: list[Round] = []
    for first, count in ((0, live), (live, frozen)):
        for blocks, interval in _phase(n, k, count, config.schedule, (seed, first)):
            done = rounds[-1].first_step + rounds[-1].steps if rounds else 0
            rounds.append(Round(blocks, lengths[first + interval], done, decoder_live=first == 0))
    return rounds


def _phase(n: int, k: int, count: int, kind: str, key: tuple[int, int]) -> list[tuple[tuple[int, ...], int]]:
    """(blocks, interval number) of rounds that give every block the intervals 0 .. count-1."""
    rounds: list[tuple[tuple[int, ...], int]] = []
    if kind == "random":
        done = torch.zeros(n, dtype=torch.int64)
        generator = keyed_generator("schedule", *key)
        while bool((done < count).any()):
            # Only blocks at the same interval share a round: a shorter last interval then fits all of them.
            left = torch.nonzero(done < count).flatten()
            left = left[torch.randperm(len(left), generator=generator)]
            chosen = left[done[left] == done[left[0]]][:k]
            rounds.append((tuple(sorted(chosen.tolist())), int(done[chosen[0]])))
            done[chosen] += 1
        return rounds
    for interval in range(count):
        order = list(range(n))
        if kind == "permutation":
            order = torch.randperm(n, generator=keyed_generator("schedule", *key, interval)).tolist()
        rounds += [(tuple(order[i : i + k]), interval) for i in range(0, n, k)]
    return rounds
