"""Layout of renders and scores in the output folder, and the JSON files in it.

::

    OUT/<split>/ours_<N>/renders/<name>.png    the render, 8 bit
    OUT/<split>/ours_<N>/gt/<name>.png         the target image at the same size
    OUT/<split>/ours_<N>/render.json           views, speed, memory, and the model
    OUT/results.json, OUT/per_view.json        scores of the test split, one entry per method
    OUT/results_train.json, ...                scores of the training views

The layout is that of 3DGS codebases, so their tools can read these folders, and ``eval`` can score theirs, which have
no ``render.json``.
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
    """Image name -> PNG name, with its folders: 'a/1.jpg' -> 'a/1.png'.

    Images that differ only in their suffix keep it: '1.jpg.png' and '1.tif.png'.
    """
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    uses = Counter(stems.values())
    return {name: f"{stem if uses[stem] == 1 else name}.png" for name, stem in stems.items()}


def view_list_hash(names: Iterable[str]) -> str:
    """SHA-256 of the sorted PNG names, one per line; equal if two scores are of the same views."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty if there is no file. Raises UserError if the file is damaged."""
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
    """Writes atomically. Numbers that JSON does not have become null, such as the infinite PSNR of equal images."""
    with replacing(path) as part:
        part.write_text(json.dumps(_finite(data), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def merge_json(path: Path, entries: dict[str, Any]) -> None:
    """Replaces or adds ``entries`` at the top level of a JSON file and keeps all others."""
    write_json(path, {**read_json(path), **entries})


def result_files(out: Path, split: str) -> tuple[Path, Path]:
    """(results, per_view) files of a split; the test split has the names that 3DGS codebases use."""
    suffix = "" if split == "test" else f"_{split}"
    return out / f"results{suffix}.json", out / f"per_view{suffix}.json"


def config_hash(out: Path) -> str | None:
    """SHA-256 of the run's config.yaml; None if it has none, as the folders of other programs."""
    path = out / "config.yaml"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def code_version() -> str:
    """The version of the package, and in its own checkout the commit, with ``+dirty`` if files are modified."""
    package = Path(momentum_gs.__file__)

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(package.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()

    # An installed copy may lie inside another project's checkout, so the commit counts only if git tracks the package.
    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", package.name) else None
    if commit is None:
        return momentum_gs.__version__
    return f"{momentum_gs.__version__} {commit}{'+dirty' if git('status', '--porcelain', '-uno') else ''}"
