"""``momentum-gs train``: the coarse model, or the blocks of a partitioned scene, alone or under torchrun."""

import argparse
import resource
import sys
from pathlib import Path

from momentum_gs.cli.common import add_run_arguments, resolve_config
from momentum_gs.config.family import write_cfg_args
from momentum_gs.config.load import config_to_dict, dump_config
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm, connect
from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import say
from momentum_gs.data.family_files import write_cameras_json, write_input_ply
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training
from momentum_gs.train.observers import JsonLines, ProgressBar, TensorBoard, Wandb

HELP = "train the coarse model, or the blocks of a partitioned scene"
DESCRIPTION = """\
Trains what 'stage' says: 'coarse' (the whole scene as one block, for the partition) or 'blocks' (k of n blocks at a
time around one shared decoder). Several processes: torchrun --standalone --nproc_per_node=R -m momentum_gs train ...;
the model does not depend on R, only on blocks.active (k).

  momentum-gs train -c configs/demo.yaml -s SCENE -m OUT/coarse stage=coarse
  momentum-gs partition SCENE -c configs/demo.yaml -m OUT
  momentum-gs train -c configs/demo.yaml -s SCENE -m OUT blocks.active=2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_run_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the output folder")


def run(args: argparse.Namespace) -> None:
    """Trains and writes the model."""
    config = resolve_config(args)
    device = pick_device(config.device)
    comm = connect(device)
    if config.out is None:
        raise UserError("train: no output folder; give -m OUT")
    folder = Path(config.out)
    if not args.resume and (folder / "point_cloud").exists():
        raise UserError(f"{folder}: holds a trained model; continue it with --resume, or choose another folder with -m")
    scene = load_scene(config.scene)
    table = None
    if config.stage == "blocks":
        table = PartitionTable.load(Path(config.partition.file or folder / "partition.json"))
        table.check(config.partition, scene)
    training = Training(config, scene, table, comm, device, resume=args.resume)
    # Only now does anything in the folder change: what is wrong has been said by here.
    observers = Observers(_observers(config, folder, scene, comm))
    try:
        outcome = training.run(observers)
    finally:
        observers.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
    if comm.rank == 0:
        say(
            f"train: {outcome.step} steps in {outcome.seconds:.1f} s, peak memory {peak:.2f} GiB (rank 0) -> {folder}"
            + (", stopped early: the wanted quality is reached" if outcome.stopped_early else "")
        )
    comm.close()


def _observers(config: Config, folder: Path, scene: Scene, comm: Comm) -> list:
    """Rank 0 writes the run's records and shows progress; the others are silent."""
    if comm.rank != 0:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_config(config))
    write_cfg_args(folder, config)
    write_cameras_json(folder / "cameras.json", scene)
    write_input_ply(folder / "input.ply", scene.points)
    observers: list = [JsonLines(folder / "events.jsonl"), ProgressBar()]
    if config.log.tensorboard:
        try:
            observers.append(TensorBoard(folder))
        except ImportError:
            say("train: tensorboard is not installed, so its records are left out (pip install 'momentum-gs[log]')")
    if config.log.wandb:
        try:
            observers.append(Wandb(folder, config_to_dict(config)))
        except ImportError as error:
            raise UserError("train: log.wandb is on but wandb is missing; pip install 'momentum-gs[log]'") from error
    return observers
