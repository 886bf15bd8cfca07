"""Scores of the runs of a sweep: the numbers of each run, their spread over seeds, and paired differences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from momentum_gs.core.errors import UserError
from momentum_gs.eval.lpips_metric import NETS, metric_name
from momentum_gs.eval.results import config_hash, read_json
from momentum_gs.eval.table import Row, differences
from momentum_gs.experiments.teachers import FILE as TEACHER_SCORES

Verdict = Literal["better", "worse", "not told apart"]


@dataclass(frozen=True)
class Metric:
    """A column of the table."""

    key: str
    heading: str
    digits: int
    better: int
    """1: higher is better, -1: lower is better, 0: neither."""


METRICS = (
    Metric("PSNR", "PSNR", 2, 1),
    Metric("SSIM", "SSIM", 4, 1),
    *(Metric(metric_name(net), metric_name(net), 4, -1) for net in NETS),
    Metric("PSNR_cc", "PSNR cc", 2, 1),
    Metric("SSIM_cc", "SSIM cc", 4, 1),
    *(Metric(f"{metric_name(net)}_cc", f"{metric_name(net)} cc", 4, -1) for net in NETS),
    Metric("PSNR_fit", "PSNR fit (right half)", 2, 1),
    Metric("PSNR_covered", "PSNR covered", 2, 1),
    Metric("covered_percent", "covered %", 1, 0),
    Metric("worst_block_PSNR", "worst block", 2, 1),
    Metric("border_PSNR", "near borders", 2, 1),
    Metric("merge_gap_PSNR", "merge gap", 2, 1),
    Metric("fused_PSNR", "teachers fused", 2, 1),
    Metric("anchors", "anchors", 0, 0),
    Metric("gaussians", "Gaussians", 0, 0),
    Metric("storage_MB", "MB", 1, 0),
    Metric("cpu_seconds", "CPU s", 0, 0),
    Metric("views_per_second", "views/s", 1, 0),
    Metric("megapixels", "megapixels", 1, 0),
)

_BY_BLOCK = ("worst_block_PSNR", "border_PSNR")
BY_MAP = ("PSNR_covered", "covered_percent")
"""Metrics of covered pixels; they are columns only if all runs use the same maps of these pixels."""


@dataclass(frozen=True)
class RunScores:
    """The numbers of one finished run."""

    numbers: Mapping[str, float]
    """Key of a ``Metric`` -> value, for the metrics that were measured."""
    protocol: Mapping[str, Any]
    """How the merged model was scored."""

    def without_blocks(self) -> "RunScores":
        """The same without the scores of blocks and of borders."""
        numbers = {key: value for key, value in self.numbers.items() if key not in _BY_BLOCK}
        return RunScores(numbers, self.protocol)


@dataclass(frozen=True)
class Spread:
    """Mean and spread of values."""

    mean: float
    sd: float | None
    """Sample standard deviation; None for one value."""
    n: int
    """Number of values."""

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for one value."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and spread of the values; None if there are none."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Spread | None:
    """Mean and spread of a - b over the seeds that both have; None if there are none.

    Runs with the same seed share schedule, order of views and initial decoder. As far as these affect the scores, the
    differences spread less than the values.
    """
    return spread([a[seed] - b[seed] for seed in a if seed in b])


def read_scores(out: Path) -> RunScores | None:
    """The scores of a run; None if they are missing, incomplete, or for other settings than those of config.yaml."""
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
    numbers["border_PSNR"] = entry.get("border", {}).get("PSNR")
    numbers["merge_gap_PSNR"] = entry.get("merge_gap", {}).get("PSNR")
    if (share := entry.get("covered_share")) is not None:
        numbers["covered_percent"] = 100 * share
    numbers["fused_PSNR"] = read_json(out / TEACHER_SCORES).get("fused", {}).get("PSNR")
    for count in ("anchors", "gaussians", "views_per_second"):
        numbers[count] = entry["protocol"].get(count)
    if (size := entry["protocol"].get("storage_bytes")) is not None:
        numbers["storage_MB"] = size / 1e6
    numbers |= _work(out)
    return RunScores({key: float(value) for key, value in numbers.items() if value is not None}, entry["protocol"])


def _work(out: Path) -> dict[str, float]:
    """What the training cost: CPU seconds of all threads, and millions of pixels that counted in a loss."""
    times = read_json(out / "train.json")
    found = {}
    if "cpu_seconds" in times and times.get("ranks") == 1:
        found["cpu_seconds"] = float(times["cpu_seconds"])
    if "pixels" in times:
        found["megapixels"] = times["pixels"] / 1e6
    return found


def check_protocols(runs: Mapping[str, RunScores]) -> None:
    """Checks that all runs were scored with the same protocol; means and differences are meaningless otherwise.

    Raises:
        UserError: naming two runs that were not.
    """
    rows = [Row(name, "", {"protocol": run.protocol}) for name, run in runs.items()]
    for row in rows[1:]:
        if found := differences(rows[0], row):
            raise UserError(
                f"sweep: {rows[0].run} and {row.run} were scored differently ({', '.join(found)}), expected one "
                "protocol for one table; score them again with --rescore"
            )


def ordering(metric: Metric, difference: Spread) -> Verdict:
    """Whether a difference exceeds two standard errors: 'better', 'worse' or 'not told apart'.

    With normal errors, a true difference of zero exceeds them in 18 % of cases with three seeds (Student's t with two
    degrees of freedom), and in 12 % with five.
    """
    if difference.error is None or abs(difference.mean) <= 2 * difference.error:
        return "not told apart"
    return "better" if difference.mean * metric.better > 0 else "worse"
