"""Which tests may be skipped, how many and why; the table of skips of a run, and when they fail it."""

import importlib.util
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("MOMENTUM_GS_SHARED", Path(__file__).parents[2] / "shared"))


@dataclass(frozen=True)
class Allowed:
    """A known reason to skip tests."""

    pattern: str
    """Found in the reason that a test gives."""
    at_most: int
    """Number of tests in the whole suite that may give this reason; raise it with each new one."""
    where: Callable[[], bool] = lambda: True
    """Whether the reason holds on this machine."""


ALLOWED = (
    Allowed("set MOMENTUM_GS_SHARED|below MOMENTUM_GS_SHARED", 12, lambda: not SHARED.is_dir()),
    # The implementation of the official code; installing the extra 'scatter' compiles it for minutes.
    Allowed("torch_scatter is not installed", 1),
    Allowed("network namespaces are not permitted here", 1),
    Allowed(r"no C\+\+ compiler", 300),
    # Tests of pages in a browser.
    Allowed("there is no chromium", 22, lambda: shutil.which("chromium") is None),
    Allowed("playwright is not installed", 22, lambda: importlib.util.find_spec("playwright") is None),
    Allowed("no nvcc to compile the CUDA sources with", 6),
    Allowed("splat-transform is not installed", 9, lambda: shutil.which("splat-transform") is None),
    Allowed("the extra mesh is not installed", 16, lambda: importlib.util.find_spec("skimage") is None),
    Allowed("gsply can read SOG here", 1),
)
"""Beside these, a test with the marker ``gpu`` may be skipped because it needs a GPU: its marker states the reason."""

GPU_REASON = "needs a GPU"


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """The reason that a skipped test, or a skipped file of tests, gives."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def unexplained(found: dict[str, list[bool]], allowed: tuple[Allowed, ...] = ALLOWED) -> list[str]:
    """One sentence for each kind of skip that no entry covers.

    Args:
        found: reason -> for each test that gave it, whether it has the marker ``gpu``.
    """
    complaints = []
    counts: dict[Allowed, int] = defaultdict(int)
    for reason, tests in found.items():
        left = [gpu for gpu in tests if not (gpu and reason.startswith(GPU_REASON))]
        entry = next((a for a in allowed if re.search(a.pattern, reason) and a.where()), None)
        if left and entry is None:
            complaints.append(f"{len(left)} skipped without a reason that is known here: {reason}")
        elif left and entry is not None:
            counts[entry] += len(left)
    for entry, count in counts.items():
        if count > entry.at_most:
            complaints.append(f"{count} skipped for '{entry.pattern}', expected at most {entry.at_most}")
    return complaints


class SkipTable:
    """Pytest plugin: prints a table of the skips of a run; with ``--check-skips``, skips not allowed fail it."""

    def __init__(self, check: bool) -> None:
        self._check = check
        self._found: dict[str, list[bool]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._found[reason_of(report)].append("gpu" in report.keywords)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._found[reason_of(report)].append(False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._check and session.exitstatus == pytest.ExitCode.OK and unexplained(self._found):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._found:
            return
        total = sum(map(len, self._found.values()))
        terminalreporter.section(f"{total} skipped, by reason")
        for reason, tests in sorted(self._found.items(), key=lambda item: -len(item[1])):
            terminalreporter.line(f"{len(tests):5d}  {reason}")
        for complaint in unexplained(self._found) if self._check else ():
            terminalreporter.line(f"error: {complaint}; give the reason in tests/skip_table.py", red=True)
