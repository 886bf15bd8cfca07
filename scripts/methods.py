"""Compares whole methods on the same blocks: at equal work, and at equal wall time on as many workers as blocks train.

    python scripts/methods.py SCENE OUT --steps 1800 --seeds 0,1,2 --common "scene.resolution=4"

Every method starts from a coarse model, which takes a third of its steps; the blocks get the rest, half of them at a
time. Equal work is an equal number of pixels, as in scripts/division.py. For equal wall time, every method is trained
again with as many steps as take it the time that windows take for --steps. Finished runs in OUT are not repeated.

The table, also written to OUT/table.md and drawn in OUT/figure.png, keeps the rows of earlier calls, so that --kinds
may be trained one by one, with the same --steps, --blocks and --seeds. It has means over the seeds; after ± stands the
standard error of the difference to one block with all the work, seed by seed. A method is compared with one block of
its own kind: with a learned background, with a fixed one (per-block decoders have no other), or of explicit Gaussians.
'time' is the wall time as a multiple of that of windows, which are trained anew right before the method, both with the
first seed and not scored: the speed of a shared machine changes within the hours that all runs take. OUT/times.json has
these times.
"""

import argparse
import json
import math
import shlex
import statistics
import tempfile
from pathlib import Path

from division import divided, single, train, train_blocks, work_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

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
"""Name of a kind -> power of the number of steps with which time grows, as models grow, too: a first guess, from the
city (docs/lab_log.md). Gaussians have 1.3 to 1.6 on the drone scene."""
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
CLOSE = 0.1
"""A time within this share of that of windows is equal: repeated runs differ by as much on a busy machine."""
TRIES = 3
"""How often the number of steps for equal wall time is set anew: first guesses miss it by up to a factor of two."""


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
    head = [f"| | steps | time | {' | '.join(COLUMNS)} | corrected, less 1 block |", "|---" * (len(COLUMNS) + 4) + "|"]
    table = args.out / "table.md"
    rows = rows_of(table)
    for kind, name, settings in [method for method in METHODS if method[0] in kinds]:
        alone = runs(args, kind, "single", "", args.steps)
        for steps in dict.fromkeys([args.steps, steps_within(args, kind, name, settings)]):
            time, found = time_of(args, kind, name, settings, steps), runs(args, kind, name, settings, steps)
            rows[f"{kind}, {name}", f"{steps:,}"] = row(f"{kind}, {name}", steps, time, found, alone)
            table.write_text("\n".join([*head, *rows.values()]) + "\n")
    draw(args.out / "figure.png", rows)
    print(table.read_text(), end="")


def rows_of(table: Path) -> dict[tuple[str, str], str]:
    """Name of a method, and steps -> its row in a table, which may not exist."""
    lines = table.read_text().splitlines()[2:] if table.is_file() else []
    return {(cells(line)[0], cells(line)[1]): line for line in lines}


def cells(line: str) -> list[str]:
    """Of a row of the table."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


def steps_within(args: argparse.Namespace, kind: str, name: str, settings: str) -> int:
    """About how many steps take a method as long as windows take for args.steps, in tens."""
    steps, power = args.steps, POWERS[kind]
    at_equal_work = time_of(args, kind, name, settings, args.steps)
    for _ in range(TRIES):
        time = time_of(args, kind, name, settings, steps)
        if abs(time - 1) <= CLOSE:
            break
        if steps != args.steps:  # models do not shrink, so time grows at least as the steps
            power = max(1, math.log(time / at_equal_work) / math.log(steps / args.steps))
        steps = round(steps * time ** (-1 / power) / 10) * 10
    return steps


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
    of = options(args, args.out / f"{kind}_{steps}", kind, steps)
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
    scores = [f"{mean(found, c):,.{digits}f}" if c in found[0] else "-" for c, digits in COLUMNS.items()]
    less = [run["PSNR_cc"] - one["PSNR_cc"] for run, one in zip(found, alone, strict=True)]
    error = f" ± {statistics.stdev(less) / len(less) ** 0.5:.2f}" if len(less) > 1 else ""
    return f"| {name} | {steps:,} | {time:.2f} | {' | '.join(scores)} | {statistics.mean(less):+.2f}{error} |"


def draw(file: Path, rows: dict[tuple[str, str], str]) -> None:
    """A line for each method: at equal work, and at equal wall time."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows.values():
        label, _, time, _, corrected, *_ = cells(row)
        points.setdefault(label, []).append((float(time), float(corrected)))
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, style in zip(KINDS, ["-", "--", ":"], strict=True):
        axes.set_prop_cycle(None)  # the colours start anew
        for label, line in points.items():
            if label.startswith(kind):
                axes.plot(*zip(*sorted(line), strict=True), style, marker="o", label=label)
    axes.set(xscale="log", xlabel="wall time, as a multiple of that of windows", ylabel="PSNR, colour-corrected (dB)")
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
