"""How many steps a run takes that has to end by a clock: revised on the way, as steps become slower or faster."""

import time
from collections.abc import Callable

from momentum_gs.config.schema import Config

REVISIONS = 40
"""Times that the number of steps is revised at most: often enough for the end to be met within a few percent, each
over enough steps to average out what single ones take."""
IGNORED = 0.01
"""Change of the number of steps that is not worth one."""


class Pace:
    """Revises the settings of a run so that it ends in time.

    Clocks such as ``growth.until`` and ``optim.lr_steps`` are shares of ``steps``, so all of them move with it: growth
    ends when its share of the steps is over by what the machine is found to do, and the rates reach their end with the
    run's. While anchors are added steps become slower, so the first numbers are too high and the later ones right.
    """

    def __init__(
        self,
        seconds: float,
        config_of: Callable[[int], Config],
        least: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            seconds: That training may take from now on.
            config_of: Number of steps -> the settings of a run of so many.
            least: Steps that it takes in any case.
            clock: Seconds, from anywhere.
        """
        self._clock, self._config_of, self._least = clock, config_of, least
        self._begun = clock()
        self._seconds = seconds
        self._since: tuple[float, int] | None = None

    def __call__(self, step: int, total: int) -> Config | None:
        """New settings where the number of steps changes; to be asked every few steps.

        Args:
            step: Steps done.
            total: Steps that the run has at present.
        """
        now = self._clock()
        if self._since is None:  # The first steps load and allocate; what comes before them is no step.
            self._since = now, step
            return None
        since, first = self._since
        if step <= first or now - since < self._seconds / REVISIONS:
            return None
        self._since = now, step
        left = max(0.0, self._seconds - (now - self._begun))
        steps = max(self._least, step, step + round(left * (step - first) / (now - since)))
        if abs(steps - total) <= IGNORED * (total - step) and steps > step:
            return None
        return self._config_of(steps)
