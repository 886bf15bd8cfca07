"""Splitting of views into training views and held-out views."""

from collections.abc import Collection, Sequence
from pathlib import Path

from momentum_gs.core.errors import UserError


def split(
    names: Sequence[str], test_every: int, test_names: Collection[str] | None = None
) -> tuple[list[str], list[str]]:
    """Splits image names into train and test, each in order of name.

    Args:
        names: All image names of the scene.
        test_every: Hold out every n-th name in sorted order, beginning with the first (``llffhold`` in 3DGS); 0: none.
        test_names: Names to hold out instead of every n-th.

    Raises:
        UserError: the scene has no image of a name in ``test_names``, or no image is left to train on.
    """
    ordered = sorted(names)
    if test_names is not None:
        unknown = sorted(set(test_names) - set(ordered))
        if unknown:
            raise UserError(
                f"data: {len(unknown)} of {len(set(test_names))} names in the test list are not in the scene, first: "
                f"{unknown[0]!r}, expected names as {ordered[0]!r}; correct the list"
            )
        held_out = set(test_names)
    else:
        held_out = set(ordered[::test_every]) if test_every else set()
    train = [name for name in ordered if name not in held_out]
    if not train:
        raise UserError(
            f"data: all {len(ordered)} images are held out, expected at least one to train on; change the test list or "
            "scene.test_every"
        )
    return train, [name for name in ordered if name in held_out]


def read_list(path: Path) -> list[str]:
    """Names in a list file, one per line; blank lines and lines that begin with '#' are ignored.

    Raises:
        UserError: the file cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data: test list {path} cannot be read ({error}); correct scene.test_list") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
