"""Trains on every n-th image of a scene and scores on all others: what a model makes of thin coverage.

    python scripts/sparse_views.py SCENE OUT -c configs/caliterra.yaml --common "scene.resolution=4 steps=600" \\
        "plain" "background model.background=constant" "gaussians -c configs/modes/gaussians.yaml"

A variant is a name and further words for 'momentum-gs train', which runs with stage=coarse. All start from the sparse
points that at least two of the training images observe (OUT/points.ply), as a reconstruction of these images alone
would give them. Variants that OUT holds already are scored, not trained again. The table (also OUT/table.md) has means
over the seeds: raw and colour-corrected PSNR and SSIM of whole views, raw PSNR of the worst quarter of the views, and
raw PSNR over the pixels that at least two training images cover and over all others. What covers a pixel goes by the
sparse points of the whole scene and not by any model: a pixel lies at the depth of the nearest sparse point in its
image, and a training image covers it where it lies within that image; what hides it is not asked.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from momentum_gs.config.load import load_config
from momentum_gs.core.geometry import in_view, project
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.colmap.model import find_model, read_points, read_views
from momentum_gs.data.images import read_image
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.tracks import read_tracks
from momentum_gs.data.viewer_files import write_input_ply
from momentum_gs.eval.results import png_names

COVER = 2
"""Training images from which on a pixel counts as covered: the second is the first that tells its depth."""
STRIDE = 4
"""Pixels between those of which the cover is looked up."""


def main() -> int:
    """Prepares the split, trains, scores and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="+", metavar="'NAME WORDS'")
    parser.add_argument("-c", "--config", action="append", default=[], help="settings of all variants, as for train")
    parser.add_argument("--common", default="", help="words for train that all variants have")
    parser.add_argument("--every", type=int, default=4, help="train on every n-th image (default: 4)")
    parser.add_argument("--seeds", default="0", help="comma-separated (default: 0)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    _prepare(args.scene, args.out, args.every)
    rows, covers = [], None
    for variant in args.variants:
        name, *words = shlex.split(variant)
        found = []
        for seed in args.seeds.split(","):
            run = args.out / f"{name}_s{seed}"
            _train(args, run, [*shlex.split(args.common), *words, f"seed={seed}"])
            covers = covers or _covers(args.scene, run)
            found.append(_scores(run, covers))
        rows.append((name, len(found), {key: float(np.nanmean([f[key] for f in found])) for key in found[0]}))
        print(_table(rows[-1:]), flush=True)
    (args.out / "table.md").write_text(_table(rows) + "\n")
    print(_table(rows))
    return 0


def _prepare(scene: Path, out: Path, every: int) -> None:
    """The list of held-out images and the points that the training images observe."""
    model = find_model(scene)
    names = [camera.name for camera, _ in read_views(model, distorted=True)]
    train = set(names[::every])
    (out / "test_list.txt").write_text("\n".join(name for name in names if name not in train) + "\n")
    tracks = read_tracks(model)
    count = torch.zeros(len(tracks.points), dtype=torch.int64)
    for name in train & tracks.seen.keys():
        count[tracks.seen[name]] += 1
    seen = count >= COVER
    write_input_ply(out / "points.ply", PointCloud(tracks.points.xyz[seen], tracks.points.rgb[seen]))
    print(f"{len(train)} training images of {len(names)}, {int(seen.sum())} of {len(seen)} points", flush=True)


def _train(args: argparse.Namespace, run: Path, words: list[str]) -> None:
    program = [sys.executable, "-m", "momentum_gs"]
    if not (run / "train.json").is_file():
        files = [word for config in args.config for word in ("-c", config)]
        own = ["-s", str(args.scene), "-m", str(run), "stage=coarse", f"scene.test_list={args.out / 'test_list.txt'}"]
        quiet = ["log.tensorboard=false", "log.checkpoint_every=0", f"scene.points={args.out / 'points.ply'}"]
        _run([*program, "train", *files, *own, *quiet, *words])
    if not (run / "results.json").is_file():
        _run([*program, "render", str(run)])
        _run([*program, "eval", str(run), "--lpips", "none"])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _covers(path: Path, run: Path) -> dict[str, np.ndarray]:
    """PNG name of every held-out view -> bool [H,W], the pixels that enough training images cover."""
    config = load_config(run / "config.yaml", [])
    scene = load_scene(config.scene)
    points = scene.frame.points(read_points(find_model(path)).xyz)
    names = png_names([camera.name for camera in scene.test])
    return {names[camera.name]: _cover(camera, scene, points) for camera in scene.test}


def _cover(camera: Camera, scene: Scene, points: torch.Tensor) -> np.ndarray:
    pixels, depth = project(points[in_view(points, camera)], camera)
    v, u = torch.meshgrid(
        torch.arange(0, camera.height, STRIDE) + 0.5, torch.arange(0, camera.width, STRIDE) + 0.5, indexing="ij"
    )
    grid = torch.stack([u, v], dim=-1).reshape(-1, 2).double()
    at = depth[torch.cdist(grid, pixels).argmin(dim=1)]
    rays = torch.cat(
        [
            (grid - grid.new_tensor([camera.cx, camera.cy])) / grid.new_tensor([camera.fx, camera.fy]),
            torch.ones(len(grid), 1, dtype=torch.float64),
        ],
        dim=1,
    )
    world = (rays * at[:, None]) @ camera.rotation + camera.center
    views = torch.stack([in_view(world, other) for other in scene.train]).sum(dim=0)
    covered = (views >= COVER).view(u.shape).numpy()
    return covered.repeat(STRIDE, 0).repeat(STRIDE, 1)[: camera.height, : camera.width]


def _scores(run: Path, covers: dict[str, np.ndarray]) -> dict[str, float]:
    results = json.loads((run / "results.json").read_text())
    (method,) = results
    folder = run / "test" / method
    per_view = json.loads((run / "per_view.json").read_text())[method]["PSNR"]
    psnrs = np.sort(list(per_view.values()))
    square = {True: 0.0, False: 0.0}
    count = {True: 0, False: 0}
    for name, covered in covers.items():
        height, width = covered.shape
        image, truth = (
            read_image(folder / kind / name, width, height, False).float() / 255 for kind in ("renders", "gt")
        )
        error = (image - truth)[:3].square().mean(dim=0).numpy()
        for side in (True, False):
            square[side] += float(error[covered == side].sum())
            count[side] += int((covered == side).sum())
    dB = {side: -10 * np.log10(square[side] / count[side]) if count[side] else np.nan for side in square}
    train = json.loads((run / "train.json").read_text())
    render = json.loads((folder / "render.json").read_text())
    scores = results[method]
    return {
        "PSNR": scores["PSNR"], "PSNR cc": scores["PSNR_cc"], "SSIM": scores["SSIM"],
        "worst quarter": float(psnrs[: max(len(psnrs) // 4, 1)].mean()),
        "covered": float(dB[True]), "not covered": float(dB[False]),
        "share covered": count[True] / (count[True] + count[False]),
        "s": train["seconds"], "primitives": render["anchors"] or render["gaussians"],
    }  # fmt: skip


def _table(rows: list[tuple[str, int, dict[str, float]]]) -> str:
    keys = list(rows[0][2])
    lines = ["| variant | seeds | " + " | ".join(keys) + " |", "|---|" + "---:|" * (len(keys) + 1)]
    digits = {"SSIM": 4, "s": 0, "primitives": 0}
    for name, seeds, row in rows:
        lines.append(f"| {name} | {seeds} | " + " | ".join(f"{row[k]:.{digits.get(k, 2)}f}" for k in keys) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
