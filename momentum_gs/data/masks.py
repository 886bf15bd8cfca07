"""Masks: images that mark which pixels count. Black pixels are ignored, all others count.

The mask of ``a/1.jpg`` is ``a/1.jpg.png`` (as in COLMAP), ``a/1.png`` or ``a/1.jpg`` below the mask folder. All pixels
of an image without a mask count.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.data.images import image_size, read_image, same_aspect

# Half of the range, so that JPEG noise around 0 still counts as black.
_BLACK_BELOW = 128


def find_masks(folder: Path, names: Collection[str]) -> tuple[dict[str, Path], list[str]]:
    """Mask files by image name, and the files in the folder that belong to no image.

    Args:
        folder: The mask folder; it need not exist.
        names: Image names of the scene.
    """
    return find_beside(folder, names, lambda name: (f"{name}.png", str(PurePosixPath(name).with_suffix(".png")), name))


def find_beside(
    folder: Path, names: Collection[str], forms: Callable[[str], Sequence[str]]
) -> tuple[dict[str, Path], list[str]]:
    """The files in a folder that belong to images, by image name, and those that belong to none.

    Only names of files that are in the folder are found, whatever an image's name says.

    Args:
        folder: It need not exist.
        names: Image names of the scene.
        forms: Image name -> names that its file may have below the folder, best first.
    """
    if not folder.is_dir():
        return {}, []
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found: dict[str, Path] = {}
    used = set()
    for name in names:
        chosen = next((candidate for candidate in forms(name) if candidate in there), None)
        if chosen is not None:
            found[name] = folder / chosen
            used.add(chosen)
    return found, sorted(there - used)


def check_mask(path: Path, width: int, height: int) -> None:
    """Checks, by its header, that a mask has the size of its image or a scaled copy's.

    Raises:
        UserError: the sizes have different aspect ratios, or the mask cannot be read.
    """
    found = image_size(path)
    if not same_aspect(found, (width, height)):
        raise UserError(
            f"data: mask {path} is {found[0]}x{found[1]}, but its image is {width}x{height}, expected that size or the "
            "same shape; make the mask from the image, or remove it"
        )


def read_mask(path: Path, width: int, height: int) -> UInt8[Tensor, "1 h w"]:
    """A mask at training resolution: 1 where a pixel counts, 0 where it is ignored.

    A pixel of a downscaled mask counts only if all pixels of the mask file that it covers do.

    Raises:
        UserError: as ``read_image``.
    """
    counts = (read_image(path, *image_size(path)).numpy().max(axis=0) >= _BLACK_BELOW).astype(np.uint8) * 255
    if counts.shape != (height, width):
        shrinks = width <= counts.shape[1] and height <= counts.shape[0]
        counts = cv2.resize(counts, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    return torch.from_numpy((counts == 255).astype(np.uint8))[None]
