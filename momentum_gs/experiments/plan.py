"""The jobs of a sweep: settings of every row and seed, and the folders of coarse models, partitions and runs."""

import hashlib
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from momentum_gs.config.load import config_to_dict, dump_config, flat_settings, load_settings
from momentum_gs.config.renamed import current_name, earlier_settings
from momentum_gs.config.run import load_run_config, out_folder
from momentum_gs.config.schema import Config
from momentum_gs.config.sweep import Sweep, SweepRow
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import warn
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.experiments.resolve import resolve
from momentum_gs.experiments.runner import Job, Stage, mark_done, stages_done
from momentum_gs.experiments.scores import read_scores

_NOT_OF_THE_EXPERIMENT = ("out", "device", "log", "store", "scene.path", "scene.offset", "scene.axes", "scene.cache_gb",
                          "distill.labels_gb", "partition.coarse", "partition.file", "compress.",
                          "aggregate.")  # fmt: skip
"""Settings and sections that do not change a run's result."""
_SET_BY_SWEEPS = {"seed": "--seeds", "partition.coarse": "--coarse", "partition.file": "the partitions of the sweep",
                  "stage": "the stages of the sweep", "out": "-m"}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """The parsed command line of ``momentum-gs sweep``."""

    files: tuple[str, ...] = ()
    """Settings files; later ones override earlier ones."""
    settings: tuple[str, ...] = ()
    """``key=value`` of flags and overrides; they override the files."""
    overrides: tuple[str, ...] = ()
    """Those of ``settings`` that were given as ``key=value``."""
    only: tuple[str, ...] | None = None
    """Rows to run; None: all."""
    jobs: int | None = None
    """Number of runs at a time; None: one for each GPU, or one without GPUs."""
    coarse: str | None = None
    """Folder of a coarse model for the partitions; None: OUT/coarse, which is trained if missing."""
    keep: bool = False
    """Keep checkpoints and unmerged blocks."""
    table: bool = False
    """Run nothing, only write the table."""
    rescore: bool = False
    """Score the renders of finished runs again."""
    lpips: str = "vgg"
    """Network of LPIPS, or none."""
    lpips_weights: Path | None = None
    """Folder with that network's weights."""


def row_config(request: Request, row: SweepRow, seed: int) -> Config:
    """The settings of a row with a seed; ``out`` is still the folder of the sweep.

    Raises:
        UserError: for a setting on the command line that the row or the sweep sets itself.
    """
    given = {current_name(text.partition("=")[0]) for text in request.overrides}
    for text in row.settings:
        if (key := current_name(text.partition("=")[0])) in given:
            raise UserError(
                f"sweep: {key} is given on the command line, but row {row.name!r} sets it to {text.partition('=')[2]}; "
                "leave it out, or change the sweep file"
            )
    for key, instead in _SET_BY_SWEEPS.items():
        if key in given:
            raise UserError(f"sweep: {key} is given on the command line, but {instead} decides it; leave it out")
    config = _resolve(request, row, f"seed={seed}")
    if config.partition.file is not None:
        raise UserError(
            f"sweep: partition.file is {config.partition.file}, expected none: each row has the partition of its own "
            "settings; leave it out"
        )
    return replace(
        config,
        steps=config.steps * row.stretch,
        optim=replace(config.optim, lr_steps=config.optim.lr_steps * row.stretch),
        growth=replace(config.growth, until=config.growth.until * row.stretch),
        gaussians=replace(config.gaussians, until=config.gaussians.until * row.stretch),
    )


def plan_rows(request: Request, sweep: Sweep) -> dict[str, dict[int, Config]]:
    """Row -> seed -> settings (``row_config``), with the folders of a row's teachers.

    Raises:
        UserError: as ``row_config``; and where no output folder is given.
    """
    plan: dict[str, dict[int, Config]] = {}
    for row in sweep.rows:
        plan[row.name] = {}
        for seed in sweep.seeds:
            config = row_config(request, row, seed)
            if row.teachers:
                folders = [run_folder(out_folder(config), plan[name][seed]) for name in row.teachers]
                teachers = tuple(str(folder.absolute()) for folder in folders)
                config = replace(config, distill=replace(config.distill, teachers=teachers))
            plan[row.name][seed] = config
    return plan


def coarse_config(request: Request, row: SweepRow | None = None) -> Config:
    """The settings of a coarse model: those of the command line and of ``row``, whose blocks start from the model."""
    return _resolve(request, row, "stage=coarse", "seed=0")


def _resolve(request: Request, row: SweepRow | None, *settings: str) -> Config:
    mode = [row.mode] if row is not None and row.mode is not None else []
    of_row = row.settings if row is not None else ()
    files: list[str | Path] = [*request.files, *mode]
    settings = (*request.settings, *of_row, *settings)
    if (passes := load_settings(files, settings, quiet=True).passes) is not None:
        raise UserError(
            f"sweep: steps is {passes:g} passes, expected a number: the steps of a pass depend on the partition, and "
            "rows of a sweep may have different ones"
        )
    return resolve(files, settings)[0]


def experiment(config: Config) -> dict[str, Any]:
    """Dotted name -> value of the settings that identify a run: those that affect its result and are not defaults.

    Paths, the device, logs and inactive sections are left out. Defaults are left out so that settings added by later
    versions do not change the identity of existing runs.
    """
    config = replace(config, partition=replace(config.partition, balance=config.partition.balance_used))
    defaults = flat_settings(config_to_dict(Config()))
    found = {}
    for key, value in flat_settings(config_to_dict(config)).items():
        if key in ("scene.test_list", "scene.points") and value is not None:
            value = Path(value).name
        if key == "distill.teachers":  # Names of runs of the sweep, which tell their settings and seed.
            value = tuple(Path(teacher).name for teacher in value)
        if value != defaults[key] and not key.startswith(_NOT_OF_THE_EXPERIMENT + config.idle_sections):
            found[key] = value
    return found


def short_hash(settings: Mapping[str, Any]) -> str:
    """The first ten hexadecimal digits of the settings' SHA-256."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def n_blocks(config: Config) -> int | str:
    """The number of cells of the partition, or 'auto'."""
    return math.prod(config.partition.dim) if config.partition.dim is not None else config.partition.blocks


def run_folder(out: Path, config: Config) -> Path:
    """Folder of a run; the readable part of its name has the settings that most sweeps vary.

    A run of version 0.1.0 is found under its old name, with the hash of the names that settings had then.
    """
    own, settings = ["own"] * (config.blocks.decoder == "per_block"), experiment(config)
    earlier = _run_folder(out, config, own, earlier_settings(settings))
    return earlier if earlier.is_dir() else _run_folder(out, config, ["per-block"] * len(own), settings)


def _run_folder(out: Path, config: Config, decoder: list[str], settings: Mapping[str, Any]) -> Path:
    parts = [f"n{n_blocks(config)}", f"k{config.blocks.active or 1}"]
    parts += [config.model.primitive] * (config.model.primitive != "anchors")
    parts += decoder + ["teacher"] * config.teacher.enabled
    parts += ["weighting"] * config.weighting.enabled
    return out / "runs" / "-".join([*parts, f"seed{config.seed}", short_hash(settings)])


def partition_folder(out: Path, config: Config) -> Path:
    """Folder of a run's partition, shared by all runs with the same partition settings, whatever their seeds."""
    parts = {key: value for key, value in experiment(config).items() if key.startswith(("partition.", "scene."))}
    if config.partition.blocks == "auto":
        parts |= {"anchors": asdict(config.anchors), "model": asdict(config.model), "growth": asdict(config.growth)}
    return out / "partitions" / f"n{n_blocks(config)}-{short_hash(parts)}"


def initialization_folder(out: Path, coarse: Config) -> Path:
    """Folder of the coarse model that blocks start from, shared by all runs with the same settings of it."""
    parts = {key: value for key, value in experiment(coarse).items() if not key.startswith(("partition.", "blocks."))}
    return out / f"coarse-{coarse.model.primitive}-{short_hash(parts)}"


def needs_coarse(config: Config) -> bool:
    """Whether the partition needs a coarse model to assign cameras to blocks."""
    return n_blocks(config) != 1 and config.partition.assign != "visibility"


def finished(folder: Path, config: Config) -> bool:
    """Whether a run has complete results.

    Raises:
        UserError: if the folder holds a run with other settings.
    """
    if not (folder / "config.yaml").is_file():
        return False
    there, wanted = experiment(load_run_config(folder)), experiment(config)
    if wanted.get("scene.unit") == "auto" and "scene.unit" in there:
        there["scene.unit"] = "auto"  # A run writes down the unit that it found.
    if there != wanted:
        key = next(key for key in {**there, **wanted} if there.get(key) != wanted.get(key))
        raise UserError(
            f"{folder}: holds a run with {key}={there.get(key, 'the default')}, expected "
            f"{wanted.get(key, 'the default')}; move it away"
        )
    return read_scores(folder) is not None


def scored_by(folder: Path, cells: Path) -> bool:
    """Whether a finished run's scores by block use the cells of the partition in ``cells``; false if it is missing."""
    file, scores = cells / "partition.json", read_scores(folder)
    there = None if scores is None else scores.protocol.get("cells_sha256")
    return there is not None and file.exists() and PartitionTable.load(file).cells_sha256 == there


def coarse_job(config: Config, folder: Path) -> Job:
    """The job that trains a coarse model."""
    config = replace(config, out=str(folder))
    if (folder / "config.yaml").is_file() and experiment(load_run_config(folder)) != experiment(config):
        warn(f"sweep: {folder} was trained with other settings than these; it is used as it is")
    command = _command("train", "-c", folder / "settings.yaml")
    stage = Stage("train", command, "point_cloud/iteration_*/point_cloud.ply")
    return _job(_coarse_name(folder), folder, config, (stage,))


def partition_job(config: Config, folder: Path, coarse: Path) -> Job:
    """The job that cuts the scene into blocks."""
    needs = (_coarse_name(coarse),) if needs_coarse(config) else ()
    config = replace(config, out=str(folder), partition=replace(config.partition, coarse=str(coarse)))
    command = _command("partition", str(config.scene.path), "-c", folder / "settings.yaml")
    return _job(f"partition {folder.name}", folder, config, (Stage("partition", command, "partition.json"),), needs)


def run_job(
    name: str, config: Config, out: Path, coarse: Path, cells: Path, request: Request, after: Sequence[str] = ()
) -> Job:
    """The job that trains, merges, renders and scores a run.

    Args:
        name: Name of the job.
        config: Settings of the run.
        out: Folder of the sweep.
        coarse: Folder of the coarse model that its blocks may start from.
        cells: Folder of the partition whose cells the scores by block use.
        request: The command line.
        after: Names of the jobs of its teachers.
    """
    folder = run_folder(out, config)
    cut = partition_folder(out, config)
    needs = tuple(dict.fromkeys(f"partition {path.name}" for path in (cut, cells)))
    needs += (_coarse_name(coarse),) if config.starts_from_coarse else ()
    needs += tuple(after)
    wanted, partition = config, replace(config.partition, coarse=str(coarse), file=str(cut / "partition.json"))
    config = replace(config, out=str(folder), partition=partition)
    weights = () if request.lpips_weights is None else ("--lpips-weights", request.lpips_weights)
    score = _command("eval", folder, "--lpips", request.lpips, "--device", config.device, *weights)
    model = "point_cloud/iteration_*"
    stages = (
        Stage("train", _command("train", "-c", folder / "settings.yaml"), f"{model}/partition.json"),
        Stage("merge", _command("merge", folder), f"{model}/point_cloud.ply"),
        Stage("render", _command("render", folder, "--cells", cells / "partition.json"), "test/ours_*/render.json"),
        Stage("render blocks", _command("render", folder, "--blocks"), "test/ours_*_blocks/render.json"),
        Stage("eval", score, "results.json"),
    )
    again = request.rescore

    def done() -> bool:
        nonlocal again
        if not finished(folder, wanted):
            return False
        redo = {"eval"} if again else set()
        if not scored_by(folder, cells):
            redo = {"render", "eval"}
        again = False
        if redo:
            mark_done(folder, [stage for stage in stages_done(folder) if stage not in redo])
        return not redo

    job = _job(name, folder, config, stages, needs)
    return replace(job, finished=done, tidy=lambda: None if request.keep else _tidy(folder))


def _command(*words: str | Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "momentum_gs", *map(str, words))


def _coarse_name(folder: Path) -> str:
    return f"{folder.name} model"


def _job(name: str, folder: Path, config: Config, stages: tuple[Stage, ...], needs: tuple[str, ...] = ()) -> Job:
    """A job that is finished once all its stages are done."""
    names = [stage.name for stage in stages]
    return Job(name, folder, dump_config(config), stages, lambda: stages_done(folder) == names, lambda: None, needs)


def _tidy(folder: Path) -> None:
    """Removes checkpoints, store and unmerged blocks, which only further training, merging or rendering would need."""
    for name in ("checkpoint", "store"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob("point_cloud/iteration_*/point_cloud_block*.ply"):
        path.unlink()
