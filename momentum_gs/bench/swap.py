"""``momentum-gs bench swap``: times offloading and loading a block, and prints how long a run waited for blocks."""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.train.blocks.anchor_block import trained_block
from momentum_gs.train.blocks.packed import pack
from momentum_gs.train.blocks.store import BlockStore

ANCHORS = 1_000_000


def run(args: argparse.Namespace, config: Config, device: torch.device) -> None:
    """Prints median times and their ratios; with an output folder, also how long that run waited for blocks.

    Raises:
        UserError: if the run in the output folder has not finished a round.
    """
    folder = Path(config.store.folder or config.out or tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="bench_swap_", dir=folder))
    try:
        for n in args.anchors or [ANCHORS]:
            _swaps(n, args.repeats, config, device, place)
    finally:
        shutil.rmtree(place)
    if config.out is not None:
        _waits(Path(config.out) / "events.jsonl")


def _swaps(n: int, repeats: int, config: Config, device: torch.device, place: Path) -> None:
    size = pack(trained_block(n, config, device)).nbytes
    bounds = {"memory": None, "disk": 0}
    stores = {}
    for name, bound in bounds.items():
        stores[name] = BlockStore(1, config, device, LocalComm(), place / name / "rank0", bound)
        stores[name].put(0, pack(trained_block(n, config, device)))

    def through(store: BlockStore) -> None:
        """Loads the block, offloads it, and waits until the store has finished writing."""
        states = store.activate((0,))
        store.rest(states)
        states.clear()
        store.look_ahead([])
        store.join()

    file = place / "block.pt"
    state = dict(pack(trained_block(n, config, device)).tensors)

    def through_torch() -> None:
        torch.save(state, file)
        loaded = torch.load(file, weights_only=True)
        assert {name: tensor.to(device) for name, tensor in loaded.items()}.keys() == state.keys()

    ways: dict[str, Callable[[], None]] = {
        "torch.save + torch.load": through_torch,
        "store, in memory": lambda: through(stores["memory"]),
        "store, on disk (hashed, synced)": lambda: through(stores["disk"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):  # Interleaved, so that other programs on the machine slow all of them alike.
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = medians["torch.save + torch.load"]
    info(f"swap: a block of {n} anchors, {size / 2**20:.0f} MiB, offloaded and loaded; medians of {repeats}, on "
        f"{device.type}")  # fmt: skip
    for name, value in medians.items():
        info(f"  {name:<33} {1e3 * value:10.2f} ms {first / value:10.1f}x")
    for store in stores.values():
        store.close()


def _waits(events: Path) -> None:
    if not events.is_file():
        raise UserError(f"{events}: no such file, expected the output folder of 'momentum-gs train' (-m)")
    rounds = [event for event in map(json.loads, events.open()) if event["event"] == "RoundEnded"]
    if not rounds:
        raise UserError(f"{events}: no round has ended in this run; train first")
    waited, seconds = rounds[-1]["waited"], rounds[-1]["seconds"]
    share = 100 * waited / seconds
    info(f"{events.parent}: waited {waited:.2f} s for blocks in {seconds:.1f} s, {share:.2f} %, rank 0")
