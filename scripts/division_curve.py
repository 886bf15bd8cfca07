"""Draws quality against wall time: one block on one core, and blocks with one core each, for runs of several lengths.

    python scripts/division.py SCENE OUT/450 --steps 450 --blocks 8 ...; the same with other numbers of steps
    python scripts/division_curve.py FIGURE OUT/450 OUT/900 ... [--blocks 8] [--seed 0]

The time of the blocks is the CPU time of the coarse model that they start from, on one core, and an n-th of their own.
"""

import argparse
from pathlib import Path

from division import scores
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def main() -> None:
    """Draws and prints the points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path)
    parser.add_argument("outs", type=Path, nargs="+", metavar="OUT")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--seed", default="0")
    args = parser.parse_args()
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, n in (("single", 1), (f"n{args.blocks}_windows", args.blocks)):
        label = "1 block, 1 core" if n == 1 else f"{n} blocks, {n} cores"
        points = []
        for out in args.outs:
            run = out / f"{name}_s{args.seed}"
            found = scores(run, n, run if n == 1 else out / f"coarse_s{args.seed}")
            points.append((found["wall"], found["PSNR_cc"]))
        points.sort()
        print(label, " ".join(f"{seconds:.0f} s {psnr:.2f} dB" for seconds, psnr in points))
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xscale="log", xlabel="seconds of a core", ylabel="PSNR, colour-corrected (dB)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(args.figure, dpi=100)


if __name__ == "__main__":
    main()
