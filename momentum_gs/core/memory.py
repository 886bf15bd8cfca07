"""Host memory: how much is available, and when freed memory is returned to the system."""

import contextlib
import ctypes
import os
import resource
import sys


def free_memory() -> int:
    """Bytes of host memory that are available without swapping."""
    try:
        with open("/proc/meminfo") as file:
            found = dict(line.split(":", 1) for line in file)
        return int(found["MemAvailable"].split()[0]) * 1024
    except OSError:  # Not Linux: the standard library only knows the installed memory.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def total_memory() -> int:
    """Bytes of host memory that this machine has, or that its container may use."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # OSError: there is no such file; ValueError: it holds "max".
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/memory.max") as file:
        return min(installed, int(file.read()))
    return installed


def peak_memory() -> int:
    """Peak resident memory of this process so far, bytes."""
    # Linux counts in ru_maxrss what the parent process had when it started this one; VmHWM begins with the program.
    with contextlib.suppress(OSError, StopIteration, ValueError), open("/proc/self/status", encoding="ascii") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])
    # Linux reports KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Makes large tensors reuse freed memory instead of requesting new, zeroed pages from the system each time.

    With glibc's defaults, half of the time of growing a million anchors is spent on page faults. Freed memory then
    stays with the process until ``return_freed_memory``. Has no effect without glibc.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)  # Never.


def return_freed_memory() -> None:
    """Returns freed memory to the system, including holes between memory that is in use.

    Blocks that are loaded and offloaded leave holes that no other block fits into.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
