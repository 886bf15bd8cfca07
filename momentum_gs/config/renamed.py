"""Settings under the names of earlier versions: what they are now. Old names are read for one release.

Files of finished runs hold every setting, so what is removed is read as long as its value was the default.
"""

from collections.abc import Mapping
from typing import Any

from momentum_gs.core.errors import UserError

ALIASES = {"blocks.n": "partition.blocks"}
"""Other names under which settings are known, for good."""
RENAMED = {
    "blocks.settle": "blocks.boundary_finetuning",
    "blocks.confine": "blocks.offset_clamping",
    "gaussians.prior": "gaussians.from_coarse",
}
"""Since version 0.1.0."""
RENAMED_VALUES = {"blocks.decoder": {"own": "per_block"}}
"""By the name that the setting has now. Since version 0.1.0."""
REMOVED: dict[str, Any] = {
    "optim.feature_bank_lr": [0.01, 1e-5],
    "gaussians.sh_lr": 0.0025,
    "gaussians.rotation_lr": 0.001,
}
"""Name -> the value that is built in. Since version 0.1.0."""


def current_name(name: str) -> str:
    """The name that a setting has now."""
    return {**ALIASES, **RENAMED}.get(name, name)


def current_settings(data: Any, where: str) -> tuple[Any, list[str]]:
    """Settings under their names of now, and a sentence without its full stop for each old one.

    Args:
        data: Settings of any version in sections; what is no settings is left to the type check.
        where: Their source, for messages.

    Raises:
        UserError: for a setting that is given under two names, and for one that is removed and was not at its default.
    """
    said = []
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
            said.append(f"{old} is now {new}")
    for name, values in RENAMED_VALUES.items():
        section, key = name.split(".")
        there = data.get(section) if isinstance(data, dict) else None
        value = there.get(key) if isinstance(there, dict) else None
        if isinstance(there, dict) and isinstance(value, str) and value in values:
            data = {**data, section: {**there, key: values[value]}}
            said.append(f"{name}={value} is now {name}={values[value]}")
    for old, built_in in REMOVED.items():
        if (value := _taken(data, old)) is None:
            continue
        data, value = value
        if (list(value) if isinstance(value, tuple) else value) != built_in:
            raise UserError(
                f"config: {where}: {old} is {value!r}, expected nothing: it is always {built_in}; remove it"
            )
        said.append(f"{old} is no longer a setting")
    return data, said


def earlier_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names and values as version 0.1.0 had them, for what was filed under these."""
    names = {new: old for old, new in RENAMED.items()}
    values = {name: {new: old for old, new in known.items()} for name, known in RENAMED_VALUES.items()}
    return {names.get(key, key): values.get(key, {}).get(value, value) for key, value in settings.items()}


def _taken(data: Any, name: str) -> tuple[dict[str, Any], Any] | None:
    """Settings without one of them, and its value; None where it is not among them."""
    section, key = name.split(".")
    there = data.get(section) if isinstance(data, dict) else None
    if not isinstance(there, dict) or key not in there:
        return None
    return {**data, section: {k: v for k, v in there.items() if k != key}}, there[key]
