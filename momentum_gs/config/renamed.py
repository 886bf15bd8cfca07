"""Setting names of earlier versions and what they are called now. Old names are accepted for one release.

The configuration files of finished runs hold every setting, so a removed setting is accepted if it had its default.
"""

from collections.abc import Mapping
from typing import Any

from momentum_gs.core.errors import UserError

ALIASES = {"blocks.n": "partition.blocks"}
"""Permanent second names of settings."""
RENAMED = {
    "blocks.settle": "blocks.boundary_finetuning",
    "blocks.confine": "blocks.offset_clamping",
    "gaussians.prior": "gaussians.from_coarse",
}
"""Old name -> name since version 0.1.0."""
RENAMED_VALUES = {"blocks.decoder": {"own": "per_block"}}
"""Current name of the setting -> {old value: value since version 0.1.0}."""
REMOVED: dict[str, Any] = {
    "optim.feature_bank_lr": [0.01, 1e-5],
    "gaussians.sh_lr": 0.0025,
    "gaussians.rotation_lr": 0.001,
}
"""Name of a setting removed since version 0.1.0 -> the value that is now built in."""


def current_name(name: str) -> str:
    """The current name of a setting."""
    return {**ALIASES, **RENAMED}.get(name, name)


def current_settings(data: Any, where: str) -> tuple[Any, list[str]]:
    """Settings under their current names, and a clause about each old name for a warning.

    Args:
        data: Nested settings of any version; anything else is returned as it is, for the type check to reject.
        where: Source of the settings, for messages.

    Raises:
        UserError: for a setting that is given under two names, and for a removed one that was not at its default.
    """
    warnings = []
    for old, new in (ALIASES | RENAMED).items():
        if (value := _taken(data, old)) is None:
            continue
        data, value = value
        section, key = new.split(".")
        beside = data.get(section) or {}
        if not isinstance(beside, dict):
            continue
        if key in beside:
            raise UserError(f"config: {where}: {old} and {new} are one setting; remove one of them")
        data = {**data, section: {**beside, key: value}}
        if old in RENAMED:
            warnings.append(f"{old} is now {new}")
    for name, values in RENAMED_VALUES.items():
        section, key = name.split(".")
        there = data.get(section) if isinstance(data, dict) else None
        value = there.get(key) if isinstance(there, dict) else None
        if isinstance(there, dict) and isinstance(value, str) and value in values:
            data = {**data, section: {**there, key: values[value]}}
            warnings.append(f"{name}={value} is now {name}={values[value]}")
    for old, built_in in REMOVED.items():
        if (value := _taken(data, old)) is None:
            continue
        data, value = value
        if (list(value) if isinstance(value, tuple) else value) != built_in:
            raise UserError(
                f"config: {where}: {old} is {value!r}, but it is no longer a setting and always {built_in}; remove it"
            )
        warnings.append(f"{old} is no longer a setting")
    return data, warnings


def earlier_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and values as they were before the renames, for results that were stored under them."""
    names = {new: old for old, new in RENAMED.items()}
    values = {name: {new: old for old, new in known.items()} for name, known in RENAMED_VALUES.items()}
    return {names.get(key, key): values.get(key, {}).get(value, value) for key, value in settings.items()}


def _taken(data: Any, name: str) -> tuple[dict[str, Any], Any] | None:
    """The settings without ``name``, and its value; None where it is not set."""
    section, key = name.split(".")
    there = data.get(section) if isinstance(data, dict) else None
    if not isinstance(there, dict) or key not in there:
        return None
    return {**data, section: {k: v for k, v in there.items() if k != key}}, there[key]
