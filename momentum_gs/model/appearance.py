"""What each image's exposure and white balance make of the scene's colours (docs/appearance.md).

A row of the table is the deviation of one image's correction from the identity, so zeros change nothing. An image has
one row however many blocks train on it. Held-out views and exports have no correction.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing

APPEARANCE_FILE = "appearance.safetensors"
ROW_SHAPES = {"affine": (3, 4), "bilateral": (12, 8, 16, 16)}
"""Shape of a row by ``appearance.model``. A bilateral grid has an affine map (its three rows one after the other) at
each of 8 levels of brightness, 16 places from top to bottom and 16 from left to right, as many as gsplat's."""
_LUMA = (0.299, 0.587, 0.114)
"""Brightness of a colour, ITU-R BT.601."""


@dataclass(frozen=True)
class AppearanceTable:
    """The corrections of a scene's training images."""

    names: tuple[str, ...]
    """Images in order of name, one row each."""
    rows: Float[Tensor, "v ..."]
    """Deviations from the identity."""
    shown: Bool[Tensor, "v"]
    """Images that have been trained on; the rows of the others are zero. The mean of the rows is zero, too."""

    def correct(self, image: Float[Tensor, "3 h w"], name: str) -> Float[Tensor, "3 h w"]:
        """The render as the image of that name has it; as it is where there is no such image."""
        return correct(image, self.rows[self.names.index(name)].to(image)) if name in self.names else image

    def of(self, names: Sequence[str]) -> "AppearanceTable":
        """The rows of other images, by name; those of images that are not here are zero and not shown."""
        place = {name: i for i, name in enumerate(self.names)}
        rows, shown = self.rows.new_zeros(len(names), *self.rows.shape[1:]), self.shown.new_zeros(len(names))
        for i, name in enumerate(names):
            if name in place:
                rows[i], shown[i] = self.rows[place[name]], self.shown[place[name]]
        return AppearanceTable(tuple(names), pin(rows, shown), shown)


def correct(image: Float[Tensor, "3 h w"], row: Float[Tensor, "..."]) -> Float[Tensor, "3 h w"]:
    """Adds to every colour c of a render what ``row`` makes of (c, 1): c + row @ (c, 1). Not clamped.

    Of a bilateral grid (Chen, Paris and Durand 2007) every pixel takes the map at its place and its brightness.
    """
    if row.dim() == 4:
        maps = sliced(row, image).unflatten(0, (3, 4))
        return image + torch.einsum("cdhw,dhw->chw", maps[:, :3], image) + maps[:, 3]
    return image + (row[:, :3] @ image.flatten(1) + row[:, 3:]).view_as(image)


def sliced(grid: Float[Tensor, "c l y x"], image: Float[Tensor, "3 h w"]) -> Float[Tensor, "c h w"]:
    """The grid's values at every pixel's place and brightness, between its neighbours in a straight line.

    The outermost values stand at the image's edges, those for brightness at 0 and 1; beyond, they go on.
    """
    _, height, width = image.shape
    brightness = torch.einsum("c,chw->hw", image.new_tensor(_LUMA), image)
    y, x = ((torch.arange(n, device=image.device) + 0.5) / n for n in (height, width))
    where = torch.stack([x.expand(height, width), y[:, None].expand(height, width), brightness], dim=-1)
    found = F.grid_sample(grid[None], 2 * where[None, None] - 1, padding_mode="border", align_corners=True)
    return found[0, :, 0]


def roughness(grid: Float[Tensor, "c l y x"]) -> Float[Tensor, ""]:
    """Mean squared difference of neighbours, summed over the three directions (gsplat's total variation)."""
    return torch.stack([grid.diff(dim=d).square().mean() for d in (1, 2, 3)]).sum()


def pin(rows: Float[Tensor, "v ..."], shown: Bool[Tensor, "v"]) -> Float[Tensor, "v ..."]:
    """The nearest rows, in the sum of squares, that are zero in the mean over the images shown; the others stay.

    A change that all corrections have in common is one of the scene's colours, which the model must learn: renders
    without a correction would lack it. The mean is taken in float64, so that it stays zero over any number of steps.
    """
    count = shown.to(rows).view(-1, *[1] * (rows.dim() - 1))
    mean = (rows * count).sum(0, dtype=torch.float64) / count.sum().clamp_min(1)
    return rows - mean.to(rows) * count


def save_appearance(folder: Path, table: AppearanceTable) -> None:
    """Writes ``appearance.safetensors`` into an existing model folder: rows, flags, and the names as metadata."""
    tensors = {"rows": table.rows.detach().cpu().contiguous(), "shown": table.shown.cpu()}
    with replacing(folder / APPEARANCE_FILE) as temporary:
        temporary.write_bytes(save(tensors, {"names": json.dumps(table.names)}))


def load_appearance(folder: Path) -> AppearanceTable | None:
    """The table beside a model, on the CPU; None for a model that was trained without.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / APPEARANCE_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            names = tuple(json.loads((file.metadata() or {})["names"]))
            table = AppearanceTable(names, file.get_tensor("rows"), file.get_tensor("shown"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a table of corrections ({error}); write it again") from error
    if not len(names) == len(table.rows) == len(table.shown) or table.rows.shape[1:] not in ROW_SHAPES.values():
        raise UserError(
            f"{path}: {len(names)} names for rows of shape {tuple(table.rows.shape)}, expected a row of a shape in "
            f"{list(ROW_SHAPES.values())} for each; write it again"
        )
    return table
