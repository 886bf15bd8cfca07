"""Joins trained blocks to one model: every block gives the anchors (or splats) inside its own cell, and only those.

The cells tile all of space, so the merged anchors hold no duplicate at a border and nothing inside a cell is lost.
Rows are copied bit for bit between the files, a slice at a time: memory does not grow with the scene.
Source: Momentum-GS merge_blocks.py.
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
"""Rows in memory at a time: 40 MB at 316 bytes an anchor."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge did."""

    path: Path
    kept: list[int]
    """Anchors of every block inside its cell."""
    dropped: list[int]
    """Anchors of every block outside of it."""


def merge_blocks(folder: Path, table: PartitionTable) -> MergeReport:
    """Crops ``point_cloud_block<i>.ply`` of every block to its cell and writes ``point_cloud.ply`` beside them.

    Args:
        folder: ``point_cloud/iteration_<N>`` of a run of block training.
        table: The partition that the run was trained with.

    Raises:
        UserError: for an incomplete set of blocks, a file that is no model, or blocks of different make.
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
    # Counted first, because the header tells the number of rows; the second look is cheaper than keeping them.
    kept = [sum(int(inside.sum()) for _, inside in _slices(rows, b, table)) for b, rows in enumerate(blocks)]
    target = folder / "point_cloud.ply"
    # Only an anchor that shares its decoder with all others need not say where it comes from.
    dtype = np.dtype([*blocks[0].dtype.descr, (BLOCK_PROPERTY, "<i4")]) if own else blocks[0].dtype
    with replacing(target) as temporary, temporary.open("wb") as file:
        file.write(_header(dtype, sum(kept)))
        for block, rows in enumerate(progress(blocks, desc="merging blocks")):
            for part, inside in _slices(rows, block, table):
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
                f"{decoder}: the blocks are there but {DECODER_FILE}, which is written last, is not; "
                "finish the training with 'momentum-gs train ... --resume'"
            )


def _rows(path: Path) -> np.ndarray:
    """The anchors of a file as a structured array that reads from disk when it is used."""
    try:
        rows = PlyData.read(str(path), mmap="r")["vertex"].data
    except (PlyParseError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a whole PLY model ({error}); train the block again") from error
    if not {"x", "y", "z"} <= set(rows.dtype.names or ()):
        raise UserError(f"{path}: no x, y, z among its columns, expected a model of block training")
    return rows


def _slices(rows: np.ndarray, block: int, table: PartitionTable) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Slices of the rows, each with the mask of the anchors inside the block's cell."""
    for start in range(0, len(rows), SLICE):
        part = np.array(rows[start : start + SLICE])
        position = np.stack([part["x"], part["y"], part["z"]], axis=1)
        # float64, so that the same place in two blocks' files comes out in the same cell whatever slice it stands in.
        yield part, (table.cell_of(torch.from_numpy(position).double()) == block).numpy()


def _header(dtype: np.dtype, count: int) -> bytes:
    """Head of a PLY file whose vertices are the bytes of ``count`` rows."""
    element = PlyElement.describe(np.empty(0, dtype), "vertex")
    order = ">" if dtype["x"].byteorder == ">" else "<"
    return PlyData([element], byte_order=order).header.replace("vertex 0", f"vertex {count}").encode() + b"\n"
