"""``momentum-gs partition``: cut a scene into blocks and give each block its cameras."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from momentum_gs.cli.common import add_run_arguments, out_folder, resolve_config
from momentum_gs.config.schema import Config
from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import say
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.eval.renders import model_folder
from momentum_gs.model.io import load_decoder, load_ply
from momentum_gs.partition.assign import assign_cameras, cell_name, weak_blocks
from momentum_gs.partition.layout import automatic_layout
from momentum_gs.partition.picture import draw_partition

HELP = "cut a scene into blocks and give each block its cameras"
DESCRIPTION = """\
Lays a grid of blocks over the scene (partition.aabb and partition.dim, found from cameras and points where they are not
given) and decides which cameras train which block: those inside its cell, and those whose picture of the coarse model
changes when the block is left out (1 - SSIM above partition.threshold).

  momentum-gs train -s SCENE -m OUT/coarse stage=coarse
  momentum-gs partition SCENE -m OUT partition.blocks=8

Writes OUT/partition.json, which train, merge, render and eval read, and OUT/partition.png, a map of it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_run_arguments(parser, scene_first=True)


def run(args: argparse.Namespace) -> None:
    """Makes the partition, saves it, draws it and prints it."""
    config = resolve_config(args)
    path = Path(config.partition.file) if config.partition.file else out_folder(config) / "partition.json"
    scene = load_scene(config.scene)
    layout = automatic_layout(scene.train, scene.points.xyz, config.partition)
    n_blocks = layout.dim[0] * layout.dim[1] * layout.dim[2]
    table = PartitionTable(layout.aabb, layout.dim, layout.rotation, [[] for _ in range(n_blocks)])
    table = _with_views(table, scene, config)
    table.save(path)
    _print(table, scene)
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


def _with_views(table: PartitionTable, scene: Scene, config: Config) -> PartitionTable:
    """The table with its cameras, by the coarse model; one block takes them all and needs no model."""
    if table.n == 1:
        return replace(table, views=[[camera.name for camera in scene.train]])
    coarse = Path(config.partition.coarse) if config.partition.coarse else out_folder(config) / "coarse"
    try:
        folder = model_folder(coarse)
    except UserError as error:
        raise UserError(
            f"partition: no coarse model in {coarse}, expected one to see which cameras see which block; "
            f"run 'momentum-gs train -s {config.scene.path} -m {coarse} stage=coarse' first"
        ) from error
    device = pick_device(config.device)
    anchors, decoder = load_ply(folder / "point_cloud.ply").to(device), load_decoder(folder).to(device)
    background = torch.full((3,), float(config.scene.white_background), device=device)
    threshold = config.partition.threshold
    views = assign_cameras(scene.train, anchors, decoder, table, threshold, background)
    meta = {"threshold": threshold, "coarse_anchors": len(anchors), "coarse_model": folder.name}
    return replace(table, views=views, meta=meta)


def _print(table: PartitionTable, scene: Scene) -> None:
    """The grid and one line a block."""
    up = ", ".join(f"{value:.3f}" for value in table.rotation[2].tolist())
    say(f"grid {' x '.join(map(str, table.dim))}; its z axis is ({up}) of the world")
    say("core box " + ", ".join(f"{value:.4g}" for value in table.aabb) + " (low x,y,z, high x,y,z of the grid)")
    owners = [table.owner(camera) for camera in scene.train]
    points = torch.bincount(table.cell_of(scene.points.xyz), minlength=table.n).tolist()
    say(f"{'block':>5}  {'cell':<24}{'views':>7}{'inside':>8}{'points':>10}")
    for block, names in enumerate(table.views):
        cell = cell_name(table, block)
        say(f"{block:>5}  {cell:<24}{len(names):>7}{owners.count(block):>8}{points[block]:>10}")
    total = sum(map(len, table.views))
    say(f"{'all':>5}  {'':<24}{total:>7}{len(owners):>8}{sum(points):>10}   {total / len(owners):.2f} blocks a view")
