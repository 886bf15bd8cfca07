"""Checkpoints: all blocks, decoder, teacher, scores and progress; the same whatever number of ranks wrote them.

``<out>/checkpoint/step_<N>/`` holds ``block_<i>.safetensors``, ``decoder.safetensors``, ``appearance.safetensors`` and
``poses.safetensors`` if these are learned, and ``state.json`` with the size and SHA-256 of each file. The folder is
written under a temporary name and renamed when complete; damage done later is detected when it is read.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from momentum_gs.config.load import config_to_dict, flat_settings
from momentum_gs.config.renamed import current_settings
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm, LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import warn
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.splats import Harmonics, Model, Splats
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.file import FileRecord, enough_space, read_part, write_block, write_tensors
from momentum_gs.train.blocks.packed import ROWS, block_kind, pack
from momentum_gs.train.blocks.scores import ScoreTable
from momentum_gs.train.blocks.store import BlockStore
from momentum_gs.train.corrections.tables import Corrections
from momentum_gs.train.decoders.choice import Decoders
from momentum_gs.train.decoders.learner import fresh_decoder

FORMAT = 2
# Settings that may differ between the run that wrote a checkpoint and the one that resumes it: they change where
# files are and what is reported, not the model.
FREE = (
    "out", "device", "log", "store", "scene.path", "scene.cache_gb", "scene.bad_images", "scene.undistort_folder",
    "partition.file", "partition.coarse", "distill.labels_gb", "compress.", "aggregate.",
)  # fmt: skip
_DECODER, _STATE = "decoder.safetensors", "state.json"
_STUDENT = "student."
"""Prefix of the weights that render, among those of a decoder in training (``DecoderLearner.to_tensors``)."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int
    """Global steps done."""
    active: int
    """k, the number of active blocks. It stays the same when the run resumes with another number of ranks."""
    block_steps: list[int]
    """[B] block steps done."""
    schedule: dict[str, Any]
    """``Schedule.state``."""
    only: list[int]
    """The blocks that are trained further with a fixed decoder (``--only-blocks``); empty in an ordinary run."""
    first_step: int
    """Global steps before the schedule's first round; above 0 only with ``only``."""
    steps: int
    """Block steps that the schedule gives to each block."""
    work: dict[str, float] = field(default_factory=dict)
    """``WorkMeter.as_dict``; empty at step 0 and in checkpoints of earlier versions."""


@dataclass(frozen=True)
class Checkpoint:
    """A validated checkpoint: the size and checksum of every file have been compared."""

    path: Path
    progress: Progress
    config: dict[str, Any]
    """The settings of the run that wrote it (``config_to_dict``)."""
    _state: dict[str, Any]

    def check_settings(self, config: Config, free: tuple[str, ...] = ()) -> None:
        """Refuses to resume with settings that would give another model.

        Args:
            config: Settings of the run that resumes.
            free: Settings that may differ, in addition to ``FREE``.

        Raises:
            UserError: naming the settings that differ.
        """
        # A setting that did not exist when the checkpoint was written had, in effect, its default.
        found = _as_read(Config()) | flat_settings(current_settings(self.config, str(self.path))[0])
        wanted = _as_read(config)
        differing = [
            f"{key} = {found[key]!r} there, {value!r} now"
            for key, value in wanted.items()
            if not key.startswith(FREE + config.idle_sections + free) and found[key] != value
        ]
        if differing:
            raise UserError(
                f"{self.path}: written with other settings ({'; '.join(differing)}); resume with the same settings, "
                "or train anew without --resume"
            )

    def fill(self, store: BlockStore, decoders: Decoders, corrections: Corrections, scores: ScoreTable) -> None:
        """Puts this rank's blocks into the store, and sets decoders, corrections and scores."""
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

    Args:
        folder: ``<out>/checkpoint``.
        active: Active blocks of this rank; the others are in the store.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: if the disk is full. Earlier checkpoints stay, the incomplete one is removed.
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
    """(Global step, path) of each checkpoint in a folder, newest first; not validated."""
    found = [(int(p.name.removeprefix("step_")), p) for p in folder.glob("step_*") if p.name[5:].isdigit()]
    return sorted(found, reverse=True)


def find_checkpoint(folder: Path, comm: Comm) -> Checkpoint:
    """The newest undamaged checkpoint; the same one on all ranks.

    Checks size and hash of every file; the ranks share the work. Warns of each damaged checkpoint and leaves it as it
    is.

    Raises:
        UserError: if there is no checkpoint, or all are damaged.
    """
    found = checkpoints(folder)
    if not found:
        raise UserError(f"{folder}: no checkpoint to resume; start without --resume")
    for _, path in found:
        checkpoint, why = _read(path, comm)
        damaged = torch.tensor([float(why is not None)])
        comm.all_reduce_sum_(damaged)
        if why is not None:
            warn(f"checkpoint: {path} is damaged ({why}); trying the one before it")
        elif checkpoint is not None and not damaged:
            return checkpoint
    names = ", ".join(path.name for _, path in found)
    raise UserError(f"{folder}: every checkpoint is damaged ({names}); restore one, or train anew without --resume")


def block_steps(path: Path) -> int | None:
    """The most block steps that any block has done in a checkpoint; None if it is gone or cannot be read.

    Its other files are not validated.
    """
    try:
        state = json.loads((path / _STATE).read_text())
        return max(int(step) for step in state["block_steps"]) if state["format"] == FORMAT else None
    except (OSError, KeyError, TypeError, ValueError):
        return None


def read_models(path: Path, config: Config) -> list[tuple[Model, Decoder | Harmonics]]:
    """The model of each block as a checkpoint holds it, with the decoder that renders it, on the CPU.

    Args:
        path: ``<out>/checkpoint/step_<N>``; every file is validated.
        config: Settings of the run.

    Raises:
        UserError: the checkpoint is damaged, or has been removed.
    """
    checkpoint, why = _read(path, LocalComm())
    if checkpoint is None:
        raise UserError(f"{path}: damaged or removed ({why}), expected a checkpoint; choose another state")
    kind = block_kind(config).MODEL
    found: list[tuple[Model, Decoder | Harmonics]] = []
    shared = _decoder(read_part(path / _DECODER, _STUDENT), config)
    for block in range(len(checkpoint.progress.block_steps)):
        file = path / _block_name(block)
        model = kind.from_rows(read_part(file, ROWS))
        if isinstance(model, Splats):
            found.append((model, Harmonics(model.sh_degree)))
            continue
        decoder = shared or _decoder(read_part(file, f"decoder.{_STUDENT}"), config)
        if decoder is None:
            raise UserError(f"{file}: no decoder, neither here nor in {_DECODER}; choose another state")
        found.append((model, decoder))
    return found


def _decoder(tensors: dict[str, torch.Tensor], config: Config) -> GaussianDecoder | None:
    """A decoder with these weights; None without any. The global random number generator is not advanced."""
    if not tensors:
        return None
    with torch.device("meta"):
        decoder = fresh_decoder(config.model)
    decoder.load_state_dict(tensors, assign=True)
    return decoder.requires_grad_(False)


def _read(path: Path, comm: Comm) -> tuple[Checkpoint | None, str | None]:
    """(checkpoint, None), or (None, reason) if the state or this rank's share of the files is damaged."""
    try:
        state = json.loads((path / _STATE).read_text())
        if state["format"] != FORMAT:
            return None, f"format {state['format']}, expected {FORMAT}"
        state.setdefault("work", {})
        progress = Progress(**{entry.name: state[entry.name] for entry in fields(Progress)})
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
    """Flushes a folder's entries to the disk, so that a rename survives a power failure."""
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
    """Settings by name, as they come back from JSON: tuples have become lists."""
    return flat_settings(json.loads(json.dumps(config_to_dict(config))))
