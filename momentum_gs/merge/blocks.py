"""Merges trained blocks into one model: the anchors (or splats) of each block that lie inside its own cell.

The cells tile all of space, so at borders nothing is duplicated and inside cells nothing is lost. Rows are copied bit
for bit from file to file in slices, so memory does not grow with the scene. Source: Momentum-GS merge_blocks.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.recfunctions import append_fields
from plyfile import PlyData, PlyElement, PlyParseError

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import progress
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.model.io import BLOCK_PROPERTY, DECODER_FILE, block_decoder_folder

SLICE = 1 << 17
"""Rows copied at a time: 40 MB at 316 bytes per anchor."""


@dataclass(frozen=True)
class MergeReport:
    """Result of a merge."""

    path: Path
    """The merged model."""
    kept: list[int]
    """For each block, the number of anchors (or splats) inside its cell."""
    dropped: list[int]
    """For each block, the number of those outside its cell."""


def merge_blocks(folder: Path, table: PartitionTable, *, whole: bool = False) -> MergeReport:
    """Crops ``point_cloud_block<i>.ply`` of every block to its cell and writes ``point_cloud.ply`` beside them.

    Args:
        folder: ``point_cloud/iteration_<N>`` of a run of block training.
        table: The partition that the run was trained with.
        whole: Blocks have nothing outside their cells but what has moved there (``blocks.windows``), so they are not
            cropped.

    Raises:
        UserError: for an incomplete set of blocks, a file that is not a model, or blocks with different columns.
    """
    paths = [folder / f"point_cloud_block{block}.ply" for block in range(table.n)]
    own = block_decoder_folder(folder, 0).is_dir()
    _check_complete(folder, paths)
    blocks = [_rows(path) for path in paths]
    if "f_dc_0" not in (blocks[0].dtype.names or ()):  # Splats have no decoder.
        _check_decoders([block_decoder_folder(folder, block) for block in range(table.n)] if own else [folder])
    for path, rows in zip(paths, blocks, strict=True):
        if rows.dtype != blocks[0].dtype:
            raise UserError(
                f"{path}: its columns differ from those of {paths[0].name} (another feature_dim, n_offsets or "
                "sh_degree); train all blocks in one run"
            )
    # Rows are counted first, as the header contains their number; reading twice is cheaper than keeping them in memory.
    cells = None if whole else table
    kept = [sum(int(inside.sum()) for _, inside in _slices(rows, b, cells)) for b, rows in enumerate(blocks)]
    target = folder / "point_cloud.ply"
    # With per-block decoders, every anchor stores its block, so that it can be decoded.
    dtype = np.dtype([*blocks[0].dtype.descr, (BLOCK_PROPERTY, "<i4")]) if own else blocks[0].dtype
    with replacing(target) as temporary, temporary.open("wb") as file:
        file.write(_header(dtype, sum(kept)))
        for block, rows in enumerate(progress(blocks, desc="merging blocks")):
            for part, inside in _slices(rows, block, cells):
                chosen = part[inside]
                if own:
                    chosen = append_fields(chosen, BLOCK_PROPERTY, np.full(len(chosen), block, "<i4"), usemask=False)
                chosen.astype(dtype, copy=False).tofile(file)
    return MergeReport(target, kept, [len(rows) - n for rows, n in zip(blocks, kept, strict=True)])


def _check_complete(folder: Path, paths: list[Path]) -> None:
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(paths)} blocks are missing: {', '.join(missing)}; "
            "finish the training with 'momentum-gs train ... --resume'"
        )


def _check_decoders(decoders: list[Path]) -> None:
    for decoder in decoders:
        if not (decoder / DECODER_FILE).is_file():
            raise UserError(
                f"{decoder}: no {DECODER_FILE}, though there are block files: it is written last; "
                "finish the training with 'momentum-gs train ... --resume'"
            )


def _rows(path: Path) -> np.ndarray:
    """The rows of a PLY file as a structured array, memory-mapped: read from disk on access."""
    try:
        rows = PlyData.read(str(path), mmap="r")["vertex"].data
    except (PlyParseError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a complete PLY model ({error}); train the block again") from error
    if not {"x", "y", "z"} <= set(rows.dtype.names or ()):
        raise UserError(f"{path}: no x, y, z among its columns, expected a model of block training; train it again")
    return rows


def _slices(rows: np.ndarray, block: int, table: PartitionTable | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Slices of the rows, each with the mask of the anchors inside the block's cell, or without a table of all."""
    for start in range(0, len(rows), SLICE):
        part = np.array(rows[start : start + SLICE])
        if table is None:
            yield part, np.ones(len(part), dtype=bool)
            continue
        position = np.stack([part["x"], part["y"], part["z"]], axis=1)
        # float64, so that equal positions in two blocks' files get the same cell, whatever slice they are in.
        yield part, (table.cell_of(torch.from_numpy(position).double()) == block).numpy()


def _header(dtype: np.dtype, count: int) -> bytes:
    """Header of a binary PLY file with ``count`` vertices of the given columns."""
    element = PlyElement.describe(np.empty(0, dtype), "vertex")
    order = ">" if dtype["x"].byteorder == ">" else "<"
    return PlyData([element], byte_order=order).header.replace("vertex 0", f"vertex {count}").encode() + b"\n"
