"""Host memory of this process: how much can be had, and when freed memory goes back to the system."""

import contextlib
import ctypes
import os
import resource
import sys


def free_memory() -> int:
    """Bytes of host memory that can be had without swapping."""
    try:
        with open("/proc/meminfo") as file:
            found = dict(line.split(":", 1) for line in file)
        return int(found["MemAvailable"].split()[0]) * 1024
    except OSError:  # Not Linux: what is installed is the best that the standard library knows.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def total_memory() -> int:
    """Bytes of host memory that this machine has, or that its container may have."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # No such file, or "max".
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max") as file:
        return min(installed, int(file.read()))
    return installed


def peak_memory() -> int:
    """Bytes of host memory that this process has had at most so far."""
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Lets large tensors reuse memory instead of asking the system for fresh, zeroed pages each time.

    With glibc's defaults half of the time of growing a million anchors goes to page faults. What was freed then stays
    with the process until ``return_freed_memory``. Elsewhere than on glibc nothing changes.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # Never.


def return_freed_memory() -> None:
    """Gives the system back what was freed, holes between what is in use included.

    Blocks that come and go leave holes that no other block fits.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
