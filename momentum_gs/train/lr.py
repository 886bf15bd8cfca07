"""Learning-rate schedules."""

import math
from collections.abc import Callable


def exponential(initial: float, final: float, max_steps: int) -> Callable[[float | int], float]:
    """Step -> learning rate, which falls (or rises) exponentially from ``initial`` at 0 to ``final`` at ``max_steps``.

    It is constant before and after. ``initial`` and ``final`` are both positive or both zero. Source:
    utils/general_utils.py::get_expon_lr_func of 3DGS codebases, without its delay, which has no effect with their
    settings.
    """
    if initial == final:
        return lambda step: initial
    log_initial, log_final = math.log(initial), math.log(final)

    def rate(step: float | int) -> float:
        t = min(max(step / max_steps, 0.0), 1.0)
        return math.exp(log_initial * (1 - t) + log_final * t)

    return rate
