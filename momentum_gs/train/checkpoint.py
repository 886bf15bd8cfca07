"""Checkpoints: all blocks, decoder, teacher, scores and position, without a trace of how many ranks wrote them.

``<out>/checkpoint/step_<N>/``: ``block_<i>.safetensors``, ``decoder.safetensors``, ``state.json``. A folder is written
under another name and renamed when complete, so what is there is whole; the one before it is removed only then.
"""

import json
import os
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from momentum_gs.config.load import config_to_dict
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.core.errors import UserError
from momentum_gs.train.block_state import BlockState, PackedBlock, pack
from momentum_gs.train.block_store import BlockStore
from momentum_gs.train.score_table import ScoreTable
from momentum_gs.train.shared_decoder import SharedDecoder

FORMAT = 1
# Settings that may differ between the run that wrote a checkpoint and the one that continues it: they change where
# things are and what is reported, not the model.
FREE = ("out", "device", "log", "scene.path", "scene.cache_gb", "partition.file", "partition.coarse")


def save_checkpoint(
    folder: Path, step: int, store: BlockStore, active: list[BlockState], shared: SharedDecoder, scores: ScoreTable,
    config: Config, comm: Comm,
) -> None:  # fmt: skip
    """Writes the state after ``step`` global steps; every rank writes the blocks that it holds."""
    target, part = folder / f"step_{step}", folder / f".step_{step}.part"
    if comm.rank == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    comm.barrier()
    for block, packed in (store.held() | {state.block: pack(state) for state in active}).items():
        meta = {"meta": json.dumps(packed.meta)}
        # safetensors wants contiguous tensors that share no memory.
        save_file({k: v.contiguous() for k, v in packed.tensors.items()}, part / f"block_{block}.safetensors", meta)
    comm.barrier()
    if comm.rank == 0:
        save_file({k: v.contiguous() for k, v in shared.to_tensors().items()}, part / "decoder.safetensors")
        state = {
            "format": FORMAT,
            "step": step,
            "decoder_updates": shared.updates,
            "scores": [[None if v != v else v for v in row] for row in scores.scores.tolist()],
            "config": config_to_dict(config),
        }
        (part / "state.json").write_text(json.dumps(state))
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        for old in folder.glob("step_*"):
            if old != target:
                shutil.rmtree(old)
    comm.barrier()


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps, if there is any."""
    found = [p for p in folder.glob("step_*") if (p / "state.json").is_file()]
    return max(found, key=lambda p: int(p.name.removeprefix("step_")), default=None)


def load_checkpoint(
    path: Path, store: BlockStore, shared: SharedDecoder, scores: ScoreTable, config: Config, n: int
) -> int:
    """Fills store, decoder and scores; returns the global step.

    Raises:
        UserError: where the checkpoint was written with settings that would give another model, or is damaged.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        found, wanted = _flatten(state["config"]), _flatten(config_to_dict(config))
        differing = [
            f"{key} = {found.get(key)!r} there, {value!r} now"
            for key, value in wanted.items()
            if not key.startswith(FREE) and found.get(key) != value
        ]
        if differing:
            raise UserError(
                f"{path}: written with other settings ({'; '.join(differing)}); resume with the same, or train anew "
                "without --resume"
            )
        for block in range(n):
            if store.home(block):
                file = path / f"block_{block}.safetensors"
                store.put(block, PackedBlock(load_file(file), _read_meta(file)))
        shared.load_tensors(load_file(path / "decoder.safetensors"), state["decoder_updates"])
        for block, row in enumerate(state["scores"]):
            for i, value in enumerate(row):
                scores.scores[block, i] = float("nan") if value is None else value
        return int(state["step"])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: damaged checkpoint ({error}); remove it and resume from an older one") from error


def _read_meta(file: Path) -> dict[str, int | float]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        meta: dict[str, int | float] = json.loads(opened.metadata()["meta"])
        return meta


def _flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
