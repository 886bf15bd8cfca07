"""What cutting a scene into blocks costs at equal work: one block against several that do as much, over seeds.

    python scripts/division.py SCENE OUT --steps 1800 --blocks 4,8 --seeds 0,1,2 --common "scene.resolution=4"

Work is counted in pixels: all of a view, or those that a block owns of it. The single block trains --steps steps on
whole views. Several blocks start from a coarse model, which takes a share of that work (--coarse), and spend the rest
on their windows (blocks.windows): each trains as many steps as its share of the pixels allows. 'megapixels' also has
the pixels beside the owned ones that count because they are drawn anyway. Equal work takes blocks more CPU time; for
equal CPU time give the single block more steps (--single-steps). --variants adds rows, each a name and further
settings for the blocks, such as 'whole blocks.windows=false'. Finished runs in OUT are not repeated; one that was
interrupted starts anew.

The table, also written to OUT/table.md, has means and standard deviations over the seeds. 'cpu' is the CPU time of all
threads in training, in seconds, without merging and scoring. 'wall' is the CPU time of the coarse model plus a k-th of
that of the blocks, k of which train at a time (blocks.active): what k workers with one core each would take, if none
waited for another.
"""

import argparse
import json
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

from momentum_gs.data.partition_table import PartitionTable

OWN = Path(__file__).parents[1] / "configs" / "own.yaml"
COLUMNS = {"PSNR": 2, "PSNR_cc": 2, "SSIM": 4, "LPIPS": 4, "worst": 2, "border": 2, "anchors": 0, "trained": 0,
           "megapixels": 0, "cpu": 0, "wall": 0}  # fmt: skip
"""Name -> digits."""


def main() -> None:
    """Trains, scores and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1800, help="steps' worth of pixels for all (default: %(default)s)")
    parser.add_argument("--single-steps", type=int, help="of the single block, at equal CPU time (default: --steps)")
    parser.add_argument("--blocks", default="4,8", help="numbers of blocks (default: %(default)s)")
    parser.add_argument("--coarse", type=float, default=1 / 3, help="the coarse model's share (default: a third)")
    parser.add_argument("--active", type=float, default=0.5, help="blocks at a time, as a share (default: %(default)s)")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--common", default="", help="settings of all runs")
    parser.add_argument("--variants", nargs="*", default=["windows"], metavar="'NAME KEY=VALUE ...'")
    parser.add_argument("--lpips", default="none")
    parser.add_argument("--lpips-weights", type=Path)
    args = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds.split(","):
        rows.setdefault("1 block", []).append(single(args, seed))
        for n in map(int, args.blocks.split(",")):
            for variant in args.variants:
                name, *settings = shlex.split(variant)
                rows.setdefault(f"{n} blocks, {name}", []).append(divided(args, seed, n, name, settings))
        table = "\n".join(table_of(rows))
        (args.out / "table.md").write_text(table + "\n")
    print(table)


def single(args: argparse.Namespace, seed: str) -> dict[str, float]:
    """One block with all the work."""
    run = args.out / f"single_s{seed}"
    if not (run / "results.json").is_file():
        shutil.rmtree(run, ignore_errors=True)
        train(args, run, seed, "stage=coarse", f"steps={args.single_steps or args.steps}")
        score(args, run)
    return scores(run, run)


def divided(args: argparse.Namespace, seed: str, n: int, name: str, settings: list[str]) -> dict[str, float]:
    """A coarse model, then n blocks."""
    coarse, run = args.out / f"coarse_s{seed}", args.out / f"n{n}_{name}_s{seed}"
    if not (run / "results.json").is_file():
        train_blocks(args, seed, n, settings, coarse, run)
        command("merge", run)
        score(args, run)
    return scores(run, coarse)


def train_blocks(args: argparse.Namespace, seed: str, n: int, settings: list[str], coarse: Path, run: Path) -> None:
    """Trains a coarse model, unless there is one, then n blocks."""
    if not (coarse / "train.json").is_file():
        shutil.rmtree(coarse, ignore_errors=True)
        train(args, coarse, seed, "stage=coarse", f"steps={round(args.coarse * args.steps)}")
    shutil.rmtree(run, ignore_errors=True)
    cut = [f"partition.blocks={n}", "partition.assign=contribution", f"partition.coarse={coarse}"]
    on = [*cut, "blocks.windows=true", "blocks.from_coarse=true", f"blocks.active={max(1, round(args.active * n))}",
          "blocks.interval=100", "growth.start_stat=0", "growth.from_step=0", "growth.until=80%",
          "teacher.enabled=false", "weighting.enabled=false"]  # fmt: skip
    windows = "blocks.windows=false" not in settings
    on += ["partition.threshold=0.005"] * windows + settings
    command("partition", args.scene, "-c", OWN, "-m", run, *shlex.split(args.common), *on)
    views = PartitionTable.load(run / "partition.json").views_per_step(windows)
    train(args, run, seed, *on, f"steps={round((1 - args.coarse) * args.steps / views)}")


def train(args: argparse.Namespace, run: Path, seed: str, *settings: str) -> None:
    """Trains with the settings that need no hand, without checkpoints: those of many runs fill a disk."""
    command("train", "-s", args.scene, "-c", OWN, "-m", run, *shlex.split(args.common), *settings, f"seed={seed}",
            "log.tensorboard=false", "log.checkpoint_every=0", "log.checkpoint_minutes=0")  # fmt: skip


def score(args: argparse.Namespace, run: Path) -> None:
    """Renders the held-out views and scores them."""
    weights = [] if args.lpips_weights is None else ["--lpips-weights", args.lpips_weights]
    command("render", run)
    command("eval", run, "--lpips", args.lpips, *weights)


def command(*words: str | Path) -> None:
    """Runs a command of the program; what it prints is shown where it fails."""
    done = subprocess.run([sys.executable, "-m", "momentum_gs", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def scores(run: Path, coarse: Path) -> dict[str, float]:
    """What the table shows of a run."""
    result = next(v for k, v in json.loads((run / "results.json").read_text()).items() if not k.endswith("_blocks"))
    blocks = [block["PSNR"] for block in result.get("blocks", {}).values() if block.get("PSNR") is not None]
    trained = sum(rows_of(file) for file in run.glob("point_cloud/*/point_cloud_block*.ply")) or None
    found = {
        "PSNR": result["PSNR"], "PSNR_cc": result["PSNR_cc"], "SSIM": result["SSIM"],
        "LPIPS": next((v for k, v in result.items() if k.startswith("LPIPS") and not k.endswith("_cc")), None),
        "worst": min(blocks, default=None), "border": result.get("border", {}).get("PSNR"),
        "anchors": result["protocol"].get("anchors"), "trained": trained,
    }  # fmt: skip
    return {name: float(value) for name, value in found.items() if value is not None} | work_of(run, coarse)


def work_of(run: Path, coarse: Path) -> dict[str, float]:
    """Pixels and seconds of a training, together with those of its coarse model."""
    work = json.loads((run / "train.json").read_text())
    before = {"cpu_seconds": 0.0, "pixels": 0.0} if run == coarse else json.loads((coarse / "train.json").read_text())
    workers = 1 if run == coarse else yaml.safe_load((run / "config.yaml").read_text())["blocks"]["active"]
    return {
        "megapixels": (work["pixels"] + before["pixels"]) / 1e6,
        "cpu": before["cpu_seconds"] + work["cpu_seconds"],
        "wall": before["cpu_seconds"] + work["cpu_seconds"] / workers,
    }


def rows_of(ply: Path) -> int:
    """Anchors in a file, by its header."""
    with ply.open("rb") as file:
        return next(int(line.split()[2]) for line in file if line.startswith(b"element vertex"))


def table_of(rows: dict[str, list[dict[str, float]]]) -> list[str]:
    """Markdown: mean and standard deviation, and the difference in corrected PSNR to the single block, seed by seed."""
    shown = [name for name in COLUMNS if any(name in run for runs in rows.values() for run in runs)]
    lines = [f"| | {' | '.join(shown)} | corrected, less 1 block |", "|---" * (len(shown) + 2) + "|"]
    alone = rows["1 block"]
    for name, runs in rows.items():
        cells = [spread([run[column] for run in runs if column in run], COLUMNS[column]) for column in shown]
        less = [run["PSNR_cc"] - one["PSNR_cc"] for run, one in zip(runs, alone, strict=False)]
        lines.append(f"| {name} | {' | '.join(cells)} | {spread(less, 2, '+')} |")
    return lines


def spread(values: list[float], digits: int, sign: str = "") -> str:
    """Mean and sample standard deviation."""
    if not values:
        return "-"
    error = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 and digits else ""
    return f"{statistics.mean(values):{sign},.{digits}f}{error}"


if __name__ == "__main__":
    main()
