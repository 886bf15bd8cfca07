"""The training loop around ``train_step``: rounds, measurements, checkpoints and the final files."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from momentum_gs.config.schema import Config, Share, steps_of
from momentum_gs.core.comm import Comm
from momentum_gs.core.log import progress, warn
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.core.window import Window
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.priors import find_priors
from momentum_gs.data.scene import Scene
from momentum_gs.data.views import Views
from momentum_gs.model.appearance import AppearanceTable
from momentum_gs.model.splats import Model
from momentum_gs.render.score import score_views
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.packed import block_kind, pack
from momentum_gs.train.blocks.schedule import Round
from momentum_gs.train.blocks.scores import ScoreTable
from momentum_gs.train.blocks.start import FirstBlocks
from momentum_gs.train.blocks.store import BlockStore, ram_bound
from momentum_gs.train.blocks.views import BlockPlan, plan_blocks
from momentum_gs.train.checkpoint import find_checkpoint, save_checkpoint
from momentum_gs.train.corrections.tables import make_corrections
from momentum_gs.train.decoders.choice import make_decoders
from momentum_gs.train.distillation.student import make_student
from momentum_gs.train.events import (
    BlocksMeasured,
    GrowthCapped,
    HeldOutScored,
    Observers,
    RoundEnded,
    RoundStarted,
    Saved,
    StepDone,
    TrainingState,
)
from momentum_gs.train.losses import gather_losses, reported_terms
from momentum_gs.train.model_files import write_model
from momentum_gs.train.outcome import Outcome
from momentum_gs.train.resume import begin, go_on, schedule_of
from momentum_gs.train.sparse_depth import SparseDepths
from momentum_gs.train.step import StepInputs, StepReport, train_step
from momentum_gs.train.surfaces.neighbours import make_neighbours
from momentum_gs.train.surfaces.terms import SurfaceTerms, images_ahead
from momentum_gs.train.surroundings import Surroundings
from momentum_gs.train.view_order import ViewOrder
from momentum_gs.train.work import WorkMeter

# Number of steps whose images are decoded ahead; a step takes longer than decoding an image, so a few suffice.
PREFETCH_STEPS = 4
# Steps between two checks of the bounds on offsets and scales. In 10 steps both move by a few percent of a scale;
# checking all of them costs a tenth of a step.
BOUND_EVERY = 10
# Steps between two agreements of the ranks on whether to stop or to save: these steps take a second or less, and one
# agreement costs next to nothing.
AGREE_EVERY = 10

Ending = Literal["good enough", "interrupted"] | None
"""Why a run ends before its last step; None: it does not."""


class Training:
    """One run: the constructor builds or resumes its state, ``run`` trains. Every rank has its own instance."""

    def __init__(
        self,
        config: Config,
        scene: Scene,
        table: PartitionTable | None,
        comm: Comm,
        device: torch.device,
        *,
        resume: bool = False,
        only: Sequence[int] = (),
        start: Callable[[int], Block] | None = None,
        pace: Callable[[int, int], Config | None] | None = None,
    ) -> None:
        """
        Args:
            table: The partition; None for the coarse stage.
            resume: Continue from the newest checkpoint of the output folder.
            only: Blocks of a finished run to train further, with the decoder fixed, until they have done
                ``config.steps`` block steps.
            start: Block -> its state at step 0. Default: from the scene's points or the coarse model
                (``FirstBlocks``).
            pace: (Steps done of every block, steps of a block) -> settings with a new number of steps, or None to keep
                the present one (``train/pace.py``). Only in one process, and with several blocks only for windows and
                intervals of constant length; it must then leave at least one, and those with a frozen decoder. A run
                with ``pace`` may be resumed from a checkpoint with another number of steps.

        Raises:
            UserError: before any training, for counts, a partition or a checkpoint that does not fit the settings.
        """
        assert config.out is not None
        assert pace is None or comm.world_size == 1, "ranks would revise the number of steps each for itself"
        self._config, self._scene, self._comm, self._device = config, scene, comm, device
        self._observers = Observers()
        self._folder = Path(config.out)
        self._table = table
        self._plan: BlockPlan = plan_blocks(scene, table, config.blocks.windows)
        n = len(self._plan)
        saved = find_checkpoint(self._folder / "checkpoint", comm) if resume or only else None
        self._progress = (
            begin(config, n, comm.world_size)
            if saved is None
            else go_on(saved, config, n, comm.world_size, only, paced=pace is not None)
        )
        self._meter = WorkMeter(self._progress.work, comm)
        self._pace = pace
        self.schedule = schedule_of(self._progress, config)
        """All rounds, including those before a resume."""
        self._step = self._progress.step
        self._block_steps = list(self._progress.block_steps)
        clock_scale = self.schedule.block_steps_per_update()
        first = (start or FirstBlocks(scene, self._plan, config, device)) if saved is None else None
        decoder = first.decoder if isinstance(first, FirstBlocks) else None
        self._student = make_student(config, scene, self._plan, self._folder / f"labels/rank{comm.rank}", device)
        behind = None if self._student is None else self._student.background
        self._decoders = make_decoders(config, device, clock_scale, decoder, behind)
        self._corrections = make_corrections(config, scene, device, clock_scale, fresh=saved is None)
        self._scores = ScoreTable(n, config.weighting)
        folder = Path(config.store.folder or self._folder / "store") / f"rank{comm.rank}"
        self._store = BlockStore(n, config, device, comm, folder, ram_bound(config.store))
        self._order = ViewOrder(self._plan.train, config.seed)
        self._background = torch.full((3,), 1.0 if config.scene.white_background else 0.0, device=device)
        self._depths = SparseDepths(scene, device) if config.loss.depth else None
        self._priors = find_priors(config, scene)
        # With windows nothing is dropped at the merge, so Gaussians may cross the border of their cell.
        self._clamp_to = None if self._plan.windows is not None else self._plan.cell_of
        self._surroundings = Surroundings(config, self._plan, self._store, comm, device)
        self._neighbours = make_neighbours(config, scene, self._plan.train)
        self._capped: set[int] = set()
        if first is not None:
            self._init_blocks(first)
        elif saved is not None:
            saved.fill(self._store, self._decoders, self._corrections, self._scores)

    def _init_blocks(self, start: Callable[[int], Block]) -> None:
        for block in progress(range(len(self._plan)), "blocks"):
            if self._store.home(block):
                self._store.put(block, pack(start(block)))

    @property
    def config(self) -> Config:
        """The settings, with the number of steps as last revised by ``pace``."""
        return self._config

    @property
    def seconds(self) -> float:
        """Seconds of this process, without the time spent on scoring held-out views."""
        return self._meter.seconds

    def run(self, observers: Observers, stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Trains to the last step of the schedule (or to ``log.stop_psnr_ssim``) and writes the model.

        Args:
            observers: Receive the events of the run; the caller closes them.
            stop: Called every few steps; once it returns true on any rank, all ranks write a checkpoint and return.

        Raises:
            UserError: for an image that cannot be read and is not to be skipped, or a full disk.
        """
        self._observers = observers
        self._stop, self._saved_at = stop, time.perf_counter()
        cache, skip_bad = int(self._config.scene.cache_gb * 2**30), self._config.scene.bad_images == "skip"
        ending: Ending = None
        try:
            with Views(self._scene, cache, self._device, skip_bad=skip_bad, priors=self._priors) as views:
                index = 0
                while index < len(self.schedule) and ending is None:
                    begins = self.schedule[index].first_step == self._step and self.schedule[index].decoder_live
                    if begins and len(set(self._block_steps)) == 1:
                        self._revise()
                    # Also draw the next round: its blocks are fetched while this one trains.
                    self.schedule.draw(index + 1, self._scores.weights())
                    round_ = self.schedule[index]
                    if round_.first_step + round_.steps > self._step:
                        ending = self._run_round(index, views)
                    index += 1
                bad = dict(views.bad)
            if ending != "interrupted":
                self._save_model()
        finally:
            self._store.close()
            if self._student is not None:
                self._student.close()
        return Outcome(
            self._step, self._meter.total(), self._store.waited, ending == "good enough", ending == "interrupted", bad
        )

    def _run_round(self, index: int, views: Views) -> Ending:
        """Trains one round, or the rest of it after a resume; returns why the run is to end, None to go on."""
        round_ = self.schedule[index]
        self._observers.on_event(RoundStarted(self._step, round_.blocks, round_.decoder_live))
        surfaces = None if self._neighbours is None else SurfaceTerms(self._neighbours, views)
        student, window = self._student, self._surroundings.window

        def show(block: Block) -> tuple[Camera, Window | None, TargetImage]:
            return self._order.show(block.block, block.step, views, partial(window, block))

        inputs = StepInputs(self._config, self._comm, self._background, show, self._depths, student, surfaces)
        active = self._surroundings.activate(round_, self._step == round_.first_step)
        self._decoders.begin_round(round_.blocks)
        self._store.look_ahead([r.blocks for r in self.schedule[index + 1 : self.schedule.drawn]])
        end = round_.first_step + round_.steps
        ending: Ending = None
        while self._step < end and ending is None:
            if self._config.stage == "coarse" and self._step % AGREE_EVERY == 0 and self._revise():
                inputs, end = replace(inputs, config=self._config), self.schedule.total
                continue
            ahead = range(min(PREFETCH_STEPS, end - self._step))
            views.prefetch(images_ahead(self._order, active, ahead, views.bad, surfaces, self._config))
            weights = self._scores.weights()
            report = train_step(
                inputs, self._decoders, active, round_.blocks, weights, round_.decoder_live, self._corrections
            )
            if student is not None:
                student.prune(active)
            self._step += 1
            self._meter.pixels += report.pixels
            for block in round_.blocks:
                self._block_steps[block] += 1
            if self._step % BOUND_EVERY == 0 or self._step == end:
                for state in active:
                    state.keep_bounds(self._config, self._clamp_to)
            self._tell(report, active, round_)
            self._observers.offer_state(lambda: self._state(active))  # noqa: B023 (called at once)
            self._measure(active, round_, views)
            if self._score_held_out(active, views):
                ending = "good enough"
            stop, save = self._agree()
            if stop:
                ending = "interrupted"
            if (stop or save or self._due(self._config.log.checkpoint_every)) and self._step < self.schedule.total:
                self._checkpoint(active)
        for state in active:
            state.around = None
        self._store.rest(active)
        if self._step == end:
            self._decoders.end_round([b for b in round_.blocks if self._block_steps[b] == self._config.steps])
        self._observers.on_event(RoundEnded(self._step, self._store.waited, self.seconds))
        if self._step == self.schedule.total:
            self._checkpoint([])
            ending = None if ending == "interrupted" else ending
        return ending

    def _revise(self) -> bool:
        """Asks ``pace`` for a new number of steps and applies it; false if there is none.

        All blocks have done as many steps. Rounds that are over stay as they are: the coarse stage's one round changes
        its length, several blocks have more or fewer rounds before them.
        """
        found = None if self._pace is None else self._pace(self._block_steps[0], self._progress.steps)
        if found is None:
            return False
        # This run's own scene settings: they hold the coordinate frame that it found.
        config = replace(found, scene=self._config.scene)
        self._config, self._progress = config, replace(self._progress, steps=config.steps)
        self.schedule = schedule_of(self._progress, config)
        self._decoders.retime(config)
        self._corrections.retime(config)
        return True

    def _agree(self) -> tuple[bool, bool]:
        """(Was any rank asked to stop? Is a checkpoint due by rank 0's clock?) The same on all ranks."""
        if self._step % AGREE_EVERY:
            return False, False
        minutes = self._config.log.checkpoint_minutes
        late = self._comm.rank == 0 and minutes > 0 and time.perf_counter() - self._saved_at > 60 * minutes
        flags = torch.tensor([float(self._stop()), float(late)])
        self._comm.all_reduce_sum_(flags)
        return bool(flags[0]), bool(flags[1])

    def _tell(self, report: StepReport, active: Sequence[Block], round_: Round) -> None:
        """Sends the events of a step, and warns once for each block that reaches its cap."""
        for state in active:
            growth = report.grown.get(state.block)
            if growth is not None and growth.refused:
                self._observers.on_event(GrowthCapped(self._step, state.block, len(state.model), growth.refused))
                if state.block not in self._capped:
                    self._capped.add(state.block)
                    warn(
                        f"train: block {state.block} stops growing at {len(state.model)} {state.model.NOUN} "
                        f"({growth.refused} more were wanted): {state.CAP}"
                    )
        done = StepDone(self._step, self.schedule.total, self.seconds)
        if self._due(self._config.log.every):
            sizes = {state.block: len(state.model) for state in active}
            terms = reported_terms(self._config, round_.decoder_live)
            losses, anchors = gather_losses(report.losses, sizes, round_.blocks, terms, self._comm)
            done = replace(done, losses=losses, anchors=anchors, pixels=self._meter.pixels)
        self._observers.on_event(done)

    def _state(self, active: Sequence[Block]) -> TrainingState:
        def inactive(block: int) -> Model | None:
            rows = self._store.rows_in_memory(block)
            return None if rows is None else block_kind(self._config).MODEL.from_rows(rows)

        models = {state.block: (state.model, self._decoders.student_of(state)) for state in active}
        shared = self._config.blocks.decoder == "shared"
        return TrainingState(self._step, models, inactive, len(self._plan), shared)

    def _due(self, every: int | Share) -> bool:
        steps = steps_of(every, self.schedule.total)
        return steps > 0 and self._step % steps == 0

    def _measure(self, active: Sequence[Block], round_: Round, views: Views) -> None:
        """Scores the blocks whose measurement is due on their training views (eq. 7); all ranks take part."""
        config = self._config.weighting
        if self._config.stage == "coarse" or not config.enabled:
            return
        due = [block for block in round_.blocks if self._block_steps[block] % config.every == 0]
        if not due:  # All ranks agree on this: each counts the steps of all blocks.
            return
        measured = {}
        for state in (state for state in active if state.block in due):
            if config.source == "running":
                found = state.score.take()
            else:
                cameras = self._corrections.poses.cameras(self._plan.train[state.block][:: config.view_stride])
                found = self._score(
                    state, cameras, views, self._corrections.appearance.table, partial(self._surroundings.window, state)
                )
            if found is not None:
                measured[state.block] = found
        self._scores.update(measured, self._comm)
        weights = self._scores.weights()
        scores = self._scores.scores.tolist()
        known = [b for b, row in enumerate(scores) if row[0] == row[0]]
        self._observers.on_event(
            BlocksMeasured(
                self._step,
                {b: scores[b][0] for b in known},
                {b: scores[b][1] for b in known},
                {b: float(weights[b]) for b in known},
            )
        )

    def _score_held_out(self, active: Sequence[Block], views: Views) -> bool:
        """Reports held-out scores if they are due; true if a coarse run reaches ``log.stop_psnr_ssim``."""
        if not self._due(self._config.log.test_every):
            return False
        seconds = self.seconds
        passed = False
        with self._meter.paused():
            for state in active:
                cameras = self._plan.test[state.block]
                found = self._score(state, cameras, views) if cameras else None
                if found is not None:
                    psnr, ssim = found
                    self._observers.on_event(HeldOutScored(self._step, state.block, len(cameras), psnr, ssim, seconds))
                    goal = self._config.log.stop_psnr_ssim
                    passed = goal is not None and psnr >= goal[0] and ssim >= goal[1]
        return passed and self._config.stage == "coarse"

    def _score(
        self,
        state: Block,
        cameras: list[Camera],
        views: Views,
        appearance: AppearanceTable | None = None,
        window: Callable[[Camera], Window | None] = lambda camera: None,
    ) -> tuple[float, float] | None:
        """Mean PSNR (dB) and SSIM over the given views of a block; None if no image counts (``score_views``)."""
        student = self._decoders.student_of(state)
        found = score_views(
            state.model, student, cameras, views, self._background, appearance, state.around, window
        )  # fmt: skip
        return None if found is None else (found.psnr, found.ssim)

    def _checkpoint(self, active: Sequence[Block]) -> None:
        at = replace(
            self._progress, step=self._step, block_steps=self._block_steps, schedule=self.schedule.state(),
            work=self._meter.as_dict(),
        )  # fmt: skip
        folder = save_checkpoint(
            self._folder / "checkpoint", at, self._store, active, self._decoders, self._corrections, self._scores,
            self._config, self._comm,
        )  # fmt: skip
        self._saved_at = time.perf_counter()
        self._observers.on_event(Saved(self._step, str(folder)))

    def _save_model(self) -> None:
        # The model is named by its block steps; a coarse run that stopped early, by the steps that it did.
        steps = self._step if self._config.stage == "coarse" else self._config.steps
        folder = write_model(
            self._folder, steps, self._store, self._decoders, self._corrections, self._table, self._config, self._comm,
            self._device,
        )  # fmt: skip
        self._observers.on_event(Saved(self._step, str(folder)))
