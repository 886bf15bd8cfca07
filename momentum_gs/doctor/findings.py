"""Findings of ``doctor``: each is something to know or to correct before training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from momentum_gs.core.errors import UserError

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""From the worst: training would refuse or fail; the result would be poor; for information, nothing to do."""


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    severity: Severity
    check: str
    """Short name of what was looked at; stable, for scripts."""
    where: str
    """The file, folder or setting."""
    found: str
    expected: str = ""
    cure: str = ""
    names: tuple[str, ...] = ()
    """Everything it concerns (image names, files) where that is more than one thing."""

    @classmethod
    def of_error(cls, check: str, error: UserError, severity: Severity = "error") -> "Finding":
        """A finding from the error that training would raise, parsed as ``where: found, expected ...; cure``."""
        where, _, rest = str(error).partition(": ")
        found, _, cure = rest.rpartition("; ") if "; " in rest else (rest, "", "")
        found, _, expected = found.partition(", expected ")
        return cls(severity, check, where, found, expected, cure)

    def __str__(self) -> str:
        """One line in the style of errors."""
        expected = f", expected {self.expected}" if self.expected else ""
        return f"{self.where}: {self.found}{expected}" + (f"; {self.cure}" if self.cure else "")


def some(names: Sequence[str], total: int | None = None) -> str:
    """``3 of 16, first: a.jpg`` for a message; all of them belong into ``Finding.names``."""
    of = "" if total is None else f" of {total}"
    return f"{len(names)}{of}, {'first: ' if len(names) > 1 else ''}{names[0]}"
