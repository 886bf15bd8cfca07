"""What the sections of the settings share: checks of values, and the mark of settings for developers."""

from dataclasses import field
from typing import TypeVar

from momentum_gs.core.errors import UserError

T = TypeVar("T")


def developers(default: T) -> T:
    """A setting that only developers of the program change; such settings come last in their section."""
    return field(default=default, metadata={"developers": True})


def check(ok: bool, name: str, value: object, expected: str) -> None:
    """Raises a UserError that names the setting, unless ``ok``."""
    if not ok:
        raise UserError(f"config: {name} is {value!r}, expected {expected}")
