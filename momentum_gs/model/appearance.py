"""Per-image colour corrections for differences in exposure and white balance (docs/appearance.md).

A row of the table is the deviation of one image's correction from the identity, so zeros change nothing. An image has
one row, however many blocks train on it. Held-out views and exports have no correction.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.window import Window
from momentum_gs.model.image_table import ImageTable, load_table, save_table

APPEARANCE_FILE = "appearance.safetensors"
ROW_SHAPES = {"affine": (3, 4), "bilateral": (12, 8, 16, 16)}
"""Shape of a row by ``appearance.model``. A bilateral grid has an affine map (3x4, row by row) for each of 8 levels of
brightness, 16 positions from top to bottom and 16 from left to right, the size of gsplat's."""
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness, ITU-R BT.601."""


@dataclass(frozen=True)
class AppearanceTable(ImageTable):
    """The corrections of a scene's training images; their mean is the identity."""

    def correct(
        self, image: Float[Tensor, "3 h w"], name: str, window: Window | None = None
    ) -> Float[Tensor, "3 h w"]:
        """The render with the correction of the named image; unchanged if the table has no such image."""
        return correct(image, self.rows[self.names.index(name)].to(image), window) if name in self.names else image


def correct(
    image: Float[Tensor, "3 h w"], row: Float[Tensor, "..."], window: Window | None = None
) -> Float[Tensor, "3 h w"]:
    """Corrects every colour c of a render to c + row @ (c, 1), without clamping.

    With a bilateral grid (Chen, Paris and Durand 2007), every pixel uses the map at its position and brightness.
    ``window``: the part of the whole render that ``image`` is.
    """
    if row.dim() == 4:
        maps = sliced(row, image, window).unflatten(0, (3, 4))
        return image + torch.einsum("cdhw,dhw->chw", maps[:, :3], image) + maps[:, 3]
    return image + (row[:, :3] @ image.flatten(1) + row[:, 3:]).view_as(image)


def sliced(
    grid: Float[Tensor, "c l y x"], image: Float[Tensor, "3 h w"], window: Window | None = None
) -> Float[Tensor, "c h w"]:
    """The grid's values at every pixel's position and brightness, interpolated linearly between neighbours.

    The outermost values are at the image's edges and at brightness 0 and 1; beyond these they stay constant.
    """
    _, height, width = image.shape
    brightness = torch.einsum("c,chw->hw", image.new_tensor(_LUMA), image)
    left, top, of_width, of_height = 0, 0, width, height
    if window is not None:
        left, top, (of_width, of_height) = window.x, window.y, window.image_size
    x = (torch.arange(left, left + width, device=image.device) + 0.5) / of_width
    y = (torch.arange(top, top + height, device=image.device) + 0.5) / of_height
    where = torch.stack([x.expand(height, width), y[:, None].expand(height, width), brightness], dim=-1)
    found = F.grid_sample(grid[None], 2 * where[None, None] - 1, padding_mode="border", align_corners=True)
    return found[0, :, 0]


def roughness(grid: Float[Tensor, "c l y x"]) -> Float[Tensor, ""]:
    """Mean squared difference of neighbours, summed over the three axes of the grid (gsplat's total variation)."""
    return torch.stack([grid.diff(dim=d).square().mean() for d in (1, 2, 3)]).sum()


def save_appearance(folder: Path, table: AppearanceTable) -> None:
    """Writes ``appearance.safetensors`` into an existing model folder: rows, flags, and the names as metadata."""
    save_table(folder / APPEARANCE_FILE, table)


def load_appearance(folder: Path) -> AppearanceTable | None:
    """The table in a model folder, on the CPU; None for a model that was trained without one.

    Raises:
        UserError: the file is damaged.
    """
    return load_table(folder / APPEARANCE_FILE, AppearanceTable, list(ROW_SHAPES.values()))
