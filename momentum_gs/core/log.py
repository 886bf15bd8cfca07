"""Terminal output: plain lines and progress bars from rank 0, warnings from any rank."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def info(message: str) -> None:
    """Print one line on rank 0 without breaking a progress bar."""
    if _is_first_rank():
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()


def warn(message: str) -> None:
    """Print one line to stderr on the calling rank; ranks other than 0 put their number in front."""
    tqdm.write(message if _is_first_rank() else f"[rank {os.environ['RANK']}] {message}", file=sys.stderr)
    sys.stderr.flush()


def progress(items: Iterable[Any] | int, desc: str) -> tqdm:
    """A progress bar over items, or one with the total ``items`` that ``.update()`` advances.

    Silent on ranks other than 0, and where stderr is not a terminal, so that log files contain no partial bars.
    """
    iterable, total = (None, items) if isinstance(items, int) else (items, None)
    silent = not (_is_first_rank() and sys.stderr.isatty())
    return tqdm(iterable, total=total, desc=desc, disable=silent, dynamic_ncols=True)


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
