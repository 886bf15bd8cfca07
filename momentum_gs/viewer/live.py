"""A run that trains now: its trainer writes the model into files while somebody looks, and the viewer reads them.

The two are processes of their own, so neither waits for the other, and either may end at any time::

    OUT/live/watched                     touched by the viewer while a browser is connected
    OUT/live/state.json                  step, blocks, and for each block the step of its file
    OUT/live/block<i>.safetensors        rows of a block
    OUT/live/decoder.safetensors         or decoder_block<i>/decoder.safetensors
    OUT/live/background.safetensors      the learned background behind a student

The trainer copies at most every ``EVERY`` seconds, and so rarely that copying takes no more than ``SHARE`` of its time;
a thread writes the copies.
"""

import json
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.eval.results import read_json, write_json
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.background import Background
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.io import (
    block_decoder_folder,
    load_background,
    load_decoder,
    save_background,
    save_decoder_weights,
)
from momentum_gs.model.splats import Harmonics, Model, Splats
from momentum_gs.train.events import Event, RoundStarted, TrainingState
from momentum_gs.viewer.shown import Shown, join

FOLDER = "live"
EVERY = 3.0
"""Seconds between two copies, at least."""
SHARE = 0.01
"""Share of the training's time that copying may take."""
WATCHED_SECONDS = 10.0
"""The viewer touches its file every second; after this long without, nobody looks."""
_INACTIVE_AT_ONCE = 2
"""Inactive blocks that are copied along with the active ones, so that a copy of all blocks is never in memory."""
_ASK_EVERY = 0.5
"""Seconds between two looks at the viewer's file, which may lie on a network disk."""


class LiveWriter:
    """The trainer's side; an observer of training (``StateObserver``)."""

    def __init__(self, out: Path) -> None:
        self._folder = out / FOLDER
        self._touched, self._seen_at = 0, float("-inf")
        self._asked_at = self._next_at = float("-inf")
        self._stale: set[int] | None = None
        self._written: dict[int, int] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="live")
        self._job: Future[None] | None = None

    def on_event(self, event: Event) -> None:
        """Notes which blocks change; the first round also makes the folder, which tells viewers to ask."""
        if isinstance(event, RoundStarted):
            if not self._folder.is_dir() or self._stale is None:
                shutil.rmtree(self._folder, ignore_errors=True)  # Of a trainer that was killed.
                self._folder.mkdir(parents=True, exist_ok=True)
            self._stale = (self._stale or set()) | set(event.blocks)

    def wants_state(self) -> bool:
        """Whether a copy is due, somebody looks, and the copy before is written."""
        now = time.monotonic()
        if now < self._next_at or now < self._asked_at + _ASK_EVERY or not (self._job is None or self._job.done()):
            return False
        self._asked_at = now
        try:
            touched = (self._folder / "watched").stat().st_mtime_ns
        except OSError:
            return False
        if touched != self._touched:  # Compared with itself alone, as clocks of machines differ.
            self._touched, self._seen_at = touched, now
        return now < self._seen_at + WATCHED_SECONDS

    def on_state(self, state: TrainingState) -> None:
        """Copies the active blocks, and some of the inactive ones that have changed."""
        begun = time.monotonic()
        models = {block: _copy(model) for block, (model, _) in state.active.items()}
        stale = (self._stale or set()) | (set(range(state.n)) - self._written.keys())
        if state.shared_decoder or not any(isinstance(d, GaussianDecoder) for _, d in state.active.values()):
            for block in sorted(stale - models.keys()):
                found = state.inactive(block) if len(models) < len(state.active) + _INACTIVE_AT_ONCE else None
                if found is not None:
                    models[block] = _copy(found)
        self._stale = stale - (models.keys() - state.active.keys())
        decoders = {b: d for b, (_, d) in state.active.items() if isinstance(d, GaussianDecoder)}
        copies = {b: _frozen(d) for b, d in (list(decoders.items())[:1] if state.shared_decoder else decoders.items())}
        behind = next((d.background for _, d in state.active.values() if isinstance(d, Harmonics)), None)
        self._next_at = time.monotonic() + max(EVERY, (time.monotonic() - begun) / SHARE)
        self._job = self._writer.submit(self._write, state.step, models, copies, state.shared_decoder, behind)

    def close(self) -> None:
        """Removes the folder: the model itself is saved now."""
        self._writer.shutdown(wait=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(
        self,
        step: int,
        models: Mapping[int, Model],
        decoders: Mapping[int, GaussianDecoder],
        shared: bool,
        behind: Background | None,
    ) -> None:
        for block, model in models.items():
            with replacing(self._folder / f"block{block}.safetensors") as part:
                save_file({name: row.contiguous() for name, row in model.rows().items()}, part)
            self._written[block] = step
        for block, decoder in decoders.items():
            folder = self._folder if shared else block_decoder_folder(self._folder, block)
            folder.mkdir(exist_ok=True)
            save_decoder_weights(folder, decoder)
        if behind is not None:  # Not copied, as training leaves it as it is.
            save_background(self._folder, behind)
        write_json(self._folder / "state.json", {"step": step, "blocks": {str(b): s for b, s in self._written.items()}})


def _copy(model: Model) -> Model:
    """A copy on the CPU."""
    rows = {name: row.detach().to(device="cpu", copy=True) for name, row in model.rows().items()}
    return type(model).from_rows(rows)


def _frozen(decoder: GaussianDecoder) -> GaussianDecoder:
    with torch.device("meta"):
        copy = GaussianDecoder(**decoder.architecture)
    state = {name: value.detach().to(device="cpu", copy=True) for name, value in decoder.state_dict().items()}
    copy.load_state_dict(state, assign=True)
    return copy


class LiveReader:
    """The viewer's side, for one run."""

    def __init__(self, out: Path) -> None:
        self._folder = out / FOLDER
        self._blocks: dict[int, tuple[int, Model]] = {}
        self._lock = threading.Lock()

    @property
    def is_there(self) -> bool:
        """Whether a trainer offers its model."""
        return self._folder.is_dir()

    def ask(self) -> None:
        """Tells the trainer that somebody looks; nothing if there is none."""
        if self.is_there:
            try:
                (self._folder / "watched").touch()
            except OSError:  # The trainer has just ended and removed the folder, or the run belongs to another user.
                return

    def step(self) -> int | None:
        """Of the newest state; None if there is none."""
        try:
            return int(read_json(self._folder / "state.json").get("step", -1)) if self.is_there else None
        except (UserError, ValueError, TypeError):
            return None

    def load(self) -> Shown:
        """The newest state, on the CPU; files of blocks that have not changed are not read again.

        Raises:
            UserError: the trainer has ended meanwhile, or has not written a state yet.
        """
        with self._lock:
            try:
                record = json.loads((self._folder / "state.json").read_text())
                return self._read({int(block): int(step) for block, step in record["blocks"].items()})
            except (OSError, ValueError, KeyError, SafetensorError, UserError) as error:
                raise UserError(f"view: {self._folder} holds no state of a training ({error}); try again") from error

    def _read(self, steps: dict[int, int]) -> Shown:
        parts = []
        shared = load_decoder(self._folder) if (self._folder / "decoder.safetensors").is_file() else None
        behind = load_background(self._folder)
        for block, step in sorted(steps.items()):
            if self._blocks.get(block, (-1,))[0] != step:
                rows = load_file(self._folder / f"block{block}.safetensors")
                model: Model = (Splats if "sh_dc" in rows else Anchors).from_rows(rows)
                self._blocks[block] = step, model
            model = self._blocks[block][1]
            decoder: GaussianDecoder | Harmonics | None = shared
            if isinstance(model, Splats):
                decoder = Harmonics(model.sh_degree, behind)
            elif decoder is None:
                decoder = load_decoder(block_decoder_folder(self._folder, block))
            parts.append(Shown(model, decoder, torch.full((len(model),), block, dtype=torch.long)))
        return join(parts)
