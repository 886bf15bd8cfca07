"""``momentum-gs partition``: cut a scene into blocks and give each block its cameras."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from momentum_gs.cli.common import add_run_arguments, frame_of_run, load_run_config, out_folder, resolve_config
from momentum_gs.config.schema import Config
from momentum_gs.core.device import free_device_memory, pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import say
from momentum_gs.core.types import Camera
from momentum_gs.data.frame import same_frame
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.prepare_partition import read_camera_masks
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.model.io import load_model, model_folder
from momentum_gs.partition.assign import assign_cameras, view_changes, view_contributions, weak_blocks
from momentum_gs.partition.budget import GROWTH, blocks_within
from momentum_gs.partition.cover import block_boxes, view_cover
from momentum_gs.partition.coverage import SEEN_BY, BlockCoverage, coverage
from momentum_gs.partition.join import block_place, join_starved
from momentum_gs.partition.layout import automatic_layout
from momentum_gs.partition.picture import draw_partition
from momentum_gs.train.anchor_budget import bytes_per_anchor, max_anchors

HELP = "cut a scene into blocks and give each block its cameras"
DESCRIPTION = """\
Lays a grid of blocks over the scene (partition.aabb, partition.dim and partition.balance, found from cameras and points
where they are not given) and decides which cameras train which block: those inside its cell, and those for whose
picture it counts more than partition.threshold. What counts, partition.assign says:

  ssim          1 - SSIM of the coarse picture with and without the block
  contribution  the same number, estimated for all blocks from one render of each camera
  visibility    the share of the picture that the box around the block's points covers; needs no coarse model

Blocks with fewer than partition.min_views views or partition.min_points points are joined to a neighbour.
partition.blocks=auto finds how many blocks fit the memory (anchors.max_gb_per_block).

  momentum-gs train -s SCENE -m OUT/coarse stage=coarse
  momentum-gs partition SCENE -m OUT partition.blocks=8
  momentum-gs partition SCENE -m OUT partition.blocks=auto anchors.max_gb_per_block=6 partition.assign=visibility

Writes OUT/partition.json, which train, merge, render and eval read, and OUT/partition.png, a map of it.
"""

MEMORY_SHARE = 0.5
"""Of the free memory, for the anchors of a block; pictures and the decoder's activations take the rest."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_run_arguments(parser, scene_first=True)
    parser.add_argument("--camera-masks", type=Path, metavar="FILE",
                        help="take the views of each block from a published mask (data_partitions/*.npy); it needs the "
                        "scene, partition.aabb and partition.dim that it was made for")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Makes the partition, saves it, draws it and prints it."""
    cut(resolve_config(args, own=True), args.camera_masks)


def cut(config: Config, camera_masks: Path | None = None) -> None:
    """The same with settings whose paths are absolute.

    Args:
        camera_masks: Published mask that says which views each block has.
    """
    path = Path(config.partition.file) if config.partition.file else out_folder(config) / "partition.json"
    scene = load_scene(frame_of_run(config.scene, coarse_folder(config)))
    config = with_block_count(config, scene)
    settings = config.partition
    table = automatic_layout(scene.train, scene.points.xyz, settings).table()
    if camera_masks is None:
        table = _with_views(table, scene, config)
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
    table.save(path)
    _print(table, covered, len(scene.train))
    for line in joined:
        say(f"joined: {line}")
    say(f"partition: {path}")
    try:
        draw_partition(path.with_suffix(".png"), table, scene.train, scene.points)
        say(f"map:       {path.with_suffix('.png')}")
    except UserError as error:  # the map is a help, not a part of the run
        say(f"no map: {error}")
    empty = weak_blocks(table, minimum=1)
    if empty:
        raise UserError(f"partition: {empty[0]}" + (f" ({len(empty) - 1} more like it)" if len(empty) > 1 else ""))
    for line in weak_blocks(table):
        say(f"warning: {line}")


def with_block_count(config: Config, scene: Scene) -> Config:
    """The experiment with the number of blocks that fits the memory, where ``auto`` asks for it."""
    if config.partition.blocks != "auto" or config.partition.dim is not None:
        return config
    limit = max_anchors(config.anchors, config.model)
    if limit is None:
        limit = int(MEMORY_SHARE * free_device_memory(pick_device(config.device))) // bytes_per_anchor(config.model)
    n, largest = blocks_within(limit, scene.train, scene.points.xyz, config)
    gb = bytes_per_anchor(config.model) / 2**30
    say(
        f"blocks: {n}, the largest with about {largest:,} anchors ({largest * gb:.2f} GiB) after growth by {GROWTH:g}; "
        f"bound: {limit:,} ({limit * gb:.2f} GiB)"
    )
    return replace(config, partition=replace(config.partition, blocks=n))


def coarse_folder(config: Config) -> Path:
    """Where the coarse model of the experiment is, or would be."""
    return Path(config.partition.coarse) if config.partition.coarse else out_folder(config) / "coarse"


def _with_views(table: PartitionTable, scene: Scene, config: Config) -> PartitionTable:
    """The table with its cameras; one block takes them all and needs no model."""
    settings = config.partition
    meta: dict[str, Any] = {"assign": settings.assign, "threshold": settings.threshold}
    changes: Callable[[Camera], Mapping[int, float]]
    if table.n == 1:
        return replace(table, views=[[camera.name for camera in scene.train]])
    if settings.assign == "visibility":
        changes = partial(view_cover, table=table, boxes=block_boxes(table, scene.points.xyz))
    else:
        changes = _coarse_changes(table, scene, config, meta)
    return replace(table, views=assign_cameras(scene.train, table, changes, settings.threshold), meta=meta)


def _coarse_changes(
    table: PartitionTable, scene: Scene, config: Config, meta: dict[str, Any]
) -> Callable[[Camera], Mapping[int, float]]:
    """What the coarse model says of the blocks in a camera's picture; ``meta`` gets its name and size."""
    coarse = coarse_folder(config)
    try:
        folder = model_folder(coarse)
    except UserError as error:
        raise UserError(
            f"partition: no coarse model in {coarse}, expected one to see which cameras see which block; "
            f"run 'momentum-gs train -s {config.scene.path} -m {coarse} stage=coarse' first, or set "
            "partition.assign=visibility"
        ) from error
    if (coarse / "config.yaml").is_file():
        theirs, ours = load_run_config(coarse).scene, scene.frame.recorded(config.scene)
        if not same_frame(theirs, ours):
            raise UserError(
                f"partition: the coarse model in {coarse} has scene.unit={theirs.unit}, scene.offset={theirs.offset}, "
                f"expected {ours.unit} and {ours.offset} as here; train it again with these settings, or set "
                "partition.assign=visibility"
            )
    device = pick_device(config.device)
    anchors, decoder = load_model(folder / "point_cloud.ply")
    anchors, decoder = anchors.to(device), decoder.to(device)
    background = torch.full((3,), float(config.scene.white_background), device=device)
    meta.update(coarse_anchors=len(anchors), coarse_model=folder.name)
    block_of_anchor = table.cell_of(anchors.position)
    if config.partition.assign == "contribution":
        return lambda camera: view_contributions(anchors, decoder, camera, block_of_anchor)
    return lambda camera: view_changes(anchors, decoder, camera, block_of_anchor, background, table.owner(camera))


def _print(table: PartitionTable, covered: list[BlockCoverage], cameras: int) -> None:
    """The grid and one line a block."""
    up = ", ".join(f"{value:.3f}" for value in table.rotation[2].tolist())
    say(f"grid {' x '.join(map(str, table.dim))}; its z axis is ({up}) of the world")
    say("core box " + ", ".join(f"{value:.4g}" for value in table.aabb) + " (low x,y,z, high x,y,z of the grid)")
    say(f"{'block':>5}  {'cell':<26}{'inside':>7}{'views':>7}{'points':>10}{f'seen {SEEN_BY}x':>9}{'area':>11}")
    for block, row in enumerate(covered):
        say(
            f"{block:>5}  {block_place(table, block):<26}{row.inside:>7}{row.views:>7}{row.points:>10}{row.seen:>9.0%}"
            f"{row.area:>11.4g}"
        )
    views, points, area = sum(r.views for r in covered), sum(r.points for r in covered), sum(r.area for r in covered)
    seen = sum(r.seen * r.points for r in covered) / max(points, 1)
    say(
        f"{'all':>5}  {'':<26}{cameras:>7}{views:>7}{points:>10}{seen:>9.0%}{area:>11.4g}   "
        f"{views / cameras:.2f} blocks a view"
    )
