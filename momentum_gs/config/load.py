"""Loads a checked ``Config`` from YAML files and ``key=value`` overrides, and writes it back to YAML.

A file may be based on another one and may hold settings for one stage only:

    base: ../base.yaml          # relative to this file; without a suffix, a shipped file: base, scenes/rubble
    growth: {until: 30_000}
    stages:
      coarse: {growth: {until: 15_000}}

Later ones win: the schema's defaults, the base, the file, the settings of the chosen stage (in whichever file), the
overrides.

Numbers of steps may be given as a share of ``steps``, as in ``growth: {until: 60%}``, so that the schedule fits a run
of any length; settings that depend on the scene and the machine may be ``auto``; and ``steps`` may be given as passes
over the pixels of the training views, as in ``steps: 12 passes``. None of these reaches a ``Config``: shares become
numbers when all sources are merged, and the caller, who knows the scene, chooses values for the others (``Settings``).
Only shares of the global steps of a run (``Share``) stay as they are, until the number of those is known.
"""

import difflib
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from momentum_gs.config.renamed import REMOVED, current_name, current_settings
from momentum_gs.config.schema import NEEDS_ANCHORS, Config, Share
from momentum_gs.config.shipped import find_settings, instead_of, is_path
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import warn

# The scalars of YAML 1.2: PyYAML follows 1.1, in which 1e-4 is text, 'no' is false and 2024-01-01 a date.
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
)


_SHARES = frozenset([
    "optim.lr_steps", "growth.start_stat", "growth.from_step", "growth.until", "weighting.every", "blocks.interval",
    "gaussians.sh_every", "gaussians.from_step", "gaussians.until", "gaussians.reset_every", "distill.noise_every",
    "distill.from_step", "distill.until", "distill.structure_every", "distill.prune_at", "distill.keep_at",
])  # fmt: skip
"""Numbers of steps that may be given as a share of ``steps``, and are numbers in a ``Config``."""
_AUTO = frozenset(["steps", "scene.resolution", "model.voxel_size"])
"""Settings that may be ``auto`` in a file or an override, but are numbers in a ``Config``. (Settings whose type in the
schema includes ``auto`` are resolved where they are used.)"""
_SHARE = re.compile(r"\d+(?:\.\d+)?%")
_PASSES = re.compile(r"(\d+(?:\.\d+)?) pass(?:es)?")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads plain data only; a duplicate key is an error instead of a silent choice."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the strings that ``_Loader`` would read as another type; lists stay on one line."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}


for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _first)
_Dumper.add_representer(tuple, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))


def load_config(
    path: str | Path | Sequence[str | Path] | None, overrides: Sequence[str] = (), *, quiet: bool = False
) -> Config:
    """The experiment that a file or several (None: the defaults) and overrides such as ``growth.interval=50`` describe.

    Raises:
        UserError: as ``load_settings``; also for a value that is out of range or ``auto``.
    """
    return load_settings(path, overrides, quiet=quiet).config()


@dataclass(frozen=True)
class Settings:
    """Settings merged from all sources; those that are ``auto`` have no value yet."""

    values: Mapping[str, Any]
    """Nested; only settings that some source gave."""

    @property
    def auto(self) -> tuple[str, ...]:
        """Dotted names of the settings that are ``auto`` or passes, for which ``config`` needs a choice."""
        flat = flat_settings(self.values)
        return tuple(sorted(key for key in flat if key in _AUTO and isinstance(flat[key], str)))

    @property
    def passes(self) -> float | None:
        """Passes over the pixels of the training views, if ``steps`` is given so."""
        found = _PASSES.fullmatch(str(self.values.get("steps")))
        return float(found[1]) if found else None

    def config(self, choices: Mapping[str, Any] | None = None) -> Config:
        """The experiment. With ``model.primitive=gaussians``, settings that need anchors are off (``NEEDS_ANCHORS``).

        Args:
            choices: Dotted name -> value for the settings in ``auto``; other names are ignored.

        Raises:
            UserError: for a value out of range, and for a setting in ``auto`` without a choice.
        """
        values = dict(self.values)
        for key in self.auto:
            if choices is None or key not in choices:
                raise UserError(
                    f"config: {key} is {flat_settings(values)[key]}, which can only be resolved with a scene; give a "
                    "number here"
                )
            values = _merged(values, _nested(key, choices[key]))
        steps = values.get("steps", Config.steps)
        for key, value in flat_settings(values).items():
            if key in _SHARES and isinstance(value, str):
                values = _merged(values, _nested(key, max(1, round(steps * float(value[:-1]) / 100))))
        if flat_settings(values).get("model.primitive") == "gaussians":
            for key, off in NEEDS_ANCHORS.items():
                values = _merged(values, _nested(key, off))
        return _build(Config, values)


def load_settings(
    path: str | Path | Sequence[str | Path] | None, overrides: Sequence[str] = (), *, quiet: bool = False
) -> Settings:
    """The settings that files and overrides give.

    Of several files, later ones win, as if each were based on the one before.

    An override's value is YAML, except that the value of a text setting is taken as typed, and that the brackets of a
    list may be left out (``partition.dim=2,2,1``). Setting names of earlier versions (``config/renamed.py``) are
    accepted, with a warning of one line unless ``quiet``.

    Raises:
        UserError: for an unreadable file, an unknown key (the message names the nearest valid one) and a value of the
            wrong type.
    """
    given: dict[str, Any] = {}
    stages: dict[str, Any] = {}
    old: list[str] = []
    for file in [path] if isinstance(path, str | Path) else path or ():
        settings, by_stage = _read(find_settings(file), (), old)
        given, stages = _merged(given, settings), _merged(stages, by_stage)
    asked: dict[str, Any] = {}
    for override in overrides:
        asked = _merged(asked, _parse_override(override, old))
    if old and not quiet:
        warn(f"config: {'; '.join(dict.fromkeys(old))}; the next release will not know the old names")
    stage = asked.get("stage", given.get("stage", Config.stage))
    return Settings(_merged(_merged(given, stages.get(stage, {})), asked))


def config_from_dict(data: Mapping[str, Any], where: str = "settings") -> Config:
    """The experiment that nested plain data describe; ``where`` names their source in error messages."""
    return _build(Config, _typed(dict(data), Config, "", where))


def config_to_dict(config: Config) -> dict[str, Any]:
    """Every setting as nested plain data (tuples where the schema has tuples); ``config_from_dict`` is the inverse."""
    return asdict(config)


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name: {'growth': {'until': 5}} -> {'growth.until': 5}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def dump_config(config: Config) -> str:
    """Every setting as YAML; ``load_config`` of a file of this text gives back an equal ``Config``."""
    return yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _read(path: Path, children: tuple[Path, ...], old: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, settings by stage) of a file and its bases.

    Args:
        children: The files whose chain of bases led to this one.
        old: Warnings about old names are appended to it.
    """
    if path.resolve() in children:
        raise UserError(f"config: {path} is its own base; remove 'base:' from one of the files")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        origin = f" (base of {children[-1]})" if children else ""
        raise UserError(f"config: cannot read {path}{origin}: {error.strerror}; {instead_of(path)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config: {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict | None):
        raise UserError(f"config: {path} holds {_shown(data)}, expected settings as 'key: value' lines")
    data = _current(data or {}, str(path), old)

    base, stages = data.pop("base", None), data.pop("stages", None) or {}
    if not isinstance(base, str | None):
        raise UserError(f"config: {path}: base is {_shown(base)}, expected the path of one YAML file")
    names = typing.get_args(typing.get_type_hints(Config)["stage"])
    if not isinstance(stages, dict) or not set(stages) <= set(names):
        raise UserError(f"config: {path}: stages is {_shown(stages)}, expected settings under {' and '.join(names)}")
    settings = _typed(data, Config, "", str(path))
    stages = {
        name: _typed(_current(values, f"{path}: stages.{name}", old), Config, "", f"{path}: stages.{name}")
        for name, values in stages.items()
    }
    if base is None:
        return settings, stages
    file = path.parent / base if is_path(base) else find_settings(base)
    base_settings, base_stages = _read(file, (*children, path.resolve()), old)
    return _merged(base_settings, settings), _merged(base_stages, stages)


def _parse_override(text: str, old: list[str]) -> dict[str, Any]:
    """``a.b=value`` as nested settings {a: {b: value}}."""
    name, equals, raw = text.partition("=")
    if not equals:
        raise UserError(f"config: {text!r} is not a setting, expected key=value such as growth.interval=50")
    hint: Any = Config
    for part in () if name in REMOVED else current_name(name).split("."):
        fields = typing.get_type_hints(hint) if is_dataclass(hint) else {}
        if part not in fields:
            raise _unknown_key(name, "command line")
        hint = fields[part]

    raw, kinds = raw.strip(), _options(hint)
    null = raw in ("", "~", "null")
    if str in kinds and not null and raw[0] not in "'\"":
        value: Any = raw
    else:
        is_list = any(typing.get_origin(kind) is tuple for kind in kinds)
        try:
            value = yaml.load(f"[{raw}]" if is_list and not null and raw[0] != "[" else raw, _Loader)
        except yaml.YAMLError:
            value = raw  # The type check below raises an error that names the expected type.
    return _typed(_current(_nested(name, value), "command line", old), Config, "", "command line")


def _nested(name: str, value: Any) -> dict[str, Any]:
    """``a.b`` and a value as {a: {b: value}}."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def _current(data: Any, where: str, old: list[str]) -> Any:
    """Settings under their current names; warnings about old names are appended to ``old``."""
    data, warnings = current_settings(data, where)
    old += [f"{where}: {text}" for text in warnings]
    return data


def _typed(value: Any, hint: Any, name: str, where: str) -> Any:
    """``value`` converted to the types of ``hint``; sections stay dictionaries, so that files can be merged."""
    if not is_dataclass(hint):
        has_share = name in _SHARES or Share in _options(hint)
        is_share = has_share and isinstance(value, str) and _SHARE.fullmatch(value)
        is_passes = name == "steps" and isinstance(value, str) and _PASSES.fullmatch(value) and float(value.split()[0])
        if is_share or is_passes or (name in _AUTO and value == "auto"):
            return value
        try:
            return _scalar(value, hint)
        except TypeError:
            expected = _described(hint)
            expected += ", or a share of steps such as 60%" if name in _SHARES else ""
            expected += ", or passes over the pixels such as '12 passes'" if name == "steps" else ""
            expected += ", or auto" if name in _AUTO else ""
            raise UserError(f"config: {where}: {name} is {_shown(value)}, expected {expected}") from None
    if value is None:  # A section whose lines are all commented out.
        return {}
    if not isinstance(value, dict):
        raise UserError(f"config: {where}: {name or 'the file'} is {_shown(value)}, expected a section of settings")
    fields = typing.get_type_hints(hint)
    result = {}
    for key, item in value.items():
        full = f"{name}.{key}" if name else str(key)
        if key not in fields:
            raise _unknown_key(full, where)
        result[key] = _typed(item, fields[key], full, where)
    return result


def _scalar(value: Any, hint: Any) -> Any:
    """``value`` converted to the type ``hint``; raises TypeError where it has another type."""
    for kind in _options(hint):
        if kind is type(None) and value is None:
            return None
        if typing.get_origin(kind) is Literal and isinstance(value, str) and value in typing.get_args(kind):
            return value
        items = typing.get_args(kind)
        if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
            if items[1:] == (...,):
                return tuple(_scalar(item, items[0]) for item in value)
            if len(value) == len(items):
                return tuple(_scalar(item, of) for item, of in zip(value, items, strict=True))
        if kind in (bool, str) and isinstance(value, kind):
            return value
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if kind is int and number and value == int(value):  # 3e4 is a whole number, too.
            return int(value)
        if kind is float and number:
            return float(value)
    raise TypeError


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    fields = typing.get_type_hints(cls)
    return cls(**{k: _build(fields[k], v) if is_dataclass(fields[k]) else v for k, v in values.items()})


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both merged section by section; ``above`` wins."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _options(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    # The origin of a union that contains a Literal is typing.Union.
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _described(hint: Any) -> str:
    """A type in words."""
    words = {
        bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null",
        Share: "a share of the run such as 20%",
    }  # fmt: skip
    parts = []
    for kind in _options(hint):
        items = typing.get_args(kind)
        if typing.get_origin(kind) is Literal:
            parts.append("one of " + ", ".join(items))
        elif items[1:] == (...,):
            parts.append("a list of texts")
        elif typing.get_origin(kind) is tuple:
            parts.append(f"a list of {len(items)} {'whole numbers' if items[0] is int else 'numbers'}")
        else:
            parts.append(words[kind])
    return " or ".join(parts)


def _shown(value: Any) -> str:
    """A value as one would type it in YAML, cut to 80 characters."""
    if isinstance(value, str):
        text = repr(value)
    else:
        text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=999).removesuffix("\n...\n").rstrip()
    return text if len(text) <= 80 else text[:77] + "..."


def _unknown_key(name: str, where: str) -> UserError:
    """The error that suggests the most similar key, preferably one with the same last part (a forgotten section)."""
    valid = list(_keys(Config, ""))
    same_leaf = [key for key in valid if key.rpartition(".")[2] == name.rpartition(".")[2]]
    nearest = difflib.get_close_matches(name, same_leaf or valid, n=1, cutoff=0)[0]
    return UserError(f"config: {where}: unknown setting {name!r}; did you mean {nearest!r}?")


def _keys(cls: Any, prefix: str) -> Iterator[str]:
    """Dotted names of all settings and sections."""
    for key, hint in typing.get_type_hints(cls).items():
        yield prefix + key
        if is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{key}.")
