"""Sweeps: experiments that differ in a few settings, over seeds, run as jobs; and their table."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from momentum_gs.config.run import out_folder
from momentum_gs.config.schema import Config
from momentum_gs.config.sweep import Sweep, SweepRow
from momentum_gs.core.cores import usable_cores
from momentum_gs.core.device import visible_gpus
from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import info
from momentum_gs.core.watch import Stop
from momentum_gs.eval.results import write_json
from momentum_gs.experiments.figure import draw_sweep
from momentum_gs.experiments.plan import (
    Request,
    coarse_config,
    coarse_job,
    finished,
    initialization_folder,
    n_blocks,
    needs_coarse,
    partition_folder,
    partition_job,
    plan_rows,
    run_folder,
    run_job,
    scored_by,
)
from momentum_gs.experiments.resolve import resolve
from momentum_gs.experiments.runner import run_jobs
from momentum_gs.experiments.scores import read_scores
from momentum_gs.experiments.table import SweepResults, to_csv, to_json, to_latex, to_markdown


def run_sweep(sweep: Sweep, request: Request) -> dict[str, str]:
    """Runs what is missing and writes the table.

    Returns:
        Name -> reason, for the jobs that failed.

    Raises:
        UserError: for settings that do not fit the sweep, or an output folder with runs of another scene.
    """
    only = _only(request.only, sweep)
    base = resolve(request.files, request.settings)[0]
    out = out_folder(base)
    plan = plan_rows(request, sweep)
    _keep_to_one_scene(out, base)
    cells = _cells_config(sweep, plan)
    # Teachers of the rows that run are run, too; a teacher stands above its students.
    for row in reversed(sweep.rows):
        only += [name for name in row.teachers if row.name in only and name not in only]
    rows = [row for row in sweep.rows if row.name in only]
    failed = {} if request.table else _run_all(request, out, rows, plan, cells)
    results = _collect(request, sweep, plan, out, partition_folder(out, cells), failed)
    if any(results.runs.values()) or request.table:
        _write_table(out, results)
    return failed


def _only(names: Sequence[str] | None, sweep: Sweep) -> list[str]:
    """The rows to run."""
    known = [row.name for row in sweep.rows]
    if names is None:
        return known
    for name in names:
        if name not in known:
            raise UserError(f"sweep: --only names {name!r}, expected rows of the sweep: {'; '.join(known)}")
    return list(dict.fromkeys(names))


def _cells_config(sweep: Sweep, plan: Mapping[str, Mapping[int, Config]]) -> Config:
    """The settings of the partition whose cells the scores by block of all rows use: the reference's, or if it has one
    block, those of the first row with more."""
    configs = [next(iter(plan[row].values())) for row in (sweep.reference, *plan)]
    return next((config for config in configs if n_blocks(config) != 1), configs[0])


def _keep_to_one_scene(out: Path, config: Config) -> None:
    """Checks that the output folder holds runs of this scene only: a run's identity does not include the scene's path.

    Raises:
        UserError: if no scene is given, or the folder holds runs of another one.
    """
    if config.scene.path is None:
        raise UserError("sweep: no scene is given, expected one; give it with -s SCENE")
    mark = out / "scene.txt"
    if not mark.exists():
        out.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{config.scene.path}\n")
    if (there := mark.read_text().strip()) != config.scene.path:
        raise UserError(
            f"{out}: holds runs of {there}, expected {config.scene.path}; choose another folder with -m, or remove "
            f"{mark} if the scene has only moved"
        )


def _run_all(
    request: Request,
    out: Path,
    rows: Sequence[SweepRow],
    plan: Mapping[str, Mapping[int, Config]],
    cells_of: Config,
) -> dict[str, str]:
    """Runs what is not finished, with the coarse models and partitions it needs; returns job -> reason of failures."""
    runs: dict[Path, tuple[str, SweepRow, Config]] = {}
    for row in rows:
        for seed, config in plan[row.name].items():
            name = f"{row.name}, seed {seed}"
            same = runs.setdefault(run_folder(out, config), (name, row, config))[0]
            if same != name:
                info(f"sweep: {name} has the same settings as {same}, so they share one run")
    cells = partition_folder(out, cells_of)
    missing = [
        item for folder, item in runs.items()
        if request.rescore or not finished(folder, item[2]) or not scored_by(folder, cells)
    ]  # fmt: skip
    info(f"sweep: {len(runs)} runs, {len(runs) - len(missing)} of them finished -> {out}")

    coarse = Path(request.coarse).absolute() if request.coarse else out / "coarse"
    models, jobs = {}, []
    partitions = {cells: cells_of} if missing else {}
    for name, row, config in missing:
        partitions[partition_folder(out, config)] = config
        start = coarse
        if config.starts_from_coarse:
            settings = coarse_config(request, row)
            start = initialization_folder(out, settings)
            models[start] = settings
        after = [runs[Path(folder)][0] for folder in config.distill.teachers]
        jobs.append(run_job(name, config, out, start, cells, request, after))
    if not request.coarse and any(map(needs_coarse, partitions.values())):
        models[coarse] = coarse_config(request)
    first = [coarse_job(config, folder) for folder, config in models.items()]
    first += [partition_job(config, folder, coarse) for folder, config in partitions.items()]
    with Stop() as stop:
        return run_jobs([*first, *jobs], _slots(request.jobs, next(iter(runs.values()))[2]), stop)


def _slots(jobs: int | None, config: Config) -> list[dict[str, str]]:
    """Environment variables for each of the runs at a time: its GPU and its share of the cores."""
    gpus = visible_gpus(config.device)
    count = jobs or len(gpus) or 1
    if count < 1:
        raise UserError(f"sweep: --jobs is {count}, expected at least 1")
    threads = str(max(1, usable_cores() // count))
    shares = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}
    return [{**shares, **({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})} for i in range(count)]


def _collect(
    request: Request,
    sweep: Sweep,
    plan: Mapping[str, Mapping[int, Config]],
    out: Path,
    cells: Path,
    failed: Mapping[str, str],
) -> SweepResults:
    """The scores of all finished runs, whichever process ran them; scores by block only if they use ``cells``."""
    folders = {row: {seed: run_folder(out, c) for seed, c in configs.items()} for row, configs in plan.items()}
    runs = {
        row: {seed: scores if scored_by(folders[row][seed], cells) else scores.without_blocks()
              for seed, config in configs.items()
              if finished(folders[row][seed], config) and (scores := read_scores(folders[row][seed])) is not None}
        for row, configs in plan.items()
    }  # fmt: skip
    config = next(iter(plan[sweep.reference].values()))
    protocols = [run.protocol for seeds in runs.values() for run in seeds.values()]
    trained = {(protocol.get("training") or {}).get("code", "a version that did not say") for protocol in protocols}
    rendered = {str(protocol.get("rendered_by")) for protocol in protocols}
    about = {
        "scene": _tail(str(config.scene.path)),
        "settings": " ".join([*map(_tail, request.files or ["configs/base.yaml"]), *request.overrides]),
        "steps": f"{config.steps:,} for every block of the reference",
        "seeds": ", ".join(map(str, sweep.seeds)),
        "trained by": "; ".join(sorted(trained)),
        "rendered by": "; ".join(sorted(rendered)),
    }
    names = {row: {seed: path.name for seed, path in paths.items()} for row, paths in folders.items()}
    return SweepResults(sweep, runs, names, about, failed)


def _tail(path: str) -> str:
    """The last two parts of a path, so that the table does not depend on where scene and files lie."""
    return "/".join(Path(path).parts[-2:])


def _write_table(out: Path, results: SweepResults) -> None:
    results.check()
    stem = out / results.sweep.name
    write_json(stem.with_suffix(".json"), to_json(results))
    markdown = to_markdown(results)
    for suffix, text in ((".md", markdown), (".csv", to_csv(results)), (".tex", to_latex(results))):
        with replacing(stem.with_suffix(suffix)) as part:
            part.write_text(text, encoding="utf-8")
    info(markdown)
    info(f"sweep: {stem}.md, .csv, .tex, .json")
    try:
        draw_sweep(stem.with_suffix(".png"), results)
    except UserError as error:  # The figure is optional: it shows nothing that is not in the table.
        info(f"sweep: no figure: {error}")
