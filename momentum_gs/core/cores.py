"""The cores that this process may keep busy."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = CGROUPS) -> int:
    """Cores that this process may run on, and of which its container grants it the time (the quota of cgroups).

    A container with half a core's time on a machine of 64 has one core, not 64: with more threads, the time of a period
    is used up at once, and all threads wait for the next.

    Args:
        cgroups: Where the system shows the process its control group.

    Returns:
        At least 1; a fraction of a core counts as one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(cgroups))))


def limit_threads(cgroups: Path = CGROUPS) -> None:
    """Sets OMP_NUM_THREADS, which torch reads when it is loaded, where the container grants fewer cores than the
    machine has; a value that is set already is kept."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (usable := usable_cores(cgroups)) < cores:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable))


def _quota(cgroups: Path) -> float:
    """Cores whose time the container grants; infinite without a quota."""
    try:  # Version 2: "QUOTA PERIOD" in microseconds, or "max PERIOD".
        quota, period = (cgroups / "cpu.max").read_text(encoding="ascii").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:  # Version 1; -1 without a quota.
        files = (cgroups / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
        quota, period = (file.read_text(encoding="ascii") for file in files)
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):
        return math.inf
