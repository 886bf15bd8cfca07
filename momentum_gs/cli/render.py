"""``momentum-gs render``: renders every view of a split to PNG, beside its target image."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from momentum_gs.config.run import load_run_config
from momentum_gs.config.schema import Config
from momentum_gs.core.device import pick_device, print_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.views import Views
from momentum_gs.eval.covered import other_maps, write_covered
from momentum_gs.eval.history import read_history
from momentum_gs.eval.renders import ModelPart, block_parts, merged_part, render_parts
from momentum_gs.eval.results import SPLITS, config_hash
from momentum_gs.model.appearance import load_appearance
from momentum_gs.model.io import model_folder
from momentum_gs.model.lod import LOD_FILE
from momentum_gs.model.poses import load_poses

HELP = "render the test or training views of a finished run"
DESCRIPTION = """\
Renders the views of a split and writes OUT/<split>/ours_<N>/{renders,gt}/<image name>.png (8 bit; N is the iteration),
render.json with speed and peak memory, and cells/ with maps of the block that each pixel shows. Training views of a run
with appearance.model or optim.pose are rendered with the corrections learned for them; test views never are. Scores by
block and near borders are comparable between runs only if they use the same cells: see --cells.

With --covered, it also counts for every pixel the training views that see its surface point, and writes the counts to
covered/. 'eval' then also scores the pixels that at least three training views see: at the edge of a survey, test views
show ground that no model can reconstruct. To compare two runs, use the same maps: --covered-by takes those of another
run.

  momentum-gs render OUT                    the merged model, test views
  momentum-gs render OUT --blocks           before the merge: each view by the block that owns it (ours_<N>_blocks)
  momentum-gs render OUT --cells OTHER/partition.json      maps of OTHER's blocks
  momentum-gs render OUT/coarse --split both --errors
  momentum-gs render OUT --covered
  momentum-gs render OTHER --covered-by OUT
  momentum-gs render OUT --budget 500000    levels of detail: ours_<N>_budget500000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("out", metavar="OUT", type=Path, help="output folder of a run")
    parser.add_argument("--split", choices=(*SPLITS, "both"), default="test", help="which views (default: test)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--blocks", action="store_true", help="render each view with the unmerged model of the block that owns it"
    )
    what.add_argument(
        "--cells", type=Path, metavar="FILE", help="partition file whose cells label pixels (default: the run's own)"
    )
    covered = parser.add_mutually_exclusive_group()
    covered.add_argument(
        "--covered", action="store_true",
        help="also write covered/: how many training views see the surface point of each pixel; renders the depth of "
        "all training views",
    )  # fmt: skip
    covered.add_argument(
        "--covered-by", type=Path, metavar="RUN", help="copy covered/ from the renders of another run of this scene"
    )
    parser.add_argument(
        "--budget", type=int, metavar="N",
        help="render at most N Gaussians near each view, from the levels of detail of 'momentum-gs export OUT --lod'",
    )  # fmt: skip
    parser.add_argument("--iteration", type=int, default=-1, metavar="N", help="model to render (default: the last)")
    parser.add_argument("--errors", action="store_true", help="also write errors/: heat maps of the absolute error")
    parser.add_argument("-s", "--source_path", metavar="SCENE", help="scene folder, if it was moved after training")
    parser.add_argument("--device", help="auto, cpu or cuda (default: the run's own setting)")


def run(args: argparse.Namespace) -> None:
    """Renders one or both splits."""
    if args.blocks and (args.covered or args.covered_by is not None):
        raise UserError(
            "render: --blocks is given with --covered or --covered-by, expected only one of them; blocks are scored "
            "with the maps of the merged model, so use --covered when you render that"
        )
    if args.budget is not None and (args.budget < 1 or args.blocks):
        found = f"{args.budget}{' with --blocks' if args.blocks else ''}"
        raise UserError(
            f"render: --budget is {found}, expected a number of Gaussians, at least 1, for the merged model; correct it"
        )
    config = load_run_config(args.out)
    if args.source_path is not None:
        config = replace(config, scene=replace(config.scene, path=args.source_path))
    print_device(args.device or config.device)
    device = pick_device(args.device or config.device)
    folder = model_folder(args.out, args.iteration)
    iteration = int(folder.name.removeprefix("iteration_"))
    scene = load_scene(config.scene)
    poses = load_poses(folder)
    if poses is not None:
        scene = replace(scene, train=[poses.camera(camera) for camera in scene.train])
    splits = {split: getattr(scene, split) for split in (SPLITS if args.split == "both" else (args.split,))}
    parts = {split: _parts(args, config, folder, scene, cameras) for split, cameras in splits.items()}
    background = torch.full((3,), float(config.scene.white_background), device=device)
    kind = "_blocks" if args.blocks else f"_budget{args.budget}" if args.budget else ""
    method = f"ours_{iteration}{kind}"
    table = None if config.stage == "coarse" else _table(config, folder, scene)
    cells = table
    if args.cells is not None:
        cells = PartitionTable.load(args.cells).in_frame(scene.frame)
    elif args.blocks:
        cells = None  # Blocks are scored with the merged model's maps, so that both scores use the same pixels.
    maps = {split: other_maps(args.covered_by, split, cameras) for split, cameras in splits.items() if args.covered_by}
    history = read_history(args.out)
    appearance = load_appearance(folder)
    # Every image is used once, so a cache would only add to the peak memory.
    with Views(scene, 0, pick_device("cpu")) as views:
        for split in splits:
            target = args.out / split / method
            record = {
                "method": method,
                "split": split,
                "iteration": iteration,
                "config_sha256": config_hash(args.out),
                "white_background": config.scene.white_background,
                "stage": config.stage,
                "seed": config.seed,
                "refined_poses": poses is not None and split == "train",
                "steps": config.steps,
                "k": history.k if history else None,
                "n": table.n if table else 1,
                "budget": args.budget,
                "windows": config.stage == "blocks" and config.blocks.windows,
            }
            corrections = appearance if split == "train" else None
            result = render_parts(target, parts[split], views, background, record, args.errors, cells, corrections)
            if args.covered:
                write_covered(target, folder / "point_cloud.ply", scene, splits[split], background)
            elif split in maps:
                maps[split].copy(target)
            info(
                f"render: {len(result['names'])} {split} views, {result['views_per_second']:.2f} views/s "
                f"({result['device']}, {result['timed_views']} timed), {_primitives(result)}, "
                f"peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB -> {target}"
            )


def _parts(
    args: argparse.Namespace, config: Config, folder: Path, scene: Scene, cameras: list[Camera]
) -> list[ModelPart]:
    if args.budget:
        return [replace(part, lod=args.out / LOD_FILE, budget=args.budget) for part in merged_part(folder, cameras)]
    if not args.blocks:
        return merged_part(folder, cameras)
    return block_parts(folder, _table(config, folder, scene), cameras)


def _primitives(result: dict[str, Any]) -> str:
    """The number of anchors or Gaussians, for the printed line."""
    return f"{result['anchors']:,} anchors" if result["anchors"] else f"{result['gaussians']:,} Gaussians"


def _table(config: Config, folder: Path, scene: Scene) -> PartitionTable:
    """The partition that the model was trained with."""
    table = PartitionTable.load(folder / "partition.json")
    table.check(config.partition, scene)
    return table
