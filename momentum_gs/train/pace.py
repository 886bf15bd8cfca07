"""The number of steps of a run with a time limit, revised during the run as steps become slower or faster."""

import time
from collections.abc import Callable

from momentum_gs.config.schema import Config

REVISIONS = 40
"""Most revisions of the number of steps in a run: often enough to meet the time limit within a few percent, and rarely
enough that each averages over many steps."""
IGNORED = 0.01
"""Smaller changes, as a share of the remaining steps, are ignored."""


class Pace:
    """Revises the settings of a run so that it ends in time.

    Settings that count steps, such as ``growth.until`` and ``optim.lr_steps``, are shares of ``steps`` and are revised
    with it: growth still ends at its share of the steps, and the learning rates reach their last values at the end of
    the run. Steps become slower while anchors are added, so the first estimates are too high; later ones correct them.
    """

    def __init__(
        self,
        seconds: float,
        config_of: Callable[[int], Config],
        least: int,
        rest: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            seconds: Time that training may take from now on.
            config_of: Number of steps -> the settings of a run with that many steps.
            least: Smallest number of steps, whatever the time limit.
            rest: Steps that have to follow those done, whatever the time limit.
            clock: Returns seconds since an arbitrary moment.
        """
        self._clock, self._config_of, self._least, self._rest = clock, config_of, least, rest
        self._begun = clock()
        self._seconds = seconds
        self._since: tuple[float, int] | None = None

    def __call__(self, step: int, total: int) -> Config | None:
        """Settings with a new number of steps, or None to keep the present one; to be called every few steps.

        Args:
            step: Steps done, of every block.
            total: Present number of steps of a block.
        """
        now = self._clock()
        if self._since is None:  # Time before the first call went into loading, not into steps: start measuring here.
            self._since = now, step
            return None
        since, first = self._since
        if step <= first or now - since < self._seconds / REVISIONS:
            return None
        self._since = now, step
        left = max(0.0, self._seconds - (now - self._begun))
        steps = max(self._least, step + self._rest, step + round(left * (step - first) / (now - since)))
        if abs(steps - total) <= IGNORED * (total - step) and steps > step:
            return None
        return self._config_of(steps)
