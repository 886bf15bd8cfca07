"""A figure of a sweep's table: mean and spread of every row, with the single runs."""

from pathlib import Path

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.experiments.table import SweepResults


def draw_sweep(path: Path, results: SweepResults) -> None:
    """Writes a PNG with a panel for each metric: for each row its mean with a bar of one sample standard deviation, and
    a ring for each seed.

    Raises:
        UserError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"{path}: needs matplotlib; pip install 'momentum-gs[plot]'") from error

    metrics = [metric for metric in results.metrics() if metric.better and not metric.key.endswith("_cc")]
    rows = results.rows()
    figure = Figure(figsize=(2 + 3 * len(metrics), 1.2 + 0.4 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for y, row in enumerate(rows):
            color = "tab:orange" if row.name == results.sweep.reference else "tab:blue"
            values, found = results.values(row.name, metric.key), results.spread(row.name, metric.key)
            if found is not None:
                panel.scatter(list(values.values()), [y] * len(values), s=18, facecolors="none", edgecolors="0.6")
                panel.errorbar(found.mean, y, xerr=found.sd, fmt="o", color=color, capsize=3)
        arrow = {1: ", more is better", -1: ", less is better", 0: ""}[metric.better]
        panel.set_xlabel(f"{metric.heading}{arrow}")
        panel.grid(axis="x", color="0.9")
    panels[0].set_yticks(range(len(rows)), [row.name for row in rows])
    panels[0].invert_yaxis()
    figure.suptitle(results.sweep.title, fontsize="medium")
    with replacing(path) as part:
        figure.savefig(part, format="png")
