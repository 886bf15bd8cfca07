"""Where renders and scores lie in a run's folder, and the small JSON files beside them.

::

    OUT/<split>/ours_<N>/renders/<name>.png    what the model shows, 8 bit
    OUT/<split>/ours_<N>/gt/<name>.png         the image at the same size
    OUT/<split>/ours_<N>/render.json           which views, how fast, how much memory, by which model
    OUT/results.json, OUT/per_view.json        scores of the test split, one entry a method
    OUT/results_train.json, ...                scores of the training views

The layout is that of 3DGS codebases, so their tools read ours and ``eval`` scores
theirs (a folder without ``render.json``).
"""

import hashlib
import json
import math
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import momentum_gs
from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing

SPLITS = ("test", "train")


def png_names(names: Sequence[str]) -> dict[str, str]:
    """The PNG of every image, folders kept: 'a/1.jpg' -> 'a/1.png'.

    Where images differ in nothing but their suffix, all of them keep it: '1.jpg.png' and '1.tif.png'.
    """
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    uses = Counter(stems.values())
    return {name: f"{stem if uses[stem] == 1 else name}.png" for name, stem in stems.items()}


def view_list_hash(names: Iterable[str]) -> str:
    """SHA-256 of the sorted PNG names, one a line: equal where two scores speak of the same views."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no file. Raises UserError where it is damaged."""
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); move it away and run again") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds a {type(data).__name__}, expected an object; move it away and run again")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write atomically. A number that JSON does not have (the PSNR of equal images is infinite) becomes null."""
    with replacing(path) as part:
        part.write_text(json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def merge_json(path: Path, entries: dict[str, Any]) -> None:
    """Replace or add ``entries`` at the top level of a JSON file, leaving the other methods' entries alone."""
    write_json(path, {**read_json(path), **entries})


def result_files(out: Path, split: str) -> tuple[Path, Path]:
    """(results, per_view) of a split; the plain names of 3DGS codebases belong to the test split."""
    suffix = "" if split == "test" else f"_{split}"
    return out / f"results{suffix}.json", out / f"per_view{suffix}.json"


def config_hash(out: Path) -> str | None:
    """SHA-256 of the run's resolved settings, None where the folder is another program's."""
    path = out / "config.yaml"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def code_version() -> str:
    """The package's version, and the commit (``+dirty`` with edits) where it runs from its own checkout."""
    package = Path(momentum_gs.__file__)

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(package.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()

    # An installed copy may lie inside somebody else's checkout: only a tracked file makes the commit ours.
    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", package.name) else None
    if commit is None:
        return momentum_gs.__version__
    return f"{momentum_gs.__version__} {commit}{'+dirty' if git('status', '--porcelain', '-uno') else ''}"
