"""The table of a sweep: mean and spread of every row, differences to the reference row, which orderings hold."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from momentum_gs.config.sweep import PAPER_METRICS, Sweep, SweepRow
from momentum_gs.core.errors import UserError
from momentum_gs.eval.record import covered_alike
from momentum_gs.experiments.scores import (
    BY_MAP,
    METRICS,
    Metric,
    RunScores,
    Spread,
    check_protocols,
    ordering,
    paired,
    spread,
)

_BY_KEY = {metric.key: metric for metric in METRICS}


@dataclass(frozen=True)
class SweepResults:
    """The finished runs of a sweep."""

    sweep: Sweep
    runs: Mapping[str, Mapping[int, RunScores]]
    """Row -> seed -> scores."""
    folders: Mapping[str, Mapping[int, str]]
    """Row -> seed -> folder of the run, finished or not."""
    about: Mapping[str, Any]
    """Facts that hold for all rows: scene, settings, steps, versions."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Job -> reason of its failure."""

    def values(self, row: str, metric: str) -> dict[int, float]:
        """Seed -> value of a metric, for the runs of a row that have it."""
        return {seed: run.numbers[metric] for seed, run in self.runs[row].items() if metric in run.numbers}

    def spread(self, row: str, metric: str) -> Spread | None:
        """Mean and spread of a row over its seeds."""
        return spread(list(self.values(row, metric).values()))

    def difference(self, row: str, other: str, metric: str) -> Spread | None:
        """``row`` minus ``other`` over the seeds of both."""
        return paired(self.values(row, metric), self.values(other, metric))

    def check(self) -> None:
        """Raises UserError if no run is finished, or runs were scored with different protocols."""
        runs = {f"{row}, seed {seed}": run for row, seeds in self.runs.items() for seed, run in seeds.items()}
        if not runs:
            raise UserError("sweep: no run is finished, so there is no table; run it without --table")
        check_protocols(runs)

    def metrics(self) -> list[Metric]:
        """The columns: metrics that at least one run has and that are comparable between runs."""
        alike = covered_alike(run.protocol for seeds in self.runs.values() for run in seeds.values())
        shown = [m for m in METRICS if alike or m.key not in BY_MAP]
        return [m for m in shown if any(self.values(row.name, m.key) for row in self.sweep.rows)]

    def rows(self) -> list[SweepRow]:
        """The rows with at least one finished run."""
        return [row for row in self.sweep.rows if self.runs[row.name]]

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of rows to compare: each row with the reference, then those that the sweep lists."""
        reference, shown = self.sweep.reference, {row.name for row in self.rows()}
        pairs = [(row.name, reference) for row in self.rows() if row.name != reference]
        return [pair for pair in (*pairs, *self.sweep.compare) if shown.issuperset(pair)]


def statements(results: SweepResults) -> list[str]:
    """A line for each pair and metric: the difference, whether it exceeds two standard errors, and the paper's."""
    papers = {row.name: row.paper for row in results.sweep.rows}
    lines = []
    for first, second in results.pairs():
        for key in (*PAPER_METRICS, "worst_block_PSNR", "border_PSNR"):
            metric, difference = _BY_KEY[key], results.difference(first, second, key)
            if difference is None:
                continue
            verdict = ordering(metric, difference)
            shown = _cell(difference, metric, "error", difference.n)
            line = f"{first} against {second}: {metric.heading} {shown} ({_seeds(difference.n)}): {verdict}"
            for scene in papers[first] if key in PAPER_METRICS else ():
                if scene in papers[second]:
                    at = PAPER_METRICS.index(key)
                    theirs = papers[first][scene][at] - papers[second][scene][at]
                    line += f"; the paper has {theirs:+.{2 if at == 0 else 3}f} on {scene}"
                    if theirs and verdict != "not told apart":
                        same = (theirs * metric.better > 0) == (verdict == "better")
                        line += f", {'the same' if same else 'the reverse'} order"
            lines.append(line)
    return lines


def to_json(results: SweepResults) -> dict[str, Any]:
    """All numbers of the table and of its runs, as plain data."""
    sweep = results.sweep

    def plain(value: Spread | None) -> dict[str, Any] | None:
        return None if value is None else {"mean": value.mean, "sd": value.sd, "error": value.error, "n": value.n}

    return {
        "sweep": sweep.name,
        "title": sweep.title,
        "source": sweep.source,
        "about": dict(results.about),
        "reference": sweep.reference,
        "failed": dict(results.failed),
        "rows": [
            {
                "row": row.name,
                "mode": None if row.mode is None else row.mode.stem,
                "set": list(row.settings),
                "stretch": row.stretch,
                "paper": {scene: dict(zip(PAPER_METRICS, n, strict=True)) for scene, n in row.paper.items()},
                "spread": {m.key: plain(results.spread(row.name, m.key)) for m in results.metrics()},
                "runs": {
                    str(seed): {"folder": results.folders[row.name][seed], **run.numbers,
                                "rendered_by": run.protocol.get("rendered_by")}
                    for seed, run in results.runs[row.name].items()
                },
            }
            for row in sweep.rows
        ],
        "differences": [
            {"row": a, "against": b, **{m.key: plain(results.difference(a, b, m.key)) for m in results.metrics()}}
            for a, b in results.pairs()
        ],
        "statements": statements(results),
    }  # fmt: skip


def to_csv(results: SweepResults) -> str:
    """A line for each row: mean and standard deviation of every metric, difference to the reference row with its
    standard error, and the paper's numbers."""
    scenes = _paper_scenes(results)
    metrics = results.metrics()
    compared = [metric for metric in metrics if metric.better]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["row", "seeds"]
        + [f"{m.key}_{part}" for m in metrics for part in ("mean", "sd")]
        + [f"{metric.key}_minus_reference{part}" for metric in compared for part in ("", "_error")]
        + [f"paper_{scene}_{key}" for scene in scenes for key in PAPER_METRICS]
    )
    for row in results.rows():
        line: list[Any] = [row.name, len(results.runs[row.name])]
        for metric in metrics:
            value = results.spread(row.name, metric.key)
            line += [None, None] if value is None else [value.mean, value.sd]
        for metric in compared:
            value = results.difference(row.name, results.sweep.reference, metric.key)
            line += [None, None] if value is None else [value.mean, value.error]
        for scene in scenes:
            line += row.paper.get(scene, (None,) * len(PAPER_METRICS))
        writer.writerow(line)
    return file.getvalue()


def to_markdown(results: SweepResults) -> str:
    """The facts about the runs, the table, the differences to the reference row, and the statements about them."""
    sweep, lines = results.sweep, [f"# {results.sweep.title}", ""]
    lines += [f"- {key}: {value}" for key, value in results.about.items()]
    lines += [f"- failed: {name}: {reason}" for name, reason in results.failed.items()]
    lines += ["", "Mean over seeds ± sample standard deviation." + _paper_note(results), ""]
    lines += _pipes(_main_cells(results, str))
    if differences := _difference_cells(results, str):
        lines += ["", f"Difference to '{sweep.reference}', paired by seed, ± its standard error:", ""]
        lines += _pipes(differences)
    if found := statements(results):
        lines += ["", "Differences, and whether they exceed two standard errors:", "", *(f"- {line}" for line in found)]
    return "\n".join(lines) + "\n"


def to_latex(results: SweepResults) -> str:
    """The main table and the differences as two ``tabular``s, which need no package."""
    parts = [f"% {results.sweep.title}", *(f"% {key}: {value}" for key, value in results.about.items())]
    for cells in (_main_cells(results, _tex), _difference_cells(results, _tex)):
        if cells:
            head, *body = [" & ".join(row) + r" \\" for row in cells]
            columns = "l" + "r" * (len(cells[0]) - 1)
            parts += [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *body, r"\hline"]
            parts += [r"\end{tabular}", ""]
    return "\n".join(parts)


def _main_cells(results: SweepResults, text: Callable[[str], str]) -> list[list[str]]:
    scenes, metrics = _paper_scenes(results), results.metrics()
    head = ["row", "seeds", *(metric.heading for metric in metrics)]
    head += [f"paper, {scene}: {_BY_KEY[key].heading}" for scene in scenes for key in PAPER_METRICS]
    cells = [head]
    for row in results.rows():
        n = len(results.runs[row.name])
        line = [row.name, str(n), *(_cell(results.spread(row.name, m.key), m, "sd", n) for m in metrics)]
        for scene in scenes:
            numbers = row.paper.get(scene)
            line += ["-"] * 3 if numbers is None else [f"{numbers[0]:.2f}", f"{numbers[1]:.3f}", f"{numbers[2]:.3f}"]
        cells.append(line)
    return [[text(cell) for cell in line] for line in cells]


def _difference_cells(results: SweepResults, text: Callable[[str], str]) -> list[list[str]]:
    """Cells of the table of differences; empty if the reference, or every other row, has no finished run."""
    metrics, reference = [metric for metric in results.metrics() if metric.better], results.sweep.reference
    rows = [first for first, second in results.pairs() if second == reference]
    cells = [["row", "seeds", *(metric.heading for metric in metrics)]] if rows else []
    for row in rows:
        n = len(results.runs[row].keys() & results.runs[reference].keys())
        found = [_cell(results.difference(row, reference, m.key), m, "error", n) for m in metrics]
        cells.append([row, str(n), *found])
    return [[text(cell) for cell in line] for line in cells]


def _cell(value: Spread | None, metric: Metric, part: Literal["sd", "error"], n: int) -> str:
    """``mean ± part``, with the number of seeds if it differs from the row's (``n``)."""
    if value is None:
        return "-"
    width = value.sd if part == "sd" else value.error
    mean = f"{value.mean:{'' if part == 'sd' else '+'},.{metric.digits}f}"
    spread = "" if width is None else f" ± {width:,.{metric.digits}f}"
    return mean + spread + (f" ({_seeds(value.n)})" if value.n != n else "")


def _seeds(n: int) -> str:
    return "one seed" if n == 1 else f"{n} seeds"


def _paper_scenes(results: SweepResults) -> list[str]:
    return list(dict.fromkeys(scene for row in results.rows() for scene in row.paper))


def _paper_note(results: SweepResults) -> str:
    scenes = _paper_scenes(results)
    if not scenes:
        return ""
    return f" The paper's numbers ({results.sweep.source}) are of another scene, size and length: {', '.join(scenes)}."


def _pipes(cells: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells]
    return [head, "|---|" + "---:|" * (len(cells[0]) - 1), *body]


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(char, "\\" + char if char in "&%$#_{}" else char) for char in text)
