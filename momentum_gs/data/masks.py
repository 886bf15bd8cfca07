"""Masks: images beside the images that say which pixels count. Black is ignored, everything else counts.

The mask of ``a/1.jpg`` is ``a/1.jpg.png`` (COLMAP's form) or ``a/1.png`` below the mask folder, or a file of the
image's own name. An image without a mask counts as a whole.
"""

from collections.abc import Collection
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.data.images import image_size, read_image, same_aspect

# Half of the range: the noise that JPEG puts around 0 is still black.
_BLACK_BELOW = 128


def find_masks(folder: Path, names: Collection[str]) -> tuple[dict[str, Path], list[str]]:
    """Mask files of images, by image name, and the files in the folder that belong to no image.

    Args:
        folder: The mask folder; where there is none, there are no masks.
        names: Image names as the scene has them.
    """
    if not folder.is_dir():
        return {}, []
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found: dict[str, Path] = {}
    used = set()
    for name in names:
        candidates = (f"{name}.png", str(PurePosixPath(name).with_suffix(".png")), name)
        chosen = next((candidate for candidate in candidates if candidate in there), None)
        if chosen is not None:
            found[name] = folder / chosen
            used.add(chosen)
    return found, sorted(there - used)


def check_mask(path: Path, width: int, height: int) -> None:
    """Compares a mask's size with its image's, by the header.

    Raises:
        UserError: where one is not the other resized, or the mask cannot be read.
    """
    found = image_size(path)
    if not same_aspect(found, (width, height)):
        raise UserError(
            f"data: mask {path} is {found[0]}x{found[1]}, but its image is {width}x{height}, expected that size or the "
            "same shape; make the mask from the image, or take it away"
        )


def read_mask(path: Path, width: int, height: int) -> UInt8[Tensor, "1 h w"]:
    """A mask at the size of training: 1 where a pixel counts, 0 where it is ignored.

    A pixel of a smaller image counts only where all of the mask's pixels below it do.

    Raises:
        UserError: as ``read_image``.
    """
    counts = (read_image(path, *image_size(path)).numpy().max(axis=0) >= _BLACK_BELOW).astype(np.uint8) * 255
    if counts.shape != (height, width):
        shrinks = width <= counts.shape[1] and height <= counts.shape[0]
        counts = cv2.resize(counts, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    return torch.from_numpy((counts == 255).astype(np.uint8))[None]
