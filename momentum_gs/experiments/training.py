"""A training run in an output folder: reads settings, scene and partition; writes records, checkpoints and model."""

import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from momentum_gs.config.cfg_args import write_cfg_args
from momentum_gs.config.load import config_to_dict, dump_config, flat_settings
from momentum_gs.config.run import frame_of_run, out_folder
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm, Launch, connect
from momentum_gs.core.device import device_use, pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info, warn
from momentum_gs.core.watch import Stop
from momentum_gs.data.frame import recorded_frame
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.viewer_files import write_cameras_json, write_input_ply
from momentum_gs.eval.results import code_version, write_json
from momentum_gs.experiments.choose import Choice
from momentum_gs.experiments.teachers import TeacherStart, write_teacher_scores
from momentum_gs.train.checkpoint import checkpoints
from momentum_gs.train.events import Observer, Observers
from momentum_gs.train.loop import Training
from momentum_gs.train.observers import JsonLines, ProgressBar, TensorBoard, Wandb
from momentum_gs.train.outcome import Outcome

# Holds the id of the launch that began the run in a folder, so that only its restarted ranks continue the run.
_LAUNCH_FILE = ".launch"
# On a network disk, a file written by another machine becomes visible within seconds.
_SHARED_SECONDS = 10.0


def train(
    config: Config,
    launch: Launch,
    stop: Stop,
    *,
    resume: bool = False,
    only: Sequence[int] = (),
    choices: Sequence[Choice] = (),
    pace: Callable[[int, int], Config | None] | None = None,
    watchers: Sequence[Observer] = (),
) -> Outcome:
    """Trains and writes the model, or only a checkpoint if ``stop`` is set before the end.

    Args:
        config: Settings, with absolute paths.
        launch: How this process was launched.
        stop: Set by signals.
        resume: Continue from the last checkpoint of the output folder.
        only: Blocks of a finished run to train further.
        choices: Settings that were chosen, to be recorded in config.yaml.
        pace: Revises the number of steps during the run (``Training``).
        watchers: Further observers, which receive the events on rank 0 and are closed there.

    Raises:
        UserError: for settings, a scene, a partition or a checkpoint with which training is not possible.
    """
    device = pick_device(config.device)
    comm = connect(device, launch)
    folder = out_folder(config)
    _check_shared(folder, comm)
    resume = _resumes(resume, bool(only), folder, launch, comm)
    table = None
    if config.stage == "blocks":
        table = PartitionTable.load(Path(config.partition.file or folder / "partition.json"))
        config = replace(config, scene=recorded_frame(config.scene, table.meta))
    elif resume:
        config = replace(config, scene=frame_of_run(config.scene, folder))
    if config.switched_off:
        info(f"train: {config.switched_off}")
    scene = load_scene(config.scene)
    # Recorded in config.yaml: resuming, rendering and exporting use this frame even if the scene changes later.
    config = replace(config, scene=scene.frame.recorded(config.scene))
    if table is not None:
        table.check(config.partition, scene)
    start = TeacherStart(config, scene, table, device) if config.starts_from_teacher else None
    training = Training(config, scene, table, comm, device, resume=resume, only=only, start=start, pace=pace)
    code = code_version()  # Taken now, as the checkout may change during the training.
    # The folder is changed only from here on, after all errors in the input have been reported.
    observers = Observers([*_observers(config, choices, folder, scene, comm), *(watchers if comm.rank == 0 else ())])
    try:
        outcome = training.run(observers, stop=stop)
    finally:
        observers.close()
    if training.config != config:
        _write_settings(folder, training.config, choices)
    if outcome.interrupted:
        # The signal may have reached another rank.
        by = stop.signal.name if stop() and stop.signal else "a signal"
        info(f"train: stopped by {by} at step {outcome.step}, saved; continue with --resume")
    else:
        use = device_use(device)
        if comm.rank == 0:
            work = asdict(outcome.work) | {"waited": outcome.waited}
            write_json(folder / "train.json", {"code": code, "ranks": comm.world_size, **work, **use})
            if config.distill.teachers:
                write_teacher_scores(folder, config, scene, device)
        peak = int(use["peak_memory_bytes"]) / 2**30
        info(
            f"train: {outcome.step} steps in {outcome.work.seconds:.1f} s, peak memory {peak:.2f} GiB (rank 0) "
            f"-> {folder}"
            + (", stopped early: the wanted quality is reached" if outcome.stopped_early else "")
        )
    if outcome.bad_images:
        warn(f"train: {len(outcome.bad_images)} images could not be read and were left out (scene.bad_images=skip)")
    comm.close()
    return outcome


def _check_shared(folder: Path, comm: Comm) -> None:
    """Checks that all ranks see the same output folder.

    Raises:
        UserError: on the ranks of a machine that sees another folder.
    """
    if comm.world_size == 1:
        return
    # Rank 0 chooses a random name, so that a file left by an earlier run is not mistaken for this one.
    number = torch.tensor([uuid.uuid4().int % 2**62 if comm.rank == 0 else 0])
    comm.all_reduce_sum_(number)
    token = folder / f".shared_{int(number)}"
    if comm.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    comm.barrier()
    deadline = time.monotonic() + _SHARED_SECONDS
    while not (found := token.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    comm.barrier()
    if comm.rank == 0:
        token.unlink()
    if not found:
        raise UserError(
            f"{folder}: {socket.gethostname()} does not find there the file that rank 0 wrote, expected a folder "
            "that all machines share; mount it at the same path everywhere, or name another with -m"
        )
    comm.barrier()  # If one rank has failed, none continues, so the folder stays as it was.


def _resumes(asked: bool, only: bool, folder: Path, launch: Launch, comm: Comm) -> bool:
    """Whether to continue from a checkpoint: if asked to, or if the launcher has restarted the ranks.

    ``only``: some blocks of a finished run are to be trained further.

    Raises:
        UserError: if a new run would overwrite another.
    """
    restarts = torch.tensor([launch.restarts])  # Each machine counts its own restarts; a new machine begins at 0.
    comm.all_reduce_sum_(restarts)
    verdict = torch.zeros(1)
    if comm.rank == 0:
        saved = [path for _, path in checkpoints(folder / "checkpoint")]
        mark = folder / _LAUNCH_FILE
        again = bool(restarts) and mark.is_file() and mark.read_text() == _launch_name()
        if again:
            how = f"continuing from {saved[0].name}" if saved else "there is no checkpoint yet, so training starts anew"
            info(f"train: the ranks were started again; {how}")
        elif not (asked or only) and (saved or (folder / "point_cloud").exists()):
            mark.unlink(missing_ok=True)  # Launches may share an id: if this one is repeated, it is refused again.
            raise UserError(
                f"{folder}: holds a {'run' if saved else 'trained model'}; continue it with --resume, or choose "
                "another folder with -m"
            )
        verdict += bool(saved) if again else asked
    comm.all_reduce_sum_(verdict)
    return bool(verdict)


def _launch_name() -> str:
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def _write_settings(folder: Path, config: Config, choices: Sequence[Choice]) -> None:
    """Writes config.yaml: comments with the choices and their reasons (kept on a resume), then every setting."""
    file, values = folder / "config.yaml", flat_settings(config_to_dict(config))
    why = [f"# chosen: {replace(choice, value=values[choice.key])}" for choice in choices]
    if not why and file.is_file():
        why = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# chosen: ")]
    why += [f"# {config.switched_off}"] if config.switched_off else []
    file.write_text("".join(f"{line}\n" for line in why) + dump_config(config), encoding="utf-8")


def _observers(config: Config, choices: Sequence[Choice], folder: Path, scene: Scene, comm: Comm) -> list:
    """On rank 0, writes the run's first records and returns the observers; the other ranks have none."""
    if comm.rank != 0:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    _write_settings(folder, config, choices)
    (folder / _LAUNCH_FILE).write_text(_launch_name())
    write_cfg_args(folder, config)
    write_cameras_json(folder / "cameras.json", scene)
    write_input_ply(folder / "input.ply", scene.points)
    observers: list = [JsonLines(folder / "events.jsonl"), ProgressBar()]
    if config.log.tensorboard:
        try:
            observers.append(TensorBoard(folder))
        except ImportError:
            info("train: tensorboard is not installed, so its records are left out (pip install 'momentum-gs[log]')")
    if config.log.wandb:
        try:
            observers.append(Wandb(folder, config_to_dict(config)))
        except ImportError as error:
            raise UserError("train: log.wandb is on but wandb is missing; pip install 'momentum-gs[log]'") from error
    return observers
