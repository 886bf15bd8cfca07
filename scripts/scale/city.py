"""Trains a city of many blocks whose store has little memory, and compares the time with a prediction.

    python scripts/scale/city.py --work FOLDER [--side 16 --anchors 200000 --ram-gb 8 --active 4 --interval 2]

This tests the store, the schedule and the checkpoints. So blocks are synthetic (anchors spread over their cells, random
features), images are small, and rounds are short: a few steps instead of hundreds, which is the worst case for the
store. Every block is trained, moved, fine-tuned at its borders and saved by the same code as in any run.

Before the run, its time is predicted from
- a small city of equal blocks that stays in memory: the time of a round with a live and with a frozen decoder;
- the rates at which blocks are written (hashed and synced) to the disk of FOLDER and read from it;
- a simulation of the schedule (store_model.py) that counts which blocks must be written and read.

It prints the predicted and the measured time. FOLDER needs about 936 bytes per anchor of all blocks, and half as much
again for the previous checkpoint.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from pathlib import Path

import torch
from store_model import Parts, StoreModel

from momentum_gs.config.load import load_config
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.device import pick_device
from momentum_gs.core.geometry import Sight, uncontract
from momentum_gs.core.log import info
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.core.window import RASTER, pack_owned
from momentum_gs.data.images import write_png
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene
from momentum_gs.model.anchors import Anchors
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.blocks.file import read_block, write_block
from momentum_gs.train.blocks.packed import pack
from momentum_gs.train.blocks.schedule import Round
from momentum_gs.train.events import Event, Observers, RoundEnded
from momentum_gs.train.loop import Training

PITCH = 25.0
"""Side of the square of ground of a block, scene units; equal to that of the inner cells."""
VIEWS = 4
"""Number of views of a block; they look straight down from above its ground."""
IMAGE = (96, 64)
FOOTPRINT = 0.15
"""Width of the ground that an image shows, as a share of the block's."""


def ground(table: PartitionTable, block: int, n: int) -> torch.Tensor:
    """[n,3] points of a block's ground: a square in the middle of its cell, which inner cells fill."""
    middle = table.grid.cell_bounds(block).view(2, 3).mean(dim=0, keepdim=True)
    places = torch.rand(n, 3, generator=keyed_generator(block), dtype=torch.float64) - 0.5
    places[:, 2] = 0
    return uncontract(middle, table.aabb) + PITCH * places


def make_city(side: int, folder: Path) -> tuple[Scene, PartitionTable]:
    """side x side cells with their views, which all have the same image."""
    width, height = IMAGE
    folder.mkdir(parents=True)
    write_png(folder / "image.png", torch.rand(3, height, width, generator=keyed_generator("image")))
    half = PITCH * side / 4  # The inner half of the cells, each way, is inside the box.
    aabb = (-half, -half, -10.0, half, half, 10.0)
    empty = PartitionTable(aabb, (side, side, 1), torch.eye(3, dtype=torch.float64), [[] for _ in range(side**2)])
    rotation = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]], dtype=torch.float64)
    focal = width / FOOTPRINT  # For a height of one pitch.
    cameras, paths = [], {}
    for block in range(empty.n):
        for i, place in enumerate(ground(empty, block, VIEWS)):
            name = f"{block:04d}_{i}.png"
            os.link(folder / "image.png", folder / name)
            center = place + torch.tensor([0.0, 0.0, PITCH], dtype=torch.float64)
            cameras.append(
                Camera(name, width, height, focal, focal, width / 2, height / 2, rotation, -rotation @ center)
            )
            paths[name] = folder / name
    views = [[camera.name for camera in cameras[b * VIEWS : (b + 1) * VIEWS]] for b in range(empty.n)]
    # With blocks.windows: a block owns all of its views, amid what they show of its neighbours.
    owned = pack_owned(torch.ones(1, RASTER, RASTER, dtype=torch.bool))
    table = PartitionTable(aabb, empty.dim, empty.rotation, views, windows=[[owned] * VIEWS] * empty.n)
    points = PointCloud(torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.uint8))
    return Scene(folder, cameras, [], points, paths), table


def synthetic_block(table: PartitionTable, block: int, n: int, config: Config) -> AnchorBlock:
    """A block at step 0 with n anchors."""
    model = config.model
    position = ground(table, block, n).float()
    spacing = PITCH / n**0.5
    anchors = Anchors.fresh(
        position,
        torch.randn(n, model.feature_dim, generator=keyed_generator(block, "feature")) * 0.1,
        torch.full((n, 6), spacing).log(),
        model.n_offsets,
    ).as_leaves()
    return AnchorBlock.of(block, anchors, config, lr_scale=1.0, voxel_size=spacing)


class Stopwatch:
    """Records the seconds of every round, and when enough rounds are done."""

    def __init__(self, rounds: int) -> None:
        self.rounds: list[float] = []
        self.last, self._wanted = time.perf_counter(), rounds

    def on_event(self, event: Event) -> None:
        if isinstance(event, RoundEnded):
            now = time.perf_counter()
            self.rounds.append(now - self.last)
            self.last = now

    def close(self) -> None: ...

    def __call__(self) -> bool:
        return len(self.rounds) >= self._wanted


def measure(args: argparse.Namespace, settings: list[str], work: Path) -> Parts:
    """Measures the parts of the prediction, on a city of 4 x 4 blocks and on the disk."""
    config = load_config(None, [*settings, f"out={work / 'small'}", f"steps={4 * args.interval}", "store.ram_gb=1000",
                                "log.checkpoint_every=0", "blocks.decoder_freeze_rounds=2"])  # fmt: skip
    scene, table = make_city(4, work / "small" / "images")
    state = synthetic_block(table, 0, args.anchors, config)
    fresh = pack(state).nbytes
    for name in Anchors.LEARNABLE:
        state.model.rows()[name].grad = torch.ones_like(state.model.rows()[name])
    state.optimizer.step()
    state.optimizer.zero_grad()
    packed = pack(state)
    writes, reads = [], []
    for i in range(6):
        path = work / "small" / f"probe_{i}"
        begin = time.perf_counter()
        write_block(path, packed)
        writes.append(time.perf_counter() - begin)
    for i in range(6):
        path = work / "small" / f"probe_{i}"
        with path.open("rb") as file:  # Out of the system's cache: what comes back was away for long.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        read_block(path)
        reads.append(time.perf_counter() - begin)
    watch = Stopwatch(10**9)
    training = Training(config, scene, table, LocalComm(), pick_device(config.device),
                        start=lambda b: synthetic_block(table, b, args.anchors, config))  # fmt: skip
    schedule = list(training.schedule)
    near = neighbours(schedule, table, scene.train)
    live = [i for i, turn in enumerate(schedule) if turn.decoder_live]
    frozen = [i for i, turn in enumerate(schedule) if not turn.decoder_live][:-1]  # The last one saves the model.
    try:
        training.run(Observers([watch]))
    finally:
        shutil.rmtree(work / "small")
    rows = sum(row.nbytes for row in state.model.rows().values())
    alone = statistics.median(watch.rounds[i] for i in live)
    more = sum(watch.rounds[i] - alone for i in frozen)
    return Parts(
        alone, max(0.0, more) / max(1, sum(near[i] for i in frozen)), fresh, packed.nbytes, rows,
        packed.nbytes / statistics.median(writes), packed.nbytes / statistics.median(reads),
    )  # fmt: skip


def neighbours(schedule: list[Round], table: PartitionTable, views: list[Camera]) -> list[int]:
    """For every round with boundary fine-tuning, the number of pairs of an active block and another that it sees."""
    boxes = []
    for block in range(table.n):
        places = ground(table, block, 1000)
        boxes.append(torch.cat([places.amin(0), places.amax(0)]))
    sights = [Sight(views[b * VIEWS : (b + 1) * VIEWS]) for b in range(table.n)]
    shown = torch.stack([sight.may_show(torch.stack(boxes)).any(dim=1) for sight in sights]).fill_diagonal_(False)
    near = shown.sum(dim=1).tolist()
    return [0 if round_.decoder_live else sum(near[b] for b in round_.blocks) for round_ in schedule]


def peak_memory() -> int:
    """Peak memory of this process, bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    """Measures the parts, predicts, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16, help="cells along x and y (default %(default)s)")
    parser.add_argument("--anchors", type=int, default=200_000, help="of a block (default %(default)s)")
    parser.add_argument("--ram-gb", type=float, default=8.0, help="bound of the store (default %(default)s)")
    parser.add_argument("--active", type=int, default=4, help="k (default %(default)s)")
    parser.add_argument("--interval", type=int, default=2, help="steps of a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=110, help="rounds to run (default %(default)s)")
    parser.add_argument("--checkpoint-rounds", type=int, default=16, help="rounds between checkpoints")
    parser.add_argument("--windows", action="store_true", help="blocks.windows=true, which is not predicted")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything; must not exist")
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    settings = [
        f"steps={2 * args.interval}", f"blocks.interval={args.interval}", f"blocks.active={args.active}",
        "blocks.schedule=permutation", f"store.ram_gb={args.ram_gb}", "device=cpu", "weighting.enabled=false",
        f"log.checkpoint_every={args.checkpoint_rounds * args.interval}", "log.checkpoint_minutes=0",
        "log.keep_checkpoints=1", "log.link_checkpoints=true", f"out={args.work / 'city'}",
        f"blocks.windows={str(args.windows).lower()}",
    ]  # fmt: skip
    config = load_config(None, settings)
    parts = measure(args, settings, args.work)
    info(f"a block: {parts.fresh / 2**20:.0f} MiB, {parts.trained / 2**20:.0f} MiB once trained; written at "
        f"{parts.write / 1e9:.2f} GB/s, read at {parts.read / 1e9:.2f} GB/s; {args.interval} steps of "
        f"{args.active} blocks in memory: {parts.compute:.2f} s, {parts.neighbour:.2f} s for a neighbour")  # fmt: skip

    scene, table = make_city(args.side, args.work / "city" / "images")
    watch = Stopwatch(args.rounds)
    begin = time.perf_counter()
    training = Training(config, scene, table, LocalComm(), pick_device(config.device),
                        start=lambda b: synthetic_block(table, b, args.anchors, config))  # fmt: skip
    info(f"{table.n} blocks of {args.anchors} anchors made in {time.perf_counter() - begin:.0f} s")
    schedule = list(training.schedule)[: args.rounds]
    near = neighbours(schedule, table, scene.train)
    model = StoreModel(parts, table.n, args.ram_gb * 2**30)
    predicted = [
        model.round(turn, schedule[i + 1 :], near[i], (i + 1) % args.checkpoint_rounds == 0)
        for i, turn in enumerate(schedule)
    ]
    info(f"predicted: {sum(predicted):.0f} s for {len(schedule)} rounds, {model.written / 1e9:.0f} GB written, "
        f"{model.read / 1e9:.0f} GB read")  # fmt: skip
    Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak of what came before.
    watch.last = begin = time.perf_counter()
    outcome = training.run(Observers([watch]), stop=watch)
    seconds = time.perf_counter() - begin
    live = sum(turn.decoder_live for turn in schedule)
    for name, part in (("live", slice(0, live)), ("boundary fine-tuning", slice(live, len(schedule)))):
        if predicted[part]:
            info(f"  {name:<9} {len(predicted[part]):4d} rounds: predicted {sum(predicted[part]):7.1f} s, took "
                f"{sum(watch.rounds[part]):7.1f} s")  # fmt: skip
    took = sum(watch.rounds[: len(schedule)])
    info(f"took {took:.0f} s for {len(schedule)} rounds ({100 * (took / sum(predicted) - 1):+.0f} % of the "
        f"prediction), {outcome.waited:.0f} s of it waiting for blocks; {seconds - took:.0f} s for the end; "
        f"peak memory {peak_memory() / 2**30:.1f} GiB")  # fmt: skip
    (args.work / "rounds.json").write_text(json.dumps({"predicted": predicted, "took": watch.rounds}))


if __name__ == "__main__":
    main()
