"""Compares view assignment by one render for each camera, and by geometry alone, with the SSIM test.

Compares the three ways of ``partition.assign`` for one scene and its coarse model, without writing a partition: pairs
of a camera and a block that each finds, renders, time. The cameras inside a block, which all three give it, are left
out of the pairs.

    python scripts/scale/assignment.py SCENE --coarse OUT/coarse -c FILE [key=value ...]
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from momentum_gs.cli.common import add_run_arguments, resolve_config
from momentum_gs.core.device import pick_device
from momentum_gs.core.log import info
from momentum_gs.core.types import Camera
from momentum_gs.data.scene import load_scene
from momentum_gs.model.io import load_decoder, load_ply, model_folder
from momentum_gs.partition.assign import view_changes, view_contributions
from momentum_gs.partition.cover import block_boxes, view_cover
from momentum_gs.partition.layout import automatic_layout

THRESHOLDS = (0.03, 0.05)
"""Those of the published partitions."""


def main() -> None:
    """Prints one line for each way and threshold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser, scene_first=True)
    parser.add_argument("--coarse", type=Path, required=True, help="output folder of the coarse model")
    args = parser.parse_intermixed_args()
    config = resolve_config(args)
    scene = load_scene(config.scene)
    device = pick_device(config.device)
    folder = model_folder(args.coarse)
    anchors, decoder = load_ply(folder / "point_cloud.ply").to(device), load_decoder(folder).to(device)
    table = automatic_layout(scene.train, scene.points.xyz, config.partition).table()
    background = torch.full((3,), float(config.scene.white_background), device=device)
    block_of_anchor = table.cell_of(anchors.position)
    ways: dict[str, Callable[[Camera], Mapping[int, float]]] = {
        "ssim": lambda camera: view_changes(
            anchors, decoder, camera, block_of_anchor, background, table.owner(camera)
        ),
        "contribution": lambda camera: view_contributions(anchors, decoder, camera, block_of_anchor),
        "visibility": partial(view_cover, table=table, boxes=block_boxes(table, scene.points.xyz)),
    }
    found = {way: torch.zeros(len(scene.train), table.n, dtype=torch.float64) for way in ways}
    seconds = dict.fromkeys(ways, 0.0)
    in_image = 0  # blocks that the SSIM test had to leave out of a render
    for i, camera in enumerate(scene.train):
        for way, changes in ways.items():
            begin = time.perf_counter()
            values = changes(camera)
            seconds[way] += time.perf_counter() - begin
            in_image += len(values) if way == "ssim" else 0
            found[way][i, list(values)] = torch.tensor(list(values.values()), dtype=torch.float64)
        for values_by_block in found.values():
            values_by_block[i, table.owner(camera)] = 0
    cameras, n = len(scene.train), table.n
    renders = {"ssim": cameras + in_image, "contribution": cameras, "visibility": 0}
    info(f"{cameras} cameras, {n} blocks ({' x '.join(map(str, table.dim))}), {len(anchors)} anchors")
    info(f"renders, two for every camera and block: {2 * cameras * n}; " + ", ".join(
        f"{way}: {count}" for way, count in renders.items()
    ))
    info("time over that of ssim: " + ", ".join(f"{way}: {s / seconds['ssim']:.3f}" for way, s in seconds.items()))
    for threshold in THRESHOLDS:
        wanted = found["ssim"] > threshold
        for way in ("contribution", "visibility"):
            got = found[way] > threshold
            most = int((got ^ wanted).sum(dim=0).max())
            info(
                f"threshold {threshold}: {int(wanted.sum())} pairs by ssim of {in_image}; {way} adds "
                f"{int((got & ~wanted).sum())} and leaves out {int((wanted & ~got).sum())}, at most {most} in a block"
            )


if __name__ == "__main__":
    main()
