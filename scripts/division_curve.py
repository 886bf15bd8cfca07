"""Draws quality against wall time: one block on one core, and blocks with one core each, for runs of several lengths.

    python scripts/division.py SCENE OUT/450 --steps 450 --blocks 8 ...; the same with other numbers of steps
    python scripts/division_curve.py FIGURE --blocks LABEL OUT/450 OUT/900 ... [--blocks LABEL2 OUT2/450 ...]

Every --blocks is a line, of the variant 'windows'. The time of blocks is the CPU time of the coarse model that they
start from, on one core, and an n-th of their own. The line of one block is from the folders of the first --blocks.
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
    parser.add_argument("--blocks", action="append", nargs="+", required=True, metavar=("LABEL", "OUT"))
    parser.add_argument("--number", type=int, default=8, help="of blocks (default: %(default)s)")
    parser.add_argument("--seed", default="0")
    args = parser.parse_args()
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines = [("1 block, 1 core", "single", 1, args.blocks[0][1:])]
    lines += [(label, f"n{args.number}_windows", args.number, outs) for label, *outs in args.blocks]
    for label, name, n, outs in lines:
        points = []
        for out in map(Path, outs):
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
