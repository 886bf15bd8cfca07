"""Compares whole methods on the same blocks: at equal work, and at equal wall time on as many workers as blocks train.

    python scripts/methods.py SCENE OUT --steps 1800 --seeds 0,1,2 --common "scene.resolution=4"

Every method starts from a coarse model, which takes a third of its steps; the blocks get the rest, half of them at a
time. Equal work is an equal number of pixels, as in scripts/division.py. For equal wall time, every method is trained
again with as many steps as take it the time that windows take for --steps: seconds are estimated from the runs of equal
work, and with the first seed once more. Finished runs in OUT are not repeated.

The table, also written to OUT/table.md, has means over the seeds; after ± stands the standard error of the difference
to one block with all the work, seed by seed. A method is compared with one block of its own kind: with a learned
background, with a fixed one (per-block decoders have no other), or of explicit Gaussians.
"""

import argparse
import math
import shlex
import statistics
from pathlib import Path

from division import divided, single

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
COLUMNS = {"PSNR": 2, "PSNR_cc": 2, "SSIM": 4, "LPIPS": 4, "worst": 2, "border": 2, "cpu": 0, "wall": 0}
"""Name -> digits."""
CLOSE = 0.05
"""A wall time as close as this to the wanted one is equal: repeated runs differ by as much on a busy machine."""


def main() -> None:
    """Trains, scores and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1800, help="steps' worth of pixels (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--common", default="", help="settings of all runs")
    parser.add_argument("--lpips", default="none")
    parser.add_argument("--lpips-weights", type=Path)
    args = parser.parse_args()
    args.coarse, args.active, args.single_steps, args.seeds = 1 / 3, 0.5, None, args.seeds.split(",")
    work = {(kind, name): runs(args, kind, name, settings, args.steps) for kind, name, settings in METHODS}
    wanted = mean(work["learned", "windows"], "wall")
    lines = [f"| | steps | {' | '.join(COLUMNS)} | corrected, less 1 block |", "|---" * (len(COLUMNS) + 3) + "|"]
    for kind, name, _ in METHODS:
        lines.append(row(f"{kind}, {name}", args.steps, work[kind, name], work[kind, "single"]))
    for kind, name, settings in METHODS:
        steps = steps_within(args, kind, name, settings, mean(work[kind, name], "wall"), wanted)
        found = runs(args, kind, name, settings, steps)
        lines.append(row(f"{kind}, {name}, wall time", steps, found, work[kind, "single"]))
        (args.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def steps_within(args: argparse.Namespace, kind: str, name: str, settings: str, took: float, wanted: float) -> int:
    """How many steps take a method `wanted` seconds, when args.steps `took` that many."""
    if abs(took / wanted - 1) < CLOSE:
        return args.steps
    guess = tens(args.steps * wanted / took)
    if guess == args.steps:
        return guess
    guessed = runs(args, kind, name, settings, guess, args.seeds[:1])[0]["wall"]
    if abs(guessed / wanted - 1) < CLOSE:
        return guess
    power = math.log(guessed / took) / math.log(guess / args.steps)  # Time grows faster than steps while models grow.
    return tens(guess * (wanted / guessed) ** (1 / power))


def tens(steps: float) -> int:
    """Rounded to tens."""
    return round(steps / 10) * 10


def runs(
    args: argparse.Namespace, kind: str, name: str, settings: str, steps: int, seeds: list[str] | None = None
) -> list[dict[str, float]]:
    """The scores of a method, seed by seed."""
    folder = args.out / (kind if steps == args.steps else f"{kind}_{steps}")
    common = f"{args.common} {KINDS[kind]}"
    of = argparse.Namespace(**{**vars(args), "out": folder, "steps": steps, "common": common})
    if name == "single":
        return [single(of, seed) for seed in seeds or args.seeds]
    return [divided(of, seed, args.blocks, name, shlex.split(settings)) for seed in seeds or args.seeds]


def mean(found: list[dict[str, float]], column: str) -> float:
    """Over the seeds."""
    return statistics.mean(run[column] for run in found)


def row(name: str, steps: int, found: list[dict[str, float]], alone: list[dict[str, float]]) -> str:
    """A line of the table."""
    cells = [f"{mean(found, c):,.{digits}f}" if c in found[0] else "-" for c, digits in COLUMNS.items()]
    less = [run["PSNR_cc"] - one["PSNR_cc"] for run, one in zip(found, alone, strict=True)]
    error = f" ± {statistics.stdev(less) / len(less) ** 0.5:.2f}" if len(less) > 1 else ""
    return f"| {name} | {steps:,} | {' | '.join(cells)} | {statistics.mean(less):+.2f}{error} |"


if __name__ == "__main__":
    main()
