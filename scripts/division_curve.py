"""Draws quality against wall time for runs of scripts/division.py, such as one block and eight blocks on eight workers.

    python scripts/division_curve.py FIGURE --seeds 0,1,2 --line City "1 block" OUT/450/single OUT/900/single \\
        --line City windows OUT/450/n8_windows OUT/900/n8_windows

Every --line names the panel it belongs to, its label, and its points: folders of runs without the _sSEED at their end.
A point is the mean over the seeds. The time is 'wall' of division.py: the CPU time of the coarse model, and a k-th of
that of the blocks, k of which train at a time.
"""

import argparse
import statistics
from pathlib import Path

from division import scores
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter


def main() -> None:
    """Draws and prints the points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", type=Path)
    parser.add_argument("--line", action="append", nargs="+", required=True, metavar=("PANEL", "LABEL"))
    parser.add_argument("--seeds", default="0")
    args = parser.parse_args()
    panels = dict.fromkeys(line[0] for line in args.line)
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    for panel, label, *runs in args.line:
        points = sorted(point(run, args.seeds.split(",")) for run in runs)
        print(panel, label, " ".join(f"{seconds:.0f} s {psnr:.2f} dB" for seconds, psnr in points))
        axes[panel].plot(*zip(*points, strict=True), marker="o", label=label)
    for panel, part in axes.items():
        part.set(title=panel, xscale="log", xlabel="seconds on k workers", ylabel="PSNR, colour-corrected (dB)")
        part.xaxis.set(major_locator=LogLocator(subs=(1, 2, 3, 5)), major_formatter=ScalarFormatter())
        part.xaxis.set_minor_formatter(NullFormatter())
        part.grid(alpha=0.3, which="both")
        part.legend()
    figure.savefig(args.figure, dpi=100)


def point(run: str, seeds: list[str]) -> tuple[float, float]:
    """Seconds and corrected PSNR, means over the seeds."""
    found = []
    for seed in seeds:
        folder = Path(f"{run}_s{seed}")
        alone = folder.name.startswith("single")
        found.append(scores(folder, folder if alone else folder.parent / f"coarse_s{seed}"))
    return statistics.mean(f["wall"] for f in found), statistics.mean(f["PSNR_cc"] for f in found)


if __name__ == "__main__":
    main()
