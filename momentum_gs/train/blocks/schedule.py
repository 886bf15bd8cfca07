"""The schedule of block training: the rounds of an experiment, in each of which k of n blocks are active.

A schedule depends on n, k, steps, interval, groups and seed (``lagging`` on the blocks' weights, too), never on the
number of ranks. All rounds are known before the experiment starts, except for ``lagging``, which is drawn one round
ahead, so that the next round's blocks can be fetched.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, overload

import torch
from torch import Tensor

from momentum_gs.config.schema import BlocksConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.seeds import keyed_generator


@dataclass(frozen=True)
class Round:
    """A stretch of steps in which the same blocks are active."""

    blocks: tuple[int, ...]
    """Distinct active blocks, in the order in which ranks take them (``ranks_of``)."""
    steps: int
    """Global steps of this round; each active block trains in all of them."""
    first_step: int
    """Global steps before this round."""
    decoder_live: bool
    """False in the last rounds (``blocks.decoder_freeze_rounds``), where anchors adapt to the decoder that is saved."""


# Weights are rounded to multiples of 1/256: coarser than the effect of rounding errors, finer than real differences.
_WEIGHT_STEPS = 256


@dataclass(frozen=True)
class _Phase:
    """A part of the schedule in which all intervals have the same length."""

    first: int
    """Intervals of every block before this phase."""
    count: int
    """Intervals of every block in this phase."""
    steps: int
    """Block steps of an interval."""
    live: bool
    """False: the decoder is frozen."""


def ranks_of(blocks: Sequence[int], groups: int, ranks: int) -> list[int]:
    """The rank that trains each of a round's blocks.

    With one group, the block at position i goes to rank i mod R. With more, every group has its own consecutive ranks,
    which torchrun places on one machine if possible, and its blocks are dealt out to them in order.
    """
    if groups == 1:
        return [i % ranks for i in range(len(blocks))]
    seen = [0] * groups
    found = []
    for block in blocks:
        group = block % groups
        each = max(1, ranks // groups)
        found.append(group * ranks // groups + seen[group] % each)
        seen[group] += 1
    return found


def check_counts(n: int, k: int, ranks: int, groups: int = 1) -> None:
    """Checks that n blocks, k of them active, can be scheduled on the ranks.

    Raises:
        UserError: unless ranks <= k <= n, k is a multiple of groups, and ranks are a multiple or divisor of groups.
    """
    if k > n:
        raise UserError(f"blocks: active k = {k} exceeds the n = {n} blocks of the partition; set blocks.active <= {n}")
    if ranks > k:
        raise UserError(
            f"blocks: {ranks} ranks share k = {k} active blocks, so {ranks - k} would be idle; "
            f"start at most {k} ranks or raise blocks.active (at most n = {n})"
        )
    if k % groups:
        raise UserError(
            f"blocks: k = {k} active blocks in {groups} groups leave {k % groups} over; set blocks.active to a "
            f"multiple of blocks.groups = {groups}"
        )
    if ranks % groups and groups % ranks:
        raise UserError(
            f"blocks: {ranks} ranks cannot be shared among {groups} groups; start a multiple or a divisor of "
            f"blocks.groups = {groups} ranks"
        )


class Schedule(Sequence[Round]):
    """The rounds of an experiment, in order. Every block gets exactly ``steps`` block steps, except with ``lagging``.

    An epoch gives every block one interval, in ceil(n/k) rounds; its last round is smaller if k does not divide n.
    ``random`` has no epochs: each round draws among the blocks that still have intervals left. ``lagging`` gives as
    many intervals in total, but to each block in proportion to its weight: in every round each block gains
    k * weight / sum(weights) credits, and the k blocks with the most credits are active and pay 1 each. Weights lie in
    [1, 2), so every block gets more than half of an equal share. In all schedules, the last ``decoder_freeze_rounds``
    intervals of all blocks come after all others, in epochs, with a frozen decoder.
    """

    def __init__(self, n: int, k: int, steps: int, config: BlocksConfig, seed: int) -> None:
        """
        Args:
            n: Number of blocks.
            k: Number of active blocks.
            steps: Block steps of each block.

        Raises:
            UserError: if the decoder would be frozen in all rounds.
        """
        full, rest = divmod(steps, config.interval)
        count, frozen = full + (rest > 0), config.decoder_freeze_rounds
        if frozen >= count:
            raise UserError(
                f"blocks: steps = {steps} in intervals of {config.interval} make {count} rounds a block, of which "
                f"decoder_freeze_rounds = {frozen} are frozen: none would train the decoder; lower interval or freeze "
                "fewer"
            )
        live = count - frozen
        self._lay_out(range(n), k, config, seed, 0, [
            _Phase(0, min(live, full), config.interval, True),
            _Phase(full, live - min(live, full), rest, True),
            _Phase(live, full - min(live, full), config.interval, False),
            _Phase(full, int(rest > 0 and frozen > 0), rest, False),
        ])  # fmt: skip

    @classmethod
    def continued(
        cls, blocks: Sequence[int], k: int, steps: int, first_step: int, config: BlocksConfig, seed: int
    ) -> "Schedule":
        """Rounds that train ``blocks`` for ``steps`` more block steps, with a frozen decoder.

        ``first_step``: global steps done before.
        """
        new = cls.__new__(cls)
        full, rest = divmod(steps, config.interval)
        phases = [_Phase(0, full, config.interval, False), _Phase(full, int(rest > 0), rest, False)]
        new._lay_out(sorted(blocks), k, config, seed, first_step, phases)
        return new

    def _lay_out(
        self, blocks: Sequence[int], k: int, config: BlocksConfig, seed: int, step: int, phases: list[_Phase]
    ) -> None:
        groups = [[b for b in blocks if b % config.groups == g] for g in range(config.groups)]
        groups = [group for group in groups if group]
        each = max(1, k // config.groups)
        self._config, self._groups = config, groups
        self._rounds: list[Round] = []
        self._sizes: dict[int, list[int]] = {}
        """Index of a round that is not drawn yet -> number of blocks of each group in it."""
        self._credit = dict.fromkeys(blocks, 0.0)
        for phase in phases:
            later = phase.live and config.schedule == "lagging"
            if later:
                sizes = [_sizes(phase.count * len(group), min(each, len(group))) for group in groups]
                for row in zip_longest(*sizes, fillvalue=0):
                    self._sizes[len(self._rounds)] = list(row)
                    self._rounds.append(Round((), phase.steps, step, phase.live))
                    step += phase.steps
                continue
            kind = config.schedule if config.schedule != "lagging" else "permutation"
            keys = [(seed, phase.first) if len(groups) == 1 else (seed, phase.first, g) for g in range(len(groups))]
            drawn = [_draw(group, each, phase.count, kind, key) for group, key in zip(groups, keys, strict=True)]
            for parts in zip_longest(*drawn, fillvalue=()):
                self._rounds.append(Round(sum(parts, ()), phase.steps, step, phase.live))
                step += phase.steps
        self.drawn = min(self._sizes, default=len(self._rounds))
        """Number of rounds, from the first, whose blocks are known."""

    @property
    def total(self) -> int:
        """Global steps at the end of the last round."""
        return self._rounds[-1].first_step + self._rounds[-1].steps

    def block_steps_per_update(self) -> float:
        """Block steps of a block per decoder update, on average over blocks; 1 if the decoder is always frozen."""
        live = [(round_.steps, self.size(i)) for i, round_ in enumerate(self._rounds) if round_.decoder_live]
        updates = sum(steps for steps, _ in live)
        return sum(steps * size for steps, size in live) / len(self._credit) / updates if live else 1.0

    def size(self, index: int) -> int:
        """Number of blocks of a round, drawn or not."""
        return sum(self._sizes[index]) if index in self._sizes else len(self._rounds[index].blocks)

    def draw(self, index: int, weights: Tensor) -> None:
        """Draws the blocks of all rounds up to ``index`` by their weights [B]; rounds that are known do not change."""
        for i in range(self.drawn, min(index + 1, len(self._rounds))):
            if i in self._sizes:
                chosen = [
                    self._pick(g, size, weights) for g, size in zip(self._groups, self._sizes.pop(i), strict=True)
                ]
                self._rounds[i] = replace(self._rounds[i], blocks=sum(chosen, ()))
            self.drawn = i + 1

    def _pick(self, group: list[int], size: int, weights: Tensor) -> tuple[int, ...]:
        # Rounded weights, so that rounding errors, which differ with the number of ranks, do not change the draw.
        earned = (weights[group].double() * _WEIGHT_STEPS).round()
        for block, share in zip(group, (earned / earned.sum() * size).tolist(), strict=True):
            self._credit[block] += share
        chosen = sorted(group, key=lambda b: (-self._credit[b], b))[:size]
        for block in chosen:
            self._credit[block] -= 1
        return tuple(chosen)

    def state(self) -> dict[str, Any]:
        """The rounds drawn so far and the credits, for a checkpoint."""
        drawn = [] if self._config.schedule != "lagging" else [round_.blocks for round_ in self._rounds[: self.drawn]]
        return {"drawn": drawn, "credit": list(self._credit.values())}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        self._credit = dict(zip(self._credit, state["credit"], strict=True))
        for i, blocks in enumerate(state["drawn"]):
            self._sizes.pop(i, None)
            self._rounds[i] = replace(self._rounds[i], blocks=tuple(blocks))
            self.drawn = max(self.drawn, i + 1)

    def __len__(self) -> int:
        return len(self._rounds)

    @overload
    def __getitem__(self, index: int) -> Round: ...
    @overload
    def __getitem__(self, index: slice) -> list[Round]: ...
    def __getitem__(self, index: int | slice) -> Round | list[Round]:
        return self._rounds[index]


def _sizes(slots: int, each: int) -> list[int]:
    """Sizes of the rounds that deal out ``slots`` intervals, ``each`` per round; the last may be smaller."""
    return [min(each, slots - first) for first in range(0, slots, each)]


def _draw(blocks: Sequence[int], k: int, count: int, kind: str, key: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The blocks of each of the rounds that give every block ``count`` intervals, at most k per round."""
    rounds: list[tuple[int, ...]] = []
    if kind == "random":
        left = torch.full((len(blocks),), count)
        generator = keyed_generator("schedule", *key)
        while bool((left > 0).any()):
            open_ = torch.nonzero(left > 0).flatten()
            chosen = open_[torch.randperm(len(open_), generator=generator)[:k]]
            rounds.append(tuple(sorted(blocks[i] for i in chosen.tolist())))
            left[chosen] -= 1
        return rounds
    if kind == "sequential":
        # In the official code each GPU has a stretch of the blocks and goes through it in order (train.py::training).
        stride = -(-len(blocks) // k)
        return [tuple(blocks[first::stride]) for first in range(stride)] * count
    for interval in range(count):
        order = torch.randperm(len(blocks), generator=keyed_generator("schedule", *key, interval)).tolist()
        rounds += [tuple(blocks[j] for j in order[i : i + k]) for i in range(0, len(order), k)]
    return rounds
