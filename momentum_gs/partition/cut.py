"""Cuts a scene into blocks and assigns their cameras, from the settings to the partition file."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from momentum_gs.config.run import coarse_folder, frame_of_run, load_run_config, out_folder
from momentum_gs.config.schema import Config
from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.core.types import Camera
from momentum_gs.data.frame import same_frame
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.io import load_model, model_folder
from momentum_gs.model.splats import Harmonics, Model
from momentum_gs.partition.assign import assign_cameras, view_changes, view_contributions, weak_blocks
from momentum_gs.partition.budget import with_block_count
from momentum_gs.partition.cover import block_boxes, view_cover
from momentum_gs.partition.coverage import SEEN_BY, BlockCoverage, coverage
from momentum_gs.partition.figure import draw_partition
from momentum_gs.partition.join import block_place, join_starved
from momentum_gs.partition.layout import automatic_layout
from momentum_gs.partition.published_masks import read_camera_masks
from momentum_gs.partition.windows import weights_by_boxes, weights_by_model, with_windows

UNOWNED = 0.01
"""Share of the training pixels that no block trains above which to warn: where 2.7 % were, training on 172 images of a
park lost 0.2 dB (docs/lab_log.md)."""


def cut(config: Config, limit: int, bytes_each: int, camera_masks: Path | None = None) -> None:
    """Makes the partition, saves it, draws it and prints it.

    Args:
        config: Settings, with absolute paths.
        limit: Most anchors that a block may have, for ``partition.blocks=auto``.
        bytes_each: Bytes that an anchor takes in training.
        camera_masks: Published mask file from which to take the views of each block (``read_camera_masks``).

    Raises:
        UserError: if the scene or the settings do not allow it, or a block is left without a view (the file is
            written even then).
    """
    path = Path(config.partition.file) if config.partition.file else out_folder(config) / "partition.json"
    scene = load_scene(frame_of_run(config.scene, coarse_folder(config)))
    config = with_block_count(config, scene, limit, bytes_each)
    settings = config.partition
    table = automatic_layout(scene.train, scene.points.xyz, settings).table()
    coarse = None
    if camera_masks is None:
        if table.n > 1 and settings.assign != "visibility":
            coarse = _load_coarse(scene, config)
        table = _with_views(table, scene, config, coarse)
    else:
        views = read_camera_masks(camera_masks, [camera.name for camera in scene.train], table.n)
        table = replace(table, views=views, meta={"assign": camera_masks.name})
    points = torch.bincount(table.cell_of(scene.points.xyz), minlength=table.n).tolist()
    table, joined = join_starved(table, scene.train, points, settings.min_views, settings.min_points)
    covered = coverage(table, scene.train, scene.points.xyz)
    meta = {
        **scene.frame.record(),
        "balance": settings.balance_used,
        "joined": joined,
        "coverage": [asdict(block) for block in covered],
    }
    table = replace(table, meta={**table.meta, **meta})
    if table.n > 1:
        if coarse is None:
            weights = weights_by_boxes(table, block_boxes(table, scene.points.xyz))
        else:
            weights = weights_by_model(coarse[0], coarse[1], table.cell_of(coarse[0].position))
        table = with_windows(table, scene.train, weights)
    table.save(path)
    _print(table, covered, len(scene.train), config.blocks.windows)
    for line in joined:
        info(f"joined: {line}")
    info(f"partition: {path}")
    try:
        draw_partition(path.with_suffix(".png"), table, scene.train, scene.points)
        info(f"map:       {path.with_suffix('.png')}")
    except UserError as error:  # The map is optional: it needs matplotlib.
        info(f"no map: {error}")
    empty = weak_blocks(table, minimum=1)
    if empty:
        raise UserError(f"partition: {empty[0]}" + (f" ({len(empty) - 1} more like it)" if len(empty) > 1 else ""))
    for line in weak_blocks(table):
        info(f"warning: {line}")


def _with_views(
    table: PartitionTable, scene: Scene, config: Config, coarse: tuple[Model, Decoder | Harmonics, str] | None
) -> PartitionTable:
    """The table with the views of each block; a single block gets all and needs no coarse model."""
    settings = config.partition
    if table.n == 1:
        return replace(table, views=[[camera.name for camera in scene.train]])
    meta: dict[str, Any] = {"assign": settings.assign, "threshold": settings.threshold}
    changes: Callable[[Camera], Mapping[int, float]]
    if coarse is None:
        changes = partial(view_cover, table=table, boxes=block_boxes(table, scene.points.xyz))
    else:
        model, decoder, name = coarse
        meta.update(coarse_anchors=len(model), coarse_model=name)
        rows = table.cell_of(model.position)
        background = torch.full((3,), float(config.scene.white_background), device=rows.device)
        if settings.assign == "contribution":
            changes = lambda camera: view_contributions(model, decoder, camera, rows)  # noqa: E731
        else:
            changes = lambda camera: view_changes(  # noqa: E731
                model, decoder, camera, rows, background, table.owner(camera)
            )
    return replace(table, views=assign_cameras(scene.train, table, changes, settings.threshold), meta=meta)


def _load_coarse(scene: Scene, config: Config) -> tuple[Model, Decoder | Harmonics, str]:
    """The coarse model with its decoder, on the device that renders, and its folder's name.

    Raises:
        UserError: there is none, or it was trained in other coordinates.
    """
    coarse = coarse_folder(config)
    try:
        folder = model_folder(coarse)
    except UserError as error:
        raise UserError(
            f"partition: no coarse model in {coarse}, expected one to find which cameras see which block; "
            f"run 'momentum-gs train -s {config.scene.path} -m {coarse} stage=coarse' first, or set "
            "partition.assign=visibility"
        ) from error
    if (coarse / "config.yaml").is_file():
        theirs, ours = load_run_config(coarse).scene, scene.frame.recorded(config.scene)
        if not same_frame(theirs, ours):
            raise UserError(
                f"partition: the coarse model in {coarse} has scene.unit={theirs.unit}, scene.offset={theirs.offset}, "
                f"expected {ours.unit} and {ours.offset} as in this run; train it again with these settings, or set "
                "partition.assign=visibility"
            )
    device = pick_device(config.device)
    model, decoder = load_model(folder / "point_cloud.ply")
    return model.to(device), decoder.to(device), folder.name


def _print(table: PartitionTable, covered: list[BlockCoverage], cameras: int, windows: bool) -> None:
    """Prints the grid, one line per block, the totals, and with windows what no block trains."""
    up = ", ".join(f"{value:.3f}" for value in table.rotation[2].tolist())
    info(f"grid {' x '.join(map(str, table.dim))}; its z axis is ({up}) of the world")
    info("core box " + ", ".join(f"{value:.4g}" for value in table.aabb) + " (low x,y,z, high x,y,z of the grid)")
    info(f"{'block':>5}  {'cell':<26}{'inside':>7}{'views':>7}{'points':>10}{f'seen {SEEN_BY}x':>9}{'area':>11}")
    for block, row in enumerate(covered):
        info(
            f"{block:>5}  {block_place(table, block):<26}{row.inside:>7}{row.views:>7}{row.points:>10}{row.seen:>9.0%}"
            f"{row.area:>11.4g}"
        )
    views, points, area = sum(r.views for r in covered), sum(r.points for r in covered), sum(r.area for r in covered)
    seen = sum(r.seen * r.points for r in covered) / max(points, 1)
    info(
        f"{'all':>5}  {'':<26}{cameras:>7}{views:>7}{points:>10}{seen:>9.0%}{area:>11.4g}   "
        f"{views / cameras:.2f} blocks a view"
    )
    unowned = table.unowned() if windows else 0.0
    if unowned > UNOWNED:
        info(f"warning: no block trains {unowned:.1%} of the training views' pixels with blocks.windows: their blocks "
             "make up too little of the view; lower partition.threshold")  # fmt: skip
