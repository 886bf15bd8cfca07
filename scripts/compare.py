"""Trains variants of the settings on one scene as one block, over seeds, and prints a table of held-out scores.

    python scripts/compare.py SCENE OUT --common "-r 4" --seeds 0,1,2 \\
        "tuned -c configs/caliterra.yaml" "own" "own+affine appearance.model=affine"

A variant is a name and further words for 'momentum-gs train ... stage=coarse'. The first variant's first run gives the
maps of covered pixels that all runs are scored by. Runs that OUT holds already are not trained again. The table (also
OUT/table.md) has means and standard deviations over the seeds.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

METRICS = ("PSNR", "PSNR_fit", "PSNR_cc", "PSNR_covered", "SSIM", "LPIPS_squeeze")
NAMES = {"PSNR": "raw", "PSNR_fit": "fitted (right half)", "PSNR_cc": "corrected", "PSNR_covered": "covered",
         "LPIPS_squeeze": "LPIPS (squeeze)"}  # fmt: skip


def main() -> None:
    """Trains, scores and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="+", metavar="'NAME WORDS'")
    parser.add_argument("--common", default="", help="words for train that all variants have")
    parser.add_argument("--seeds", default="0", help="comma-separated (default: 0)")
    parser.add_argument("--lpips", default="squeeze", help="backbone, or 'none' (default: squeeze)")
    parser.add_argument("--lpips-weights", type=Path, metavar="FOLDER", help="as for 'momentum-gs eval'")
    args = parser.parse_args()
    weights = [] if args.lpips_weights is None else ["--lpips-weights", args.lpips_weights]
    args.out.mkdir(parents=True, exist_ok=True)
    reference: Path | None = None
    scores: dict[str, list[dict[str, float]]] = {}
    for seed in args.seeds.split(","):
        for variant in args.variants:
            name, *words = shlex.split(variant)
            run = args.out / f"{name}_s{seed}"
            if not (run / "results.json").is_file():
                _command("train", "-s", args.scene, "-m", run, *shlex.split(args.common), *words, "stage=coarse",
                      f"seed={seed}", "log.tensorboard=false")  # fmt: skip
                _command("render", run, *(["--covered"] if reference is None else ["--covered-by", reference]))
                _command("eval", run, "--lpips", args.lpips, *weights)
            reference = reference or run
            scores.setdefault(name, []).append(_scores(run))
    table = "\n".join(_rows(scores))
    (args.out / "table.md").write_text(table + "\n")
    print(table)


def _command(*words: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "momentum_gs", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def _scores(run: Path) -> dict[str, float]:
    (result,) = json.loads((run / "results.json").read_text()).values()
    (render,) = (run / "test").glob("ours_*/render.json")
    anchors = json.loads(render.read_text())["anchors"]
    found = {name: value for name, value in result.items() if isinstance(value, int | float)}
    return {**found, "anchors": anchors, "seconds": json.loads((run / "train.json").read_text())["seconds"]}


def _rows(scores: dict[str, list[dict[str, float]]]) -> list[str]:
    metrics = [name for name in METRICS if all(name in run for runs in scores.values() for run in runs)]
    names = [NAMES.get(name, name) for name in metrics]
    rows = [f"| settings | {' | '.join(names)} | anchors | training, s |", "|---" * (len(metrics) + 3) + "|"]
    for name, runs in scores.items():
        cells = [_cell([run[metric] for run in runs], 2 if "PSNR" in metric else 4) for metric in metrics]
        anchors, seconds = (statistics.median(run[key] for run in runs) for key in ("anchors", "seconds"))
        rows.append(f"| {name} | {' | '.join(cells)} | {anchors:,.0f} | {seconds:.0f} |")
    return rows


def _cell(values: list[float], digits: int) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    main()
