"""Scores of the runs of a sweep: what each run gives to the table, spread over seeds, paired differences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from momentum_gs.core.errors import UserError
from momentum_gs.eval.results import config_hash, read_json


@dataclass(frozen=True)
class Metric:
    """A column of the table."""

    key: str
    heading: str
    digits: int
    better: int
    """1: more is better, -1: less is, 0: neither."""


METRICS = (
    Metric("PSNR", "PSNR", 2, 1),
    Metric("SSIM", "SSIM", 4, 1),
    Metric("LPIPS", "LPIPS", 4, -1),
    Metric("PSNR_cc", "PSNR cc", 2, 1),
    Metric("SSIM_cc", "SSIM cc", 4, 1),
    Metric("LPIPS_cc", "LPIPS cc", 4, -1),
    Metric("worst_block_PSNR", "worst block", 2, 1),
    Metric("merge_loss", "lost by merging", 2, -1),
    Metric("anchors", "anchors", 0, 0),
)


@dataclass(frozen=True)
class RunScores:
    """What the table takes from one finished run."""

    numbers: Mapping[str, float]
    """Key of a ``Metric`` -> value; what was not measured is not in it."""
    protocol: Mapping[str, Any]
    """How the merged model was scored."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation; None for one value."""

    mean: float
    sd: float | None
    n: int

    @property
    def error(self) -> float | None:
        """Standard error of the mean."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)


def spread(values: Sequence[float]) -> Spread | None:
    """Of one or more values; None of none."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Spread | None:
    """a - b over the seeds that both have.

    The seed draws what the two runs have in common (schedule, order of views, initial decoder), so the differences
    spread less than the values where that matters, and never mislead where it does not.
    """
    return spread([a[seed] - b[seed] for seed in a if seed in b])


def read_scores(out: Path) -> RunScores | None:
    """The scores of a run, or None where they are not there, not whole, or of other settings than its config.yaml."""
    entries = read_json(out / "results.json")
    merged = {name: entry for name, entry in entries.items() if not name.endswith("_blocks")}
    if len(merged) != 1:
        return None
    (name, entry), = merged.items()
    before = entries.get(f"{name}_blocks")
    if before is None or any(e["protocol"]["config_sha256"] != config_hash(out) for e in (entry, before)):
        return None
    numbers = {metric.key: entry.get(metric.key) for metric in METRICS}
    blocks = [scores["PSNR"] for scores in entry.get("blocks", {}).values() if scores.get("PSNR") is not None]
    numbers["worst_block_PSNR"] = min(blocks, default=None)
    if entry["PSNR"] is not None and before["PSNR"] is not None:
        numbers["merge_loss"] = before["PSNR"] - entry["PSNR"]
    numbers["anchors"] = entry["protocol"].get("anchors")
    return RunScores({key: float(value) for key, value in numbers.items() if value is not None}, entry["protocol"])


def check_protocols(runs: Mapping[str, RunScores]) -> None:
    """Makes sure that all runs were scored alike, which a mean over them and a difference need.

    Raises:
        UserError: naming two runs that were not.
    """
    first: tuple[str, Any] | None = None
    for name, run in runs.items():
        lpips = run.protocol.get("lpips")
        how = {key: run.protocol.get(key) for key in ("view_list_sha256", "resolution", "ground_truth_sha256")}
        how["LPIPS network"] = lpips["net"] if lpips else None
        first = first or (name, how)
        differs = [key for key in how if how[key] != first[1][key]]
        if differs:
            raise UserError(
                f"sweep: {first[0]} and {name} were scored differently ({', '.join(differs)}), expected one protocol "
                "for one table; score them again with --rescore"
            )


def ordering(metric: Metric, difference: Spread | None) -> str:
    """Whether a difference stands out from its spread: 'better', 'worse', 'no telling' or 'one seed'.

    The bar is two standard errors of the paired difference. With three seeds and normal errors a true difference of
    zero passes it in 18 % of cases (Student's t with two degrees of freedom), with five in 12 %.
    """
    if difference is None or difference.error is None:
        return "one seed"
    if abs(difference.mean) <= 2 * difference.error:
        return "no telling"
    return "better" if difference.mean * metric.better > 0 else "worse"
