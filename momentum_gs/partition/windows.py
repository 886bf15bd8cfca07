"""The part of each training view that its blocks own, for ``blocks.windows``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera
from momentum_gs.core.window import RASTER, pack_owned
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.splats import Harmonics, Model
from momentum_gs.partition.cover import boxes_behind
from momentum_gs.render.ownership import block_weights, on_raster, owned_squares, raster_camera
from momentum_gs.render.view import decode_view

Weights = Callable[[Camera], Mapping[int, Float[Tensor, "32 32"]]]
"""A view -> the weight of every block in it in each square of the raster, blocks without any left out."""


def with_windows(table: PartitionTable, cameras: Sequence[Camera], weights: Weights) -> PartitionTable:
    """The table with the squares that every block owns in each of its views.

    In some of its views a block may own nothing: their cameras stand in its cell and look elsewhere. A block that owns
    nothing in any view, where the coarse model shows nothing of its cell, keeps all of its views whole.
    """
    by_name = {camera.name: camera for camera in cameras}
    windows: list[list[str]] = [[""] * len(names) for names in table.views]
    places: dict[str, list[tuple[int, int]]] = {}
    for block, names in enumerate(table.views):
        for place, name in enumerate(names):
            places.setdefault(name, []).append((block, place))
    whole = pack_owned(torch.ones(1, RASTER, RASTER, dtype=torch.bool))
    for name, of_blocks in progress(places.items(), desc="windows"):
        camera = by_name[name]
        owned = owned_squares(weights(camera))
        for block, place in of_blocks:
            windows[block][place] = pack_owned(owned[block]) if block in owned else ""
    windows = [texts if any(texts) else [whole] * len(texts) for texts in windows]
    return replace(table, windows=windows)


def weights_by_model(model: Model, decoder: Decoder | Harmonics, block_of_row: Int[Tensor, "n"]) -> Weights:
    """By a render of the coarse model at the raster's resolution."""

    def weights(camera: Camera) -> dict[int, Tensor]:
        small = raster_camera(camera)
        decoded = decode_view(model, decoder, small)
        rows = decoded.visible.repeat_interleave(model.n_offsets)[decoded.kept]
        found = block_weights(decoded, small, block_of_row[rows])
        return {block: on_raster(weight) for block, weight in found.items()}

    return weights


def weights_by_boxes(table: PartitionTable, boxes: Float[Tensor, "b 6"]) -> Weights:
    """By the boxes around the blocks' points, whatever hides them: for scenes without a coarse model."""

    def weights(camera: Camera) -> dict[int, Tensor]:
        hit = boxes_behind(camera, table, boxes).float()
        return {b: hit[b].view(RASTER, RASTER) for b in range(table.n) if hit[b].any()}

    return weights
