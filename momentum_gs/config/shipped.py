"""The settings files and sweeps that come with the program, by name: ``rubble``, ``modes/full``, ``table7``.

They are in the folder ``configs`` of a checkout, which a wheel contains as ``momentum_gs/configs``.

A name that ends in .yaml or .yml, or begins with '/', '.' or '~', is the path of a user's own file. Any other name is
looked up among the shipped files: first as a path below ``configs`` without suffix, then as the end of such a path.
Files in the working directory never change what a name means.
"""

import difflib
from pathlib import Path

import momentum_gs
from momentum_gs.core.errors import UserError

_SWEEPS = "sweeps/"


def shipped_folder() -> Path:
    """The folder of the shipped settings files."""
    package = Path(momentum_gs.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_settings(name: str | Path) -> Path:
    """The settings file with this name (see above). A path is returned as it is, whether or not it exists.

    Raises:
        UserError: for a name that no shipped file has, or that several have.
    """
    return _find(str(name), _settings(), "config", "settings file")


def find_sweep(name: str | Path) -> Path:
    """The sweep file with this name, ``table7`` or ``sweeps/table7``. Raises as ``find_settings`` does."""
    return _find(str(name).removeprefix(_SWEEPS), _sweeps(), "sweep", "sweep")


def instead_of(path: str | Path) -> str:
    """Advice for an error about a missing path: to check it, and the shipped file that may be meant."""
    words = Path(str(path).removesuffix(".yml").removesuffix(".yaml")).parts
    known = {**_settings(), **{_SWEEPS + name: file for name, file in _sweeps().items()}}
    tails = ["/".join(words[start:]) for start in range(len(words))]
    found = next((ends for tail in tails if (ends := _ends(tail, known))), None)
    return "check the path" if found is None else f"check the path; the shipped one is called {' or '.join(found)}"


def is_path(name: str) -> bool:
    """Whether a name is the path of a user's own file."""
    return name.endswith((".yaml", ".yml")) or name.startswith(("/", ".", "~"))


def _shipped() -> dict[str, Path]:
    root = shipped_folder()
    return {file.relative_to(root).with_suffix("").as_posix(): file for file in sorted(root.rglob("*.yaml"))}


def _settings() -> dict[str, Path]:
    return {name: file for name, file in _shipped().items() if not name.startswith(_SWEEPS)}


def _sweeps() -> dict[str, Path]:
    return {name.removeprefix(_SWEEPS): file for name, file in _shipped().items() if name.startswith(_SWEEPS)}


def _ends(name: str, shipped: dict[str, Path]) -> list[str]:
    """The shipped files that a name may mean."""
    return [name] if name in shipped else [known for known in shipped if known.endswith(f"/{name}")]


def _find(name: str, shipped: dict[str, Path], where: str, kind: str) -> Path:
    if is_path(name):
        return Path(name)
    ends = _ends(name, shipped)
    if len(ends) == 1:
        return shipped[ends[0]]
    if ends:
        raise UserError(f"{where}: {name!r} is the name of several shipped files; choose {' or '.join(ends)}")
    stems = {known.rpartition("/")[2]: known for known in reversed(shipped)}
    near = dict.fromkeys(stems.get(match, match) for match in difflib.get_close_matches(name, [*shipped, *stems]))
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(shipped)}"
    raise UserError(f"{where}: no shipped {kind} is called {name!r}; {hint} Give your own file with its suffix")
