"""Learning-rate schedules."""

import math
from collections.abc import Callable


def exponential(initial: float, final: float, max_steps: int) -> Callable[[float | int], float]:
    """A rate that falls (or rises) by the same factor every step, from ``initial`` at 0 to ``final`` at ``max_steps``.

    Constant before and after. Source: utils/general_utils.py::get_expon_lr_func of 3DGS codebases, whose delay never
    takes effect there. A pair of zeros is a rate of zero; otherwise both are positive.
    """
    if initial == final:
        return lambda step: initial
    log_initial, log_final = math.log(initial), math.log(final)

    def rate(step: float | int) -> float:
        t = min(max(step / max_steps, 0.0), 1.0)
        return math.exp(log_initial * (1 - t) + log_final * t)

    return rate
