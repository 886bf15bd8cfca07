"""Writes the trained model: ``point_cloud/iteration_<steps>/`` with a PLY file for each block, the decoder, the
corrections of the images and the partition."""

from pathlib import Path

import torch

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.model.io import block_decoder_folder, save_background, save_decoder, save_model
from momentum_gs.train.blocks.packed import block_kind, unpack
from momentum_gs.train.blocks.store import BlockStore
from momentum_gs.train.corrections.tables import Corrections
from momentum_gs.train.decoders.choice import Decoders
from momentum_gs.train.decoders.none import NoDecoder
from momentum_gs.train.decoders.per_block import PerBlockDecoders
from momentum_gs.train.decoders.shared import SharedDecoder


def write_model(
    out: Path,
    steps: int,
    store: BlockStore,
    decoders: Decoders,
    corrections: Corrections,
    table: PartitionTable | None,
    config: Config,
    comm: Comm,
    device: torch.device,
) -> Path:
    """Writes the model folder: every rank writes the blocks that it holds, rank 0 what they share.

    Args:
        out: The run's output folder.
        steps: Number in the folder's name.
        store: Holds all blocks, inactive.
        table: The partition; None for the coarse model, which is one block.

    Returns:
        The model folder, once all ranks have written.
    """
    folder = out / "point_cloud" / f"iteration_{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    kind = block_kind(config).MODEL
    for block in store.held():
        name = "point_cloud.ply" if table is None else f"point_cloud_block{block}.ply"
        save_model(folder / name, kind.from_rows(store.rows(block)))
        if isinstance(decoders, PerBlockDecoders):
            own = block_decoder_folder(folder, block)
            own.mkdir(exist_ok=True)
            save_decoder(own, decoders.student_of(unpack(store.packed(block), config, device)))
    if comm.rank == 0:
        if isinstance(decoders, SharedDecoder):
            save_decoder(folder, decoders.saved)
        if isinstance(decoders, NoDecoder) and decoders.background is not None:
            save_background(folder, decoders.background)
        corrections.save(folder)
        if table is not None:
            table.save(folder / "partition.json")
    comm.barrier()
    return folder
