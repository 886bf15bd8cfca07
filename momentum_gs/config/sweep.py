"""Sweep files: experiments that differ in a few settings, to be compared over seeds (docs/experiments.md)."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from momentum_gs.config.shipped import instead_of, shipped_folder
from momentum_gs.core.errors import UserError

MODES = shipped_folder() / "modes"
"""Folder of the training modes that rows refer to by name."""

PAPER_METRICS = ("PSNR_cc", "SSIM_cc", "LPIPS_cc")
"""The metrics in a row's ``paper``: those of the paper's tables, which are colour-corrected."""

_KEYS = {"name", "title", "source", "set", "mode", "rows", "grid", "reference", "compare", "seeds"}
_ROW_KEYS = {"name", "set", "mode", "stretch", "paper", "teachers"}


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One row of the table."""

    name: str
    mode: Path | None = None
    """A settings file, which overrides the configuration that the sweep is run with."""
    settings: tuple[str, ...] = ()
    """``key=value``; these override the mode."""
    stretch: int = 1
    """Factor on ``steps``, ``optim.lr_steps``, ``growth.until`` and ``gaussians.until``."""
    teachers: tuple[str, ...] = ()
    """Names of earlier rows, whose runs of the same seed are the ``distill.teachers`` of this one."""
    paper: Mapping[str, tuple[float, float, float]]
    """Scene -> the paper's PSNR (dB), SSIM and LPIPS, colour-corrected."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The rows of a table, their seeds, and which rows to compare."""

    name: str
    """Name of the table's files."""
    title: str
    source: str
    """Where the paper's numbers are from."""
    rows: tuple[SweepRow, ...]
    reference: str
    """Name of the row that all others are compared with."""
    compare: tuple[tuple[str, str], ...]
    """Further pairs of rows to compare; the table shows the first minus the second."""
    seeds: tuple[int, ...]


def load_sweep(path: Path) -> Sweep:
    """Reads a sweep file.

    Raises:
        UserError: for a file that cannot be read, an unknown key, mode or row, a value of the wrong type, and a name
            that two rows have.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"sweep: cannot read {path}: {error.strerror}; {instead_of(path)}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"sweep: {path} is not valid YAML: {' '.join(str(error).split())}") from error
    where = f"sweep: {path}"
    data = _section(data, _KEYS, where)
    given = _list(data, "rows", where)
    if not given and "grid" not in data:
        raise UserError(f"{where}: found neither rows nor grid, expected at least one of them; see docs/experiments.md")
    rows = tuple(
        _row(row, f"{where}: row {index}", data, cell, path.parent)
        for index, row in enumerate(given or [{}], 1)
        for cell in _cells(data.get("grid"), where)
    )
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: two rows are called {twice[0]!r}, expected different names; rename one")
    if "," in "".join(names):
        raise UserError(f"{where}: a row's name has a comma, which separates the names of --only; rename it")

    for i, row in enumerate(rows):
        if wrong := [name for name in row.teachers if name not in names[:i]]:
            raise UserError(f"{where}: row {row.name!r} has the teacher {wrong[0]!r}, expected rows above it")

    def known(name: Any, key: str) -> str:
        if name not in names:
            raise UserError(f"{where}: {key} is {name!r}, expected one of the rows: {'; '.join(names)}")
        return str(name)

    if any(row.paper for row in rows) and not data.get("source"):
        raise UserError(f"{where}: rows have a paper's numbers, expected 'source:' to say where they are from; add it")
    compare = _list(data, "compare", where)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in compare):
        raise UserError(f"{where}: compare is {compare}, expected pairs of rows such as [[first, second]]")
    seeds = _list(data, "seeds", where) or [0, 1, 2]
    if not all(type(seed) is int for seed in seeds):
        raise UserError(f"{where}: seeds is {seeds}, expected whole numbers such as [0, 1, 2]")
    return Sweep(
        name=str(data.get("name", path.stem)),
        title=str(data.get("title", path.stem)),
        source=str(data.get("source", "")),
        rows=rows,
        reference=known(data.get("reference", names[0]), "reference"),
        compare=tuple((known(a, "compare"), known(b, "compare")) for a, b in compare),
        seeds=tuple(dict.fromkeys(seeds)),
    )


def _row(row: Any, where: str, data: Mapping[str, Any], cell: Mapping[str, Any], folder: Path) -> SweepRow:
    row = _section(row, _ROW_KEYS, where)
    settings = [f"{key}={_text(value)}" for key, value in cell.items()]
    # --only separates names by commas.
    name = " ".join([*([str(row["name"])] if "name" in row else []), *(text.replace(",", " ") for text in settings)])
    if not name:
        raise UserError(f"{where}: has no name, expected one for the table; add 'name:'")
    stretch = row.get("stretch", 1)
    if type(stretch) is not int or stretch < 1:
        raise UserError(f"{where}: stretch is {stretch!r}, expected a whole number of at least 1")
    paper = row.get("paper", {})
    try:
        numbers = {str(scene): (float(p), float(s), float(v)) for scene, (p, s, v) in paper.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}: paper is {paper!r}, expected 'scene: [PSNR, SSIM, LPIPS]' of the paper's table"
        ) from error
    return SweepRow(
        name=name,
        mode=_mode(row.get("mode", data.get("mode")), where, folder),
        settings=(*_list(data, "set", where), *_list(row, "set", where), *settings),
        stretch=stretch,
        teachers=tuple(map(str, _list(row, "teachers", where))),
        paper=numbers,
    )


def _mode(name: Any, where: str, folder: Path) -> Path | None:
    """The file of a mode: one of configs/modes, or with '.yaml' a path from the sweep file's folder."""
    if name is None:
        return None
    path = folder / name if str(name).endswith(".yaml") else MODES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in MODES.glob("*.yaml")))
        raise UserError(f"{where}: mode is {name!r}, expected one of {known}, or a file of settings (*.yaml)")
    return path.resolve()


def _cells(grid: Any, where: str) -> list[dict[str, Any]]:
    """Every combination of the grid's values; one empty combination where there is no grid."""
    grid = {} if grid is None else grid
    if not isinstance(grid, dict) or not all(isinstance(values, list) and values for values in grid.values()):
        raise UserError(f"{where}: grid is {grid!r}, expected 'setting: [value, value]' lines")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _section(data: Any, keys: set[str], where: str) -> dict[str, Any]:
    if not isinstance(data, dict) or not set(data) <= keys:
        found = data if not isinstance(data, dict) else sorted(set(data) - keys, key=str)
        raise UserError(f"{where}: found {found!r}, expected only {', '.join(sorted(keys))}; see docs/experiments.md")
    return data


def _list(data: Mapping[str, Any], key: str, where: str) -> Sequence[Any]:
    value = data.get(key) or []
    if not isinstance(value, list):
        raise UserError(f"{where}: {key} is {value!r}, expected a list")
    return value
