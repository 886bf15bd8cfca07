"""Reads camera masks as CityGaussian and Momentum-GS publish them (``data_partitions/*.npy``).

A mask is a bool array [views, blocks] that says which views train which block; its rows are in the sorted order of the
training images' names. The file does not contain the grid that it was made for.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from momentum_gs.core.errors import UserError


def read_camera_masks(path: Path, names: Sequence[str], n: int) -> list[list[str]]:
    """Names of the training views of each block.

    Args:
        path: The ``.npy`` file.
        names: Training views of the scene. The file has no names, only rows in sorted order, so these must be the views
            that it was made for.
        n: Number of blocks of the grid.

    Raises:
        UserError: if the file is not such an array, or has another number of views or blocks.
    """
    try:
        masks = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"partition: cannot read {path} ({error}), expected bools as .npy; copy it again") from error
    if not isinstance(masks, np.ndarray) or masks.dtype != bool or masks.shape != (len(names), n):
        found = f"{masks.dtype} {list(masks.shape)}" if isinstance(masks, np.ndarray) else "an archive"
        raise UserError(
            f"partition: {path} holds {found}, expected bool [{len(names)}, {n}]: the scene's training views and the "
            "blocks of the grid; use the scene and the partition.dim that it was made for"
        )
    ordered = sorted(names)
    return [[ordered[row] for row in np.flatnonzero(masks[:, block])] for block in range(n)]
