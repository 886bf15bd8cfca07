"""``momentum-gs sweep``: experiments that differ in a few settings, over seeds, and their table."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from momentum_gs.cli.common import add_run_arguments, out_folder, resolve_config
from momentum_gs.cli.sweep_plan import (
    coarse_config,
    coarse_job,
    finished,
    n_blocks,
    needs_coarse,
    partition_folder,
    partition_job,
    prior_folder,
    row_config,
    run_folder,
    run_job,
    scored_by,
)
from momentum_gs.cli.sweep_run import run_jobs
from momentum_gs.config.schema import Config
from momentum_gs.config.shipped import find_sweep
from momentum_gs.config.sweep import Sweep, SweepRow, load_sweep
from momentum_gs.core.device import visible_gpus
from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import say, warn
from momentum_gs.core.watch import Stop
from momentum_gs.eval.lpips_metric import NETS
from momentum_gs.eval.results import write_json
from momentum_gs.eval.sweep_figure import draw_sweep
from momentum_gs.eval.sweep_scores import read_scores
from momentum_gs.eval.sweep_table import SweepResults, to_csv, to_json, to_latex, to_markdown

HELP = "a table of experiments that differ in a few settings, over seeds"
DESCRIPTION = """\
Runs every row of a sweep file with every seed: train, merge, render (merged, and block by block), eval. Then writes
OUT/<name>.{md,csv,tex,json,png}: mean and spread over seeds, differences to the reference row paired by seed, and which
orderings stand out from the spread. docs/experiments.md explains sweep files and tables.

  momentum-gs sweep table7 -s SCENE -m OUT -c demo --seeds 0,1,2 --jobs 2
  momentum-gs sweep table9 -s SCENE -m OUT -c demo     shares runs that are the same
  momentum-gs sweep table9 -s SCENE -m OUT -c demo --table

Settings: FILEs, the row's mode, key=value, then what the sweep sets. Runs lie in OUT/runs and are known by their
settings: what is finished is not run again, what was broken off is resumed, and several sweeps may work on one OUT at
the same time. The coarse model (OUT/coarse) and the partitions (OUT/partitions) are made once, with seed 0. Of a
finished run only the merged model is kept, unless --keep. Ctrl-C stops; the same command goes on. The worst block is
found among the cells of the reference row's partition, in every row: a block of 8 is not a block of 4.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add = parser.add_argument
    add("sweep", metavar="SWEEP", help="a shipped sweep by its name (table7), or your own YAML file")
    add_run_arguments(parser)
    add("--seeds", type=_seeds, metavar="S,S,...", help="instead of the file's")
    add("--only", metavar="ROW,...", help="run these rows only; the table has all that are finished")
    add("--jobs", type=int, metavar="N", help="runs at a time; default: one for each GPU, on CPUs one. The cores are "
        "shared out among them, unless OMP_NUM_THREADS says how many each gets")
    add("--coarse", metavar="FOLDER", help="coarse model for the partitions (default: OUT/coarse, trained if missing)")
    add("--keep", action="store_true", help="keep checkpoints and unmerged blocks of finished runs")
    add("--table", action="store_true", help="run nothing, write the table of what is finished")
    add("--rescore", action="store_true", help="score the renders of finished runs again")
    add("--lpips", choices=(*NETS, "none"), default="vgg", help="network of LPIPS (default: vgg), as in 'eval'")
    add("--lpips-weights", type=Path, metavar="FOLDER", help="folder with torchvision's file of that network")


def _seeds(text: str) -> tuple[int, ...]:
    """``0,1,2``; a ValueError is worded by argparse."""
    return tuple(dict.fromkeys(map(int, text.split(","))))


def run(args: argparse.Namespace) -> int:
    """Runs what is missing, writes the table, says what failed; 1 where something did."""
    sweep = load_sweep(find_sweep(args.sweep))
    if args.seeds is not None:
        sweep = replace(sweep, seeds=args.seeds)
    only = _only(args.only, sweep)
    base = resolve_config(args)
    out = out_folder(base)
    plan = {row.name: {seed: row_config(args, row, seed) for seed in sweep.seeds} for row in sweep.rows}
    _keep_to_one_scene(out, base)
    cells = _cells_config(sweep, plan)
    failed = {} if args.table else _run_all(args, out, [row for row in sweep.rows if row.name in only], plan, cells)
    results = _collect(args, sweep, plan, out, partition_folder(out, cells), failed)
    if any(results.runs.values()) or args.table:
        _write_table(out, results)
    for name, reason in failed.items():
        warn(f"sweep: {name} failed: {reason}")
    return 1 if failed else 0


def _only(names: str | None, sweep: Sweep) -> list[str]:
    """The rows to run."""
    known = [row.name for row in sweep.rows]
    if names is None:
        return known
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise UserError(f"sweep: --only names {name!r}, expected rows of the sweep: {'; '.join(known)}")
    return wanted


def _cells_config(sweep: Sweep, plan: Mapping[str, Mapping[int, Config]]) -> Config:
    """Whose partition the scores by block of all rows go by: the reference's, or where that is one block, the first
    row's that has more."""
    configs = [next(iter(plan[row].values())) for row in (sweep.reference, *plan)]
    return next((config for config in configs if n_blocks(config) != 1), configs[0])


def _keep_to_one_scene(out: Path, config: Config) -> None:
    """Runs are known by their settings, among which the scene's place is not: it belongs to the folder."""
    if config.scene.path is None:
        raise UserError("sweep: no scene is named, expected one; give it with -s SCENE")
    mark = out / "scene.txt"
    if not mark.exists():
        out.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{config.scene.path}\n")
    if (there := mark.read_text().strip()) != config.scene.path:
        raise UserError(
            f"{out}: holds runs of {there}, expected {config.scene.path}; choose another folder with -m, or remove "
            f"{mark} where the scene has only moved"
        )


def _run_all(
    args: argparse.Namespace,
    out: Path,
    rows: Sequence[SweepRow],
    plan: Mapping[str, Mapping[int, Config]],
    cells_of: Config,
) -> dict[str, str]:
    """Coarse models, partitions and runs that are not finished; what failed, and why."""
    runs: dict[Path, tuple[str, SweepRow, Config]] = {}
    for row in rows:
        for seed, config in plan[row.name].items():
            name = f"{row.name}, seed {seed}"
            same = runs.setdefault(run_folder(out, config), (name, row, config))[0]
            if same != name:
                say(f"sweep: {name} has the settings of {same}, so they are one run")
    cells = partition_folder(out, cells_of)
    missing = [
        item for folder, item in runs.items()
        if args.rescore or not finished(folder, item[2]) or not scored_by(folder, cells)
    ]  # fmt: skip
    say(f"sweep: {len(runs)} runs, {len(runs) - len(missing)} of them finished -> {out}")

    coarse = Path(args.coarse).absolute() if args.coarse else out / "coarse"
    models, jobs = {}, []
    partitions = {cells: cells_of} if missing else {}
    for name, row, config in missing:
        partitions[partition_folder(out, config)] = config
        start = coarse
        if config.starts_from_coarse:
            settings = coarse_config(args, row)
            start = prior_folder(out, settings)
            models[start] = settings
        jobs.append(run_job(name, config, out, start, cells, args))
    if not args.coarse and any(map(needs_coarse, partitions.values())):
        models[coarse] = coarse_config(args)
    first = [coarse_job(config, folder) for folder, config in models.items()]
    first += [partition_job(config, folder, coarse) for folder, config in partitions.items()]
    with Stop() as stop:
        return run_jobs([*first, *jobs], _slots(args.jobs, next(iter(runs.values()))[2]), stop)


def _slots(jobs: int | None, config: Config) -> list[dict[str, str]]:
    """Environment of each of the runs that go on at a time."""
    gpus = visible_gpus(config.device)
    count = jobs or len(gpus) or 1
    if count < 1:
        raise UserError(f"sweep: --jobs is {count}, expected at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // count))
    shares = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": threads}
    return [{**shares, **({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {})} for i in range(count)]


def _collect(
    args: argparse.Namespace,
    sweep: Sweep,
    plan: Mapping[str, Mapping[int, Config]],
    out: Path,
    cells: Path,
    failed: Mapping[str, str],
) -> SweepResults:
    """The scores of all runs that are finished, whoever ran them; of the worst block only by these cells."""
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
        "settings": " ".join([*map(_tail, args.config or ["base"]), *args.overrides]),
        "steps": f"{config.steps:,} for every block of the reference",
        "seeds": ", ".join(map(str, sweep.seeds)),
        "trained by": "; ".join(sorted(trained)),
        "rendered by": "; ".join(sorted(rendered)),
    }
    names = {row: {seed: path.name for seed, path in paths.items()} for row, paths in folders.items()}
    return SweepResults(sweep, runs, names, about, failed)


def _tail(path: str) -> str:
    """The end of a path: the table names the scene and the files wherever they lie."""
    return "/".join(Path(path).parts[-2:])


def _write_table(out: Path, results: SweepResults) -> None:
    results.check()
    stem = out / results.sweep.name
    write_json(stem.with_suffix(".json"), to_json(results))
    markdown = to_markdown(results)
    for suffix, text in ((".md", markdown), (".csv", to_csv(results)), (".tex", to_latex(results))):
        with replacing(stem.with_suffix(suffix)) as part:
            part.write_text(text, encoding="utf-8")
    say(markdown)
    say(f"sweep: {stem}.md, .csv, .tex, .json")
    try:
        draw_sweep(stem.with_suffix(".png"), results)
    except UserError as error:  # The picture shows nothing that the table does not say.
        say(f"sweep: no picture: {error}")
