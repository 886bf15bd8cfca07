"""Runs of the tiny scene: settings, partition, training in this process or on several ranks, and the trained model."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked_ranks import run_command_line

from momentum_gs.config.load import load_config
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.model.io import DECODER_FILE, load_decoder, load_model
from momentum_gs.partition.cover import block_boxes
from momentum_gs.partition.windows import weights_by_boxes, with_windows
from momentum_gs.train.events import Event, Observers
from momentum_gs.train.loop import Training
from momentum_gs.train.outcome import Outcome

CPU = torch.device("cpu")
BASE = ["-c", str(Path(__file__).parents[1] / "configs" / "base.yaml")]
"""The settings that ``load_config(None)`` starts from, for the command line."""

SETTINGS = [
    "steps=60",
    "model.voxel_size=0.3",
    "model.n_offsets=4",
    "blocks.interval=15",
    "blocks.active=2",
    "partition.dim=[2,2,1]",
    "growth.start_stat=5",
    "growth.from_step=10",
    "growth.interval=10",
    "growth.success_threshold=0.1",
    # One level, with cells of the size of voxels: this plane is so dense that no coarser cell is empty.
    "growth.depth=1",
    "growth.init_factor=1",
    # Low, so that every growth step finds something to grow.
    "growth.grad_threshold=1e-5",
    "weighting.every=20",
    "weighting.view_stride=2",
    "log.tensorboard=false",
    "scene.resolution=1",
]


def make_config(scene: Path, out: Path, *overrides: str) -> Config:
    return load_config(None, [f"scene.path={scene}", f"out={out}", *SETTINGS, *overrides])


def write_table(config: Config) -> PartitionTable:
    """Writes a 2x2 partition in which every block has the views of its quadrant and one of the next."""
    assert config.out is not None
    scene = load_scene(config.scene)
    bounds = (-4.0, -4.0, -1.0, 4.0, 4.0, 5.0)
    empty = PartitionTable(bounds, (2, 2, 1), torch.eye(3, dtype=torch.float64), [[]] * 4, {})
    views = [[c.name for c in scene.train if empty.owner(c) == b] for b in range(4)]
    views = [own + views[(b + 1) % 4][:1] for b, own in enumerate(views)]
    table = PartitionTable(bounds, (2, 2, 1), torch.eye(3, dtype=torch.float64), views, {})
    table = with_windows(table, scene.train, weights_by_boxes(table, block_boxes(table, scene.points.xyz)))
    Path(config.out).mkdir(parents=True, exist_ok=True)
    table.save(Path(config.out) / "partition.json")
    return table


def train(config: Config, *, resume: bool = False, device: torch.device = CPU) -> Outcome:
    training = Training(config, load_scene(config.scene), write_table(config), LocalComm(), device, resume=resume)
    return training.run(Observers())


def model_of(out: Path, steps: int = 0) -> dict[str, torch.Tensor]:
    folder = next((out / "point_cloud").glob(f"iteration_{steps or '*'}"))
    tensors = {
        f"{'decoder' if file.parent == folder else file.parent.name}.{name}": value
        for file in sorted(folder.rglob(DECODER_FILE))
        for name, value in load_decoder(file.parent).state_dict().items()
    }
    for ply in sorted(folder.glob("point_cloud_block*.ply")):
        tensors |= {f"{ply.stem}.{k}": v.detach() for k, v in load_model(ply)[0].rows().items()}
    return tensors


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class InterruptAfter:
    """Stops the run as Ctrl-C would, when it reports that step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_event(self, event: Event) -> None:
        if event.step == self._step:
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


def interrupt(config: Config, step: int) -> None:
    """Trains until the run reports that step, then stops it as Ctrl-C would."""
    training = Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU)
    with pytest.raises(KeyboardInterrupt):
        training.run(Observers([InterruptAfter(step)]))


class Runs:
    """Runs of one scene, each trained once, whichever test asks first, and by one thread."""

    def __init__(self, scene: Path, folder: Path) -> None:
        self._scene, self._folder = scene, folder
        self._ready: dict[tuple[str, ...], Path] = {}

    def whole(self, *overrides: str) -> Path:
        """The folder of a run to its end; tests only read it, or train on in a copy."""
        return self._once(overrides, train)

    def interrupted(self, checkpoint: int, *overrides: str) -> Path:
        """The same of a run that wrote a checkpoint and was stopped five steps later; tests go on in a copy."""
        every = f"log.checkpoint_every={checkpoint}"
        return self._once((*overrides, every), lambda config: interrupt(config, checkpoint + 5))

    def _once(self, overrides: tuple[str, ...], make: Callable[[Config], object]) -> Path:
        if overrides not in self._ready:
            out = self._folder / str(len(self._ready))
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            make(make_config(self._scene, out, *overrides))
            torch.set_num_threads(threads)
            self._ready[overrides] = out
        return self._ready[overrides]


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Waits for the end of a process without a time limit; returns its stdout and stderr.

    If the wait is interrupted (Ctrl-C, or the time limit of pytest), the process is ended, and with a launcher its
    ranks.
    """
    try:
        printed, errors = process.communicate()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    return printed, errors


def run_ranks(
    scene: Path, out: Path, ranks: int, *overrides: str, device: str = "cpu", launcher: bool = False
) -> dict[str, torch.Tensor]:
    """Trains with several ranks and returns the model.

    Args:
        device: of all ranks.
        launcher: start them with torchrun, as a user would; on a GPU that is always so.
    """
    write_table(make_config(scene, out))
    words = ["train", *BASE, "-s", str(scene), "-m", str(out), *SETTINGS, f"device={device}", *overrides]
    if not launcher and device == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            run_command_line(words, ranks, Path(folder))
        return model_of(out)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    root = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command += ["-m", "momentum_gs", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors = finish(process)[1]
    assert process.returncode == 0, errors
    return model_of(out)
