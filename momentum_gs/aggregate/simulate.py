"""Devices, edges and the cloud on one machine: each a process of its own that sees only its folder and its inbox.

    OUT/devices/<b>/     the device of block b: scene (its images alone), settings.yaml, run, upload, log.txt
    OUT/network/         stands for the network: edge<e>/device<b>, cloud/edge<e>, model
    OUT                  the model, as a run that 'render', 'eval', 'view' and 'export' accept
    OUT/devices.json     bytes, seconds and memory of every process
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from momentum_gs.aggregate.device import device_config, write_device_scene
from momentum_gs.aggregate.send import is_made_of
from momentum_gs.aggregate.upload import copy_upload, read_upload, receive, sent_bytes
from momentum_gs.config.load import dump_config
from momentum_gs.config.run import out_folder
from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info, warn
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene
from momentum_gs.eval.results import read_json, write_json
from momentum_gs.model.io import save_model
from momentum_gs.train.checkpoint import checkpoints


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    status: int
    """0: well; otherwise its exit status, or the signal that ended it, negative."""
    seconds: float
    cpu_seconds: float


Start = Callable[[Sequence[str], Path], Ended]
"""(Words of the command line after 'momentum-gs', file for what it prints) -> how it ended."""


def start(words: Sequence[str], log: Path) -> Ended:
    """Runs a command in a process of its own and waits for its end."""
    begun = time.perf_counter()
    with log.open("ab") as file:
        process = subprocess.Popen([sys.executable, "-m", "momentum_gs", *words], stdout=file, stderr=file)
        _, status, use = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Ended(process.returncode, time.perf_counter() - begun, use.ru_utime + use.ru_stime)


def edges_of(table: PartitionTable, config: Config) -> list[list[int]]:
    """The blocks of each edge: neighbours, in the order of their first cells along x, then y.

    Raises:
        UserError: the tree has fewer places than there are blocks.
    """
    tree = config.aggregate.tree or (-(-table.n // config.blocks.groups), config.blocks.groups)
    if tree[0] * tree[1] < table.n:
        raise UserError(
            f"aggregate.tree: {tree[0]} devices at each of {tree[1]} edges, expected places for {table.n} blocks; "
            "choose a larger tree or fewer blocks"
        )
    order = sorted(range(table.n), key=lambda block: table.grid.cell(table.cells(block)[0]))
    return [sorted(order[i : i + tree[0]]) for i in range(0, table.n, tree[0])]


class Simulation:
    """One call of ``momentum-gs devices``. What an earlier call has finished is kept."""

    def __init__(self, config: Config, scene: Scene, table: PartitionTable, start: Start = start) -> None:
        """
        Args:
            config: Settings, with no ``auto`` left and with absolute paths.
            scene: The whole scene.
            table: Its partition, in the scene's training coordinates.
            start: Runs a process; tests replace it.
        """
        self._config, self._scene, self._table, self._start = config, scene, table, start
        self._out = out_folder(config)
        self._network = self._out / "network"
        self._edges = edges_of(table, config)
        self.record: dict[str, Any] = read_json(self._out / "devices.json") or {"devices": {}, "edges": {}}

    def run(self) -> Path:
        """Trains, sends and aggregates; a process that fails costs one line, and the others go on.

        Returns:
            The folder of the model.

        Raises:
            UserError: no device's model has arrived.
        """
        self._out.mkdir(parents=True, exist_ok=True)
        settings = self._out / "aggregate.yaml"
        settings.write_text(dump_config(self._config), encoding="utf-8")
        for edge, blocks in enumerate(self._edges):
            for block in blocks:
                _with_line(partial(self._device, block, edge))
            _with_line(partial(self._aggregate, edge, settings))
            self._save()
        self._aggregate(None, settings)
        self._save()
        return self._write_run()

    def _device(self, block: int, edge: int) -> None:
        folder, inbox = self._out / "devices" / str(block), self._network / f"edge{edge}" / f"device{block}"
        if _intact(inbox):
            info(f"device {block}: its model is there")
            return
        if not _intact(folder / "upload"):
            trained = self._train(block, folder)
            words = ["compress", str(folder / "run"), "--block", str(block), "-o", str(folder / "upload")]
            sent = self._process(f"device {block}", words, folder)
            self.record["devices"][str(block)] = {
                **trained, "compress": vars(sent), **read_upload(folder / "upload").report,
                "sent": sent_bytes(folder / "upload"),
            }  # fmt: skip
        inbox.parent.mkdir(parents=True, exist_ok=True)
        copy_upload(folder / "upload", inbox)
        info(f"device {block}: {sent_bytes(inbox):,} bytes -> {inbox}")

    def _train(self, block: int, folder: Path) -> dict[str, Any]:
        """Trains a device's block, unless that is done; returns what is recorded of it."""
        recorded: dict[str, dict[str, Any]] = self.record.setdefault("trained", {})
        if str(block) in recorded and (folder / "run" / "train.json").is_file():
            return recorded[str(block)]
        images = write_device_scene(folder / "scene", self._scene, self._table, block)
        names = set(self._table.views[block])
        own = device_config(self._config, folder / "scene", folder / "run")
        (folder / "settings.yaml").write_text(dump_config(own), encoding="utf-8")
        resume = ["--resume"] if checkpoints(folder / "run" / "checkpoint") else []
        ended = self._process(f"device {block}", ["train", "-c", str(folder / "settings.yaml"), *resume], folder)
        own_views = [sorted(names) if of == block else [] for of in range(self._table.n)]
        replace(self._table, views=own_views, windows=None).save(folder / "run" / "partition.json")
        peak = read_json(folder / "run" / "train.json").get("peak_memory_bytes")
        recorded[str(block)] = {
            "views": len(names), "image_bytes": images, "train": vars(ended), "train_peak_bytes": peak
        }  # fmt: skip
        self._save()
        return recorded[str(block)]

    def _aggregate(self, edge: int | None, settings: Path) -> None:
        """Aggregates the models at an edge, or in the cloud (None), unless that was done with the same ones."""
        name = "cloud" if edge is None else f"edge{edge}"
        inbox = self._network / name
        target = self._network / "model" if edge is None else self._network / "cloud" / name
        if not inbox.is_dir() or not any(inbox.iterdir()):
            raise UserError(f"{name}: no model has arrived, expected at least one; see the lines above")
        target.parent.mkdir(parents=True, exist_ok=True)
        uploads, _ = receive(inbox)
        if _intact(target) and is_made_of(read_upload(target), uploads, self._config):
            info(f"{name}: its model is there")
            return
        ended = self._process(name, ["aggregate", str(inbox), "-o", str(target), "-c", str(settings)], self._out)
        arrived = sum(sent_bytes(upload.folder) for upload in uploads if upload.folder is not None)
        row = {"received": arrived, "process": vars(ended), "sent": sent_bytes(target), **read_upload(target).report}
        self.record["edges" if edge is not None else "cloud"] = (
            self.record["edges"] | {str(edge): row} if edge is not None else row
        )
        info(f"{name}: {len(uploads)} models, {arrived:,} bytes -> {target}")

    def _process(self, name: str, words: Sequence[str], folder: Path) -> Ended:
        """Raises UserError with the last line that the process printed, if it fails."""
        log = folder / "log.txt"
        ended = self._start(words, log)
        if ended.status != 0:
            printed = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()
            how = f"was ended by signal {-ended.status}" if ended.status < 0 else f"ended with status {ended.status}"
            last = printed[-1] if printed and ended.status > 0 else str(log)
            raise UserError(f"{name}: '{words[0]}' {how} ({last[:300]}), expected a model; call again to add it")
        return ended

    def _save(self) -> None:
        write_json(self._out / "devices.json", self.record)

    def _write_run(self) -> Path:
        model = read_upload(self._network / "model")
        config = replace(self._config, stage="blocks", scene=self._scene.frame.recorded(self._config.scene))
        folder = self._out / "point_cloud" / f"iteration_{config.steps}"
        folder.mkdir(parents=True, exist_ok=True)
        save_model(folder / "point_cloud.ply", model.splats)
        self._table.save(folder / "partition.json")
        primitive = replace(config.model, primitive="gaussians", background="fixed")
        degree = replace(config.gaussians, sh_degree=model.splats.sh_degree)
        config = replace(_without_anchors(config), model=primitive, gaussians=degree)
        (self._out / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        missing = sorted(set(range(self._table.n)) - set(model.blocks))
        if missing:
            warn(f"devices: the models of blocks {missing} are missing; neighbours fill their cells, call again")
        return folder


def _with_line(work: Callable[[], None]) -> None:
    """Does something whose failure costs one line."""
    try:
        work()
    except UserError as error:
        warn(str(error))


def seconds_to_model(record: Mapping[str, Any], edges: Sequence[Sequence[int]], mbit: float, clock: str) -> float:
    """Time until the model is there, if every device and edge is a machine with a link of its own.

    Args:
        record: ``Simulation.record``.
        edges: Blocks of each edge.
        mbit: Of every link, 10^6 bits per second.
        clock: ``seconds`` or ``cpu_seconds``.
    """

    def link(size: int) -> float:
        return 8e-6 * size / mbit

    ready = []
    for edge, blocks in enumerate(edges):
        rows = [record["devices"][str(block)] for block in blocks if str(block) in record["devices"]]
        if rows and str(edge) in record["edges"]:
            row = record["edges"][str(edge)]
            devices = max(r["train"][clock] + r["compress"][clock] + link(r["sent"]) for r in rows)
            ready.append(devices + row["process"][clock] + link(row["sent"]))
    return max(ready) + float(record["cloud"]["process"][clock])


def _intact(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        read_upload(folder)
    except UserError as error:
        warn(f"{error}")
        return False
    return True


def _without_anchors(config: Config) -> Config:
    """The settings without what needs anchors or a decoder."""
    return replace(
        config,
        teacher=replace(config.teacher, enabled=False),
        blocks=replace(config.blocks, boundary_finetuning=False, offset_clamping=False),
    )
