"""What the weights of a sweep's rows do to every block: markdown, a column for each row with the reference's blocks.

    python scripts/figures/block_weights.py OUT/weights.json

PSNR of the pixels that show a block, mean over seeds, and in brackets the mean weight of the block's loss at the last
measurement. Below: the worst block and the range between best and worst, each with the standard error of its difference
to the reference row, paired by seed.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from momentum_gs.data.partition_table import PartitionTable


def main(table: Path) -> None:
    """Reads the sweep's record and the runs beside it."""
    record = json.loads(table.read_text())
    runs = {row["row"]: {seed: table.parent / "runs" / run["folder"] for seed, run in row["runs"].items()}
            for row in record["rows"]}  # fmt: skip
    scores = {row: {seed: _block_scores(folder) for seed, folder in by_seed.items()} for row, by_seed in runs.items()}
    weights = {row: [_last_weights(folder) for folder in by_seed.values()] for row, by_seed in runs.items()}
    reference = scores[record["reference"]]
    blocks = sorted({block for found in reference.values() for block in found}, key=int)
    print("| block | " + " | ".join(runs) + " |")
    print("|---|" + "---|" * len(runs))
    for block in blocks:
        cells = [_cell([found[block] for found in scores[row].values()], [w[block] for w in weights[row] if w])
                 for row in runs]  # fmt: skip
        print(f"| {block} | " + " | ".join(cells) + " |")
    for name, value in (("worst", min), ("best - worst", lambda found: max(found) - min(found))):
        cells = []
        for row in runs:
            here = {seed: value(found.values()) for seed, found in scores[row].items()}
            cell = f"{statistics.fmean(here.values()):.2f}"
            if row != record["reference"]:
                there = {seed: value(found.values()) for seed, found in reference.items()}
                cell += f" ({_difference([here[seed] - there[seed] for seed in here if seed in there])})"
            cells.append(cell)
        print(f"| {name} | " + " | ".join(cells) + " |")


def _block_scores(folder: Path) -> dict[str, float]:
    """Block -> PSNR of the merged model."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    merged = next(entry for name, entry in results.items() if not name.endswith("_blocks"))
    return {block: found["PSNR"] for block, found in merged["blocks"].items()}


def _last_weights(folder: Path) -> dict[str, float]:
    """Block -> weight; empty where blocks have none, or are not those that the scores go by."""
    trained, scored = (
        PartitionTable.load(next(folder.glob(f"{place}/partition.json"))).cells_sha256
        for place in ("point_cloud/iteration_*", "test/ours_*/cells")
    )
    if trained != scored:
        return {}
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    found = [event["weight"] for event in events if event["event"] == "BlocksMeasured"]
    return found[-1] if found else {}


def _cell(scores: Sequence[float], weights: Sequence[float]) -> str:
    return f"{statistics.fmean(scores):.2f}" + (f" ({statistics.fmean(weights):.3f})" if weights else "")


def _difference(values: Sequence[float]) -> str:
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):+.2f}{error}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: block_weights.py OUT/SWEEP.json")
    main(Path(sys.argv[1]))
