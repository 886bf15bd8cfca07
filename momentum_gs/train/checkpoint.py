"""Checkpoints: all blocks, decoder, teacher, scores and position, without a trace of how many ranks wrote them.

``<out>/checkpoint/step_<N>/``: ``block_<i>.safetensors``, ``decoder.safetensors``, ``appearance.safetensors`` and
``poses.safetensors`` where images are corrected, ``state.json`` with the size and SHA-256 of each. A folder is written
under another name and renamed when complete, so what is there is whole; what harms it later is found when it is read.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from momentum_gs.config.load import config_to_dict, flat_settings
from momentum_gs.config.renamed import current_settings
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import warn
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.file import FileRecord, enough_space, write_block, write_tensors
from momentum_gs.train.blocks.packed import pack
from momentum_gs.train.blocks.scores import ScoreTable
from momentum_gs.train.blocks.store import BlockStore
from momentum_gs.train.corrections.tables import Corrections
from momentum_gs.train.decoders.choice import Decoders

FORMAT = 2
# Settings that may differ between the run that wrote a checkpoint and the one that continues it: they change where
# things are and what is reported, not the model.
FREE = (
    "out", "device", "log", "store", "scene.path", "scene.cache_gb", "scene.bad_images", "scene.undistort_folder",
    "partition.file", "partition.coarse",
)  # fmt: skip
_DECODER, _STATE = "decoder.safetensors", "state.json"


@dataclass(frozen=True)
class Progress:
    """Where a run is, beside its blocks and its decoder."""

    step: int
    """Global steps done."""
    active: int
    """k; of the experiment, so another number of ranks goes on with it."""
    block_steps: list[int]
    """[B] steps that every block has done."""
    schedule: dict[str, Any]
    """``Schedule.state``."""
    only: list[int]
    """The blocks that are trained on with a fixed decoder (``--only-blocks``); empty in an ordinary run."""
    first_step: int
    """Global steps before the schedule's first round; above 0 with ``only``."""
    steps: int
    """Block steps that the schedule gives."""


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole."""

    path: Path
    progress: Progress
    config: dict[str, Any]
    """The settings that it was written with (``config_to_dict``)."""
    _state: dict[str, Any]

    def check_settings(self, config: Config, free: tuple[str, ...] = ()) -> None:
        """Refuses to go on with settings that would give another model.

        Args:
            free: Settings that may differ beside ``FREE``.

        Raises:
            UserError: naming them.
        """
        # A setting that is newer than the checkpoint was at its default.
        found = _as_read(Config()) | flat_settings(current_settings(self.config, str(self.path))[0])
        wanted = _as_read(config)
        differing = [
            f"{key} = {found[key]!r} there, {value!r} now"
            for key, value in wanted.items()
            if not key.startswith(FREE + config.idle_sections + free) and found[key] != value
        ]
        if differing:
            raise UserError(
                f"{self.path}: written with other settings ({'; '.join(differing)}); resume with the same, or train "
                "anew without --resume"
            )

    def fill(self, store: BlockStore, decoders: Decoders, corrections: Corrections, scores: ScoreTable) -> None:
        """Lays this rank's blocks down in the store, and sets decoder, corrections and scores."""
        corrections.load(self.path)
        for block in range(store.n):
            if store.home(block):
                name = _block_name(block)
                store.adopt(block, self.path / name, FileRecord(**self._state["files"][name]))
        decoders.load_tensors(load_file(self.path / _DECODER), self._state["decoder_updates"])
        for block, row in enumerate(self._state["scores"]):
            for i, value in enumerate(row):
                scores.scores[block, i] = float("nan") if value is None else value


def save_checkpoint(
    folder: Path, progress: Progress, store: BlockStore, active: Sequence[Block],
    decoders: Decoders, corrections: Corrections, scores: ScoreTable, config: Config, comm: Comm,
) -> Path:  # fmt: skip
    """Writes the state after ``progress.step`` global steps; every rank writes the blocks that it holds.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: where the disk is full. What was there before stays, what was begun is removed.
    """
    target, part = folder / f"step_{progress.step}", folder / f".step_{progress.step}.part"
    if comm.rank == 0:
        for unfinished in folder.glob(".step_*.part"):
            shutil.rmtree(unfinished)
        part.mkdir(parents=True)
    comm.barrier()
    with _removed_on_error(part):
        share = config.log.link_checkpoints
        files = {_block_name(b): store.save(b, part / _block_name(b), share=share) for b in store.held()}
        for block in active:
            files[_block_name(block.block)] = write_block(part / _block_name(block.block), pack(block))
        _write_json(part / f"files_{comm.rank}.json", {name: asdict(record) for name, record in files.items()})
        comm.barrier()
        if comm.rank == 0:
            listed = {_DECODER: asdict(write_tensors(part / _DECODER, decoders.to_tensors(), {}))}
            for name, (tensors, metadata) in corrections.files().items():
                listed[name] = asdict(write_tensors(part / name, tensors, metadata))
            for rank in range(comm.world_size):
                listing = part / f"files_{rank}.json"
                listed |= json.loads(listing.read_text())
                listing.unlink()
            state = asdict(progress) | {
                "format": FORMAT,
                "decoder_updates": decoders.updates,
                "scores": [[None if v != v else v for v in row] for row in scores.scores.tolist()],
                "config": config_to_dict(config),
                "files": listed,
            }
            _write_json(part / _STATE, state)
            _sync(part)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
            _sync(folder)
            for _, old in checkpoints(folder)[config.log.keep_checkpoints :]:
                shutil.rmtree(old)
    comm.barrier()
    return target


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints in a folder, the newest first."""
    found = [(int(p.name.removeprefix("step_")), p) for p in folder.glob("step_*") if p.name[5:].isdigit()]
    return sorted(found, reverse=True)


def find_checkpoint(folder: Path, comm: Comm) -> Checkpoint:
    """The newest checkpoint that is whole; all ranks find the same one.

    Every file's size and hash is checked, the ranks sharing the work. A damaged checkpoint is named and left as it is.

    Raises:
        UserError: where there is no checkpoint, or none is whole.
    """
    found = checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: no checkpoint to resume; start without --resume")
    for _, path in found:
        checkpoint, why = _read(path, comm)
        damaged = torch.tensor([float(why is not None)])
        comm.all_reduce_sum_(damaged)
        if why is not None:
            warn(f"checkpoint: {path} is damaged ({why}), so the one before it is taken")
        elif checkpoint is not None and not damaged:
            return checkpoint
    names = ", ".join(path.name for _, path in found)
    raise UserError(f"{folder}: every checkpoint is damaged ({names}); restore one, or train anew without --resume")


def _read(path: Path, comm: Comm) -> tuple[Checkpoint | None, str | None]:
    """A checkpoint, or why it cannot be used as far as this rank's share of the files tells."""
    try:
        state = json.loads((path / _STATE).read_text())
        if state["format"] != FORMAT:
            return None, f"format {state['format']}, this version reads {FORMAT}"
        progress = Progress(**{field.name: state[field.name] for field in fields(Progress)})
        records = {name: FileRecord(**record) for name, record in sorted(state["files"].items())}
    except (OSError, KeyError, TypeError, ValueError) as error:
        return None, f"{_STATE}: {error}"
    for name, record in list(records.items())[comm.rank :: comm.world_size]:
        if why := record.mismatch(path / name):
            return None, why
    return Checkpoint(path, progress, state["config"], state), None


def _block_name(block: int) -> str:
    return f"block_{block}.safetensors"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content)
    with enough_space(path, len(text)), path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Puts the names in a folder on the disk for good."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _removed_on_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _as_read(config: Config) -> dict[str, Any]:
    """Settings by name as a checkpoint's file gives them back: a tuple is a list there."""
    return flat_settings(json.loads(json.dumps(config_to_dict(config))))
