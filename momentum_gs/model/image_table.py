"""A table with one row per training image, whose mean row is zero: colour corrections, pose corrections.

A row is a deviation, so zeros change nothing. An image has one row, however many blocks train on it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing


@dataclass(frozen=True)
class ImageTable:
    """The corrections of a scene's training images, as deviations from no correction."""

    names: tuple[str, ...]
    """Image names in ascending order, one per row."""
    rows: Float[Tensor, "v ..."]
    """Deviations; zeros change nothing."""
    shown: Bool[Tensor, "v"]
    """Which images have been trained on; the rows of the others are zero. The mean of all rows is zero, too."""


AnyTable = TypeVar("AnyTable", bound=ImageTable)


def rows_of(table: AnyTable, names: Sequence[str]) -> AnyTable:
    """The table for the images ``names``; rows of images that ``table`` does not have are zero and not shown."""
    place = {name: i for i, name in enumerate(table.names)}
    rows, shown = table.rows.new_zeros(len(names), *table.rows.shape[1:]), table.shown.new_zeros(len(names))
    for i, name in enumerate(names):
        if name in place:
            rows[i], shown[i] = table.rows[place[name]], table.shown[place[name]]
    return replace(table, names=tuple(names), rows=pin(rows, shown), shown=shown)


def pin(rows: Float[Tensor, "v ..."], shown: Bool[Tensor, "v"]) -> Float[Tensor, "v ..."]:
    """Subtracts the mean over the images shown from their rows; the other rows are unchanged.

    This is the projection onto rows with mean zero. A change common to all images must be learned by the model, since
    renders without a correction would lack it. The mean is computed in float64, so that it stays zero over any number
    of steps.
    """
    count = shown.to(rows).view(-1, *[1] * (rows.dim() - 1))
    mean = (rows * count).sum(0, dtype=torch.float64) / count.sum().clamp_min(1)
    return rows - mean.to(rows) * count


def save_table(path: Path, table: ImageTable) -> None:
    """Writes rows and flags as safetensors, with the names as metadata."""
    tensors = {"rows": table.rows.detach().cpu().contiguous(), "shown": table.shown.cpu()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, {"names": json.dumps(table.names)}))


def load_table(path: Path, kind: type[AnyTable], shapes: Sequence[tuple[int, ...]]) -> AnyTable | None:
    """The table in a file, on the CPU; None if there is no such file.

    Args:
        kind: Class of the table.
        shapes: Allowed shapes of a row.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            names = tuple(json.loads((file.metadata() or {})["names"]))
            table = kind(names, file.get_tensor("rows"), file.get_tensor("shown"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a table of corrections ({error}); write it again") from error
    if not len(names) == len(table.rows) == len(table.shown) or table.rows.shape[1:] not in shapes:
        raise UserError(
            f"{path}: {len(names)} names for rows of shape {tuple(table.rows.shape)}, expected a row of a shape in "
            f"{list(shapes)} for each; write it again"
        )
    return table
