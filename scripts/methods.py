"""Compares whole methods on the same blocks: at equal work, and at equal wall time on as many workers as blocks train.

    python scripts/methods.py SCENE OUT --steps 1800 --seeds 0,1,2 --common "scene.resolution=4"

Every method starts from a coarse model, which takes a third of its steps; the blocks get the rest, half of them at a
time. Equal work is an equal number of pixels, as in scripts/division.py. For equal wall time, every method is trained
again with as many steps as take it the time that windows take for --steps. Finished runs in OUT are not repeated.

The table, also written to OUT/table.md and drawn in OUT/figure.png, has means over the seeds; after ± stands the
standard error of the difference to one block with all the work, seed by seed. A method is compared with one block of
its own kind: with a learned background, with a fixed one (per-block decoders have no other), or of explicit Gaussians.
'time' is the wall time as a multiple of that of windows, which are trained anew right before the method, both with the
first seed and not scored: the speed of a shared machine changes within the hours that all runs take. OUT/times.json has
these times.
"""

import argparse
import json
import shlex
import statistics
import tempfile
from pathlib import Path

from division import divided, single, train, train_blocks, work_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

GAUSSIANS = Path(__file__).parents[1] / "configs" / "modes" / "gaussians.yaml"
WINDOWS = GAUSSIANS.with_name("windows.yaml")
WHOLE = (
    "blocks.windows=false blocks.offset_clamping=false blocks.boundary_finetuning=false blocks.decoder_freeze_rounds=0"
)
"""The paper's training on whole views, without what we add to it."""
KINDS = {
    "learned": "",
    "fixed": "model.background=fixed",
    "gaussians": f"-c {GAUSSIANS} model.background=fixed",
}
"""Name of a kind of model -> settings of all of its runs."""
POWERS = {"learned": 1.2, "fixed": 1.2, "gaussians": 2}
"""Name of a kind -> power of the number of steps with which time grows, as models grow, too: from 450 to 7,200 steps of
anchors and from 700 to 1,800 of Gaussians on the city (docs/lab_log.md)."""
METHODS = [
    ("learned", "single", ""),
    ("learned", "windows", ""),
    ("learned", "paper", f"{WHOLE} teacher.enabled=true teacher.consistency=1 weighting.enabled=true"),
    ("learned", "whole", "blocks.windows=false"),
    ("fixed", "single", ""),
    ("fixed", "windows", ""),
    ("fixed", "shared", WHOLE),
    ("fixed", "independent", f"{WHOLE} blocks.decoder=per_block"),
    ("gaussians", "single", ""),
    ("gaussians", "windows", f"-c {WINDOWS}"),
    ("gaussians", "whole", f"{WHOLE} gaussians.position_lr=[1.6e-4,1.6e-6] "
                           "gaussians.scaling_lr=0.005"),
    ("gaussians", "citygaussian", WHOLE),
]  # fmt: skip
"""Kind, name and settings of the blocks. 'whole' is our training on whole views without a teacher, 'shared' that of
the paper without a teacher. Gaussians on whole views have 3DGS's learning rates, in 'citygaussian' its lower ones."""
COLUMNS = {"PSNR": 2, "PSNR_cc": 2, "SSIM": 4, "LPIPS": 4, "worst": 2, "border": 2}
"""Name -> digits."""
CLOSE = 0.05
"""A time within this share of that of windows is equal: repeated runs differ by as much on a busy machine."""


def main() -> None:
    """Trains, scores and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1800, help="steps' worth of pixels (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of models (default: %(default)s)")
    parser.add_argument("--common", default="", help="settings of all runs")
    parser.add_argument("--lpips", default="none")
    parser.add_argument("--lpips-weights", type=Path)
    args = parser.parse_args()
    kinds = args.kinds.split(",")
    if not set(kinds) <= set(KINDS):
        parser.error(f"--kinds {args.kinds}: expected some of {','.join(KINDS)}")
    args.coarse, args.active, args.single_steps, args.seeds = 1 / 3, 0.5, None, args.seeds.split(",")
    lines = [f"| | steps | time | {' | '.join(COLUMNS)} | corrected, less 1 block |", "|---" * (len(COLUMNS) + 4) + "|"]
    points: dict[str, list[tuple[float, float]]] = {}
    for kind, name, settings in [method for method in METHODS if method[0] in kinds]:
        alone = runs(args, kind, "single", "", args.steps)
        for steps in dict.fromkeys([args.steps, steps_within(args, kind, name, settings)]):
            time, found = time_of(args, kind, name, settings, steps), runs(args, kind, name, settings, steps)
            lines.append(row(f"{kind}, {name}", steps, time, found, alone))
            points.setdefault(f"{kind}, {name}", []).append((time, mean(found, "PSNR_cc")))
            (args.out / "table.md").write_text("\n".join(lines) + "\n")
    draw(args.out / "figure.png", points)
    print("\n".join(lines))


def steps_within(args: argparse.Namespace, kind: str, name: str, settings: str) -> int:
    """About how many steps take a method as long as windows take for args.steps, in tens."""
    time = time_of(args, kind, name, settings, args.steps)
    return args.steps if abs(time - 1) < CLOSE else round(args.steps * time ** (-1 / POWERS[kind]) / 10) * 10


def time_of(args: argparse.Namespace, kind: str, name: str, settings: str, steps: int) -> float:
    """Wall time as a multiple of that of windows, which are trained right before it."""
    if (kind, name, steps) == ("learned", "windows", args.steps):
        return 1.0
    file, key = args.out / "times.json", f"{kind}, {name}, {steps}"
    times = json.loads(file.read_text()) if file.is_file() else {}
    if key not in times:
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.out) as folder:
            windows = seconds(args, Path(folder, "windows"), "learned", "windows", "", args.steps)
            times[key] = seconds(args, Path(folder, "method"), kind, name, settings, steps) / windows
        file.write_text(json.dumps(times, indent=1))
    return times[key]


def seconds(args: argparse.Namespace, folder: Path, kind: str, name: str, settings: str, steps: int) -> float:
    """Wall time of a training with the first seed."""
    of, seed = options(args, folder, kind, steps), args.seeds[0]
    coarse, run = folder / "coarse", folder / "blocks"
    if name == "single":
        train(of, run, seed, "stage=coarse", f"steps={steps}")
        return work_of(run, run)["wall"]
    train_blocks(of, seed, args.blocks, shlex.split(settings), coarse, run)
    return work_of(run, coarse)["wall"]


def runs(args: argparse.Namespace, kind: str, name: str, settings: str, steps: int) -> list[dict[str, float]]:
    """The scores of a method, seed by seed."""
    of = options(args, args.out / (kind if steps == args.steps else f"{kind}_{steps}"), kind, steps)
    if name == "single":
        return [single(of, seed) for seed in args.seeds]
    return [divided(of, seed, args.blocks, name, shlex.split(settings)) for seed in args.seeds]


def options(args: argparse.Namespace, folder: Path, kind: str, steps: int) -> argparse.Namespace:
    """The options that scripts/division.py would have for runs of a kind of model."""
    return argparse.Namespace(**{**vars(args), "out": folder, "steps": steps, "common": f"{args.common} {KINDS[kind]}"})


def mean(found: list[dict[str, float]], column: str) -> float:
    """Over the seeds."""
    return statistics.mean(run[column] for run in found)


def row(name: str, steps: int, time: float, found: list[dict[str, float]], alone: list[dict[str, float]]) -> str:
    """A line of the table."""
    cells = [f"{mean(found, c):,.{digits}f}" if c in found[0] else "-" for c, digits in COLUMNS.items()]
    less = [run["PSNR_cc"] - one["PSNR_cc"] for run, one in zip(found, alone, strict=True)]
    error = f" ± {statistics.stdev(less) / len(less) ** 0.5:.2f}" if len(less) > 1 else ""
    return f"| {name} | {steps:,} | {time:.2f} | {' | '.join(cells)} | {statistics.mean(less):+.2f}{error} |"


def draw(file: Path, points: dict[str, list[tuple[float, float]]]) -> None:
    """A line for each method: at equal work, and at equal wall time."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, line in points.items():
        style = "--" if label.startswith("fixed") else "-"
        axes.plot(*zip(*sorted(line), strict=True), style, marker="o", label=label)
    axes.set(xlabel="wall time, as a multiple of that of windows", ylabel="PSNR, colour-corrected (dB)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
