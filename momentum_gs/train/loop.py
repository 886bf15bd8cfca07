"""The run around the step: rounds, measurements, checkpoints, the final files."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import Comm
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene
from momentum_gs.data.views import Views
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.io import save_decoder, save_ply
from momentum_gs.render.score import Scores, score_views
from momentum_gs.train.block_schedule import Round, check_counts, make_schedule
from momentum_gs.train.block_state import BlockState, init_block, pack
from momentum_gs.train.block_store import BlockStore
from momentum_gs.train.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from momentum_gs.train.confine import confine_offsets_
from momentum_gs.train.events import BlocksMeasured, HeldOutScored, Observers, RoundStarted, Saved, StepDone
from momentum_gs.train.losses import CONSISTENCY_TERMS, IMAGE_TERMS
from momentum_gs.train.plan import BlockPlan, initial_points, plan_blocks
from momentum_gs.train.score_table import ScoreTable
from momentum_gs.train.settle import gather_surroundings, hold_surroundings, surround
from momentum_gs.train.shared_decoder import SharedDecoder
from momentum_gs.train.step import StepInputs, StepReport, train_step
from momentum_gs.train.view_order import ViewOrder

# Images that are decoded ahead of the step that shows them; a step takes longer than a decode, so a few suffice.
PREFETCH_STEPS = 4
# An offset moves by a few percent of a scale in so many steps, and looking at all of them costs a tenth of a step.
CONFINE_EVERY = 10


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    step: int
    seconds: float
    """Training time, scoring of held-out views not counted."""
    stopped_early: bool


class Training:
    """One run: builds or resumes its state on construction, ``run`` does the rest. Every rank has its own."""

    def __init__(
        self,
        config: Config,
        scene: Scene,
        table: PartitionTable | None,
        comm: Comm,
        device: torch.device,
        *,
        resume: bool = False,
    ) -> None:
        """``table``: the partition; None for the coarse stage.

        Raises:
            UserError: for counts, partitions or checkpoints that do not fit, before any training.
        """
        self._started = time.perf_counter()
        assert config.out is not None
        self._config, self._scene, self._comm, self._device = config, scene, comm, device
        self._observers = Observers()
        self._folder = Path(config.out)
        self._table = table
        self._plan: BlockPlan = plan_blocks(scene, table)
        n = len(self._plan)
        coarse = config.stage == "coarse"
        k = 1 if coarse else config.blocks.active or min(comm.world_size, n)
        check_counts(n, k, comm.world_size)
        self._schedule = (
            [Round((0,), config.steps, 0, True)]
            if coarse
            else make_schedule(n, k, config.steps, config.blocks, config.seed)
        )
        live = [r for r in self._schedule if r.decoder_live]
        clock_scale = sum(r.steps * len(r.blocks) for r in live) / n / sum(r.steps for r in live)
        self._shared = SharedDecoder(config, device, clock_scale)
        self._scores = ScoreTable(n, config.weighting)
        self._store = BlockStore(n, config, device, comm)
        self._order = ViewOrder(self._plan.train, config.seed)
        self._background = torch.full((3,), 1.0 if config.scene.white_background else 0.0, device=device)
        self._untimed = 0.0
        self._step = 0
        checkpoint = latest_checkpoint(self._folder / "checkpoint") if resume else None
        if resume and checkpoint is None:
            raise UserError(f"{self._folder / 'checkpoint'}: no checkpoint to resume; start without --resume")
        if checkpoint is not None:
            self._step = load_checkpoint(checkpoint, self._store, self._shared, self._scores, config, n)
        else:
            self._init_blocks()

    def _init_blocks(self) -> None:
        for block, cameras in enumerate(self._plan.train):
            if self._store.home(block):
                points = initial_points(self._scene, cameras, self._config)
                if len(points) == 0:
                    raise UserError(
                        f"block {block}: none of the {len(self._scene.points)} points is inside one of its "
                        f"{len(cameras)} views; check the poses, or set blocks.init=full"
                    )
                self._store.put(block, pack(init_block(block, points, cameras, self._config, self._device)))

    @property
    def seconds(self) -> float:
        """Training time since construction."""
        return time.perf_counter() - self._started - self._untimed

    def run(self, observers: Observers) -> Outcome:
        """Trains to the last step of the schedule (or to ``log.stop_psnr_ssim``) and writes the model.

        Args:
            observers: hear of every step; the caller closes them.
        """
        self._observers = observers
        cache = int(self._config.scene.cache_gb * 2**30)
        stopped = False
        with Views(self._scene, cache, self._device) as views:
            for turn in self._schedule:
                if turn.first_step + turn.steps <= self._step:
                    continue
                stopped = self._run_round(turn, views)
                if stopped:
                    break
        self._save_model()
        return Outcome(self._step, self.seconds, stopped)

    def _run_round(self, turn: Round, views: Views) -> bool:
        """Trains one round; true where the wanted quality was reached before its end."""
        self._observers.on_event(RoundStarted(self._step, turn.blocks, turn.decoder_live))
        inputs = StepInputs(self._config, self._comm, self._background, self._order.camera, views.image)
        active = self._activate(turn)
        total = self._schedule[-1].first_step + self._schedule[-1].steps
        end, stopped = turn.first_step + turn.steps, False
        while self._step < end and not stopped:
            ahead = min(PREFETCH_STEPS, end - self._step)
            views.prefetch([self._order.camera(b.block, b.step + i).name for i in range(ahead) for b in active])
            weights = self._scores.weights()
            report = train_step(inputs, self._shared, active, len(turn.blocks), weights, turn.decoder_live)
            self._step += 1
            if self._step % CONFINE_EVERY == 0 or self._step == end:
                self._confine(active)
            if self._due(self._config.log.every):
                losses, anchors = self._gather(report, active, turn)
                self._observers.on_event(StepDone(self._step, total, self.seconds, losses, anchors))
            else:
                self._observers.on_event(StepDone(self._step, total, self.seconds))
            self._measure(active, turn, views)
            stopped = self._score_held_out(active, views)
            if self._due(self._config.log.checkpoint_every) and self._step < total:
                self._checkpoint(active)
        self._store.rest(active)
        if self._step == total:
            self._checkpoint([])
        return stopped

    def _activate(self, turn: Round) -> list[BlockState]:
        """This rank's blocks of a round; where they settle, with the other blocks around them."""
        table, ranks = self._table, self._comm.world_size
        if table is None or table.n == 1 or turn.decoder_live or not self._config.blocks.settle:
            return self._store.activate(turn.blocks)
        surroundings = {}
        if self._step == turn.first_step:  # A resumed round has them already.
            mine = turn.blocks[self._comm.rank :: ranks]
            surroundings = gather_surroundings(self._store, table.cell_of, {b: self._plan.train[b] for b in mine})
        active = self._store.activate(turn.blocks)
        for state in active:
            if state.block in surroundings:
                surround(state, surroundings[state.block], table.cell_of)
            hold_surroundings(state, table.cell_of)
        return active

    def _confine(self, active: list[BlockState]) -> None:
        table = self._table
        if table is not None and self._config.blocks.confine:
            for state in active:
                confine_offsets_(state.anchors, table.cell_of, state.block)

    def _due(self, every: int) -> bool:
        return every > 0 and self._step % every == 0

    def _gather(
        self, report: StepReport, active: list[BlockState], turn: Round
    ) -> tuple[dict[int, dict[str, float]], dict[int, int]]:
        """Losses and anchor counts of all ranks' blocks: one small all-reduce every ``log.every`` steps."""
        terms = self._term_names(turn)
        table = torch.zeros(len(turn.blocks), len(terms) + 1, dtype=torch.float64)
        for state in active:
            row = turn.blocks.index(state.block)
            losses = report.losses[state.block]
            table[row] = torch.tensor([*(float(losses[name]) for name in terms), len(state.anchors)])
        self._comm.all_reduce_sum_(table)
        rows = dict(zip(turn.blocks, table.tolist(), strict=True))
        losses_by_block = {block: dict(zip(terms, row, strict=False)) for block, row in rows.items()}
        return losses_by_block, {block: int(row[-1]) for block, row in rows.items()}

    def _term_names(self, turn: Round) -> tuple[str, ...]:
        teacher = turn.decoder_live and self._config.teacher.enabled and self._config.stage == "blocks"
        return IMAGE_TERMS + CONSISTENCY_TERMS if teacher else IMAGE_TERMS

    def _measure(self, active: list[BlockState], turn: Round, views: Views) -> None:
        """Scores blocks on their own training views where a measurement is due (eq. 7); all ranks take part."""
        config = self._config.weighting
        if self._config.stage == "coarse" or not config.enabled:
            return
        # Blocks of a round share their step count, so every rank knows whether a measurement is due.
        if self._block_step(turn) % config.every:
            return
        measured = {}
        for state in active:
            found = self._score(state.anchors, self._plan.train[state.block][:: config.view_stride], views)
            measured[state.block] = (found.psnr, found.ssim)
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

    def _block_step(self, turn: Round) -> int:
        """Steps that the blocks of a round have done by now."""
        earlier = sum(r.steps for r in self._schedule if r.first_step < turn.first_step and turn.blocks[0] in r.blocks)
        return earlier + self._step - turn.first_step

    def _score_held_out(self, active: list[BlockState], views: Views) -> bool:
        """Reports held-out scores where due; true where they pass ``log.stop_psnr_ssim``."""
        if not self._due(self._config.log.test_every):
            return False
        now = time.perf_counter()
        seconds = self.seconds
        passed = False
        for state in active:
            cameras = self._plan.test[state.block]
            if cameras:
                found = self._score(state.anchors, cameras, views)
                self._observers.on_event(
                    HeldOutScored(self._step, state.block, len(cameras), found.psnr, found.ssim, seconds)
                )
                goal = self._config.log.stop_psnr_ssim
                passed = goal is not None and found.psnr >= goal[0] and found.ssim >= goal[1]
        self._untimed += time.perf_counter() - now
        return passed and self._config.stage == "coarse"

    def _score(self, anchors: Anchors, cameras: list[Camera], views: Views) -> Scores:
        return score_views(anchors, self._shared.student, cameras, views, self._background)

    def _checkpoint(self, active: list[BlockState]) -> None:
        folder = self._folder / "checkpoint"
        save_checkpoint(
            folder, self._step, self._store, active, self._shared, self._scores, self._config, self._comm
        )  # fmt: skip
        self._observers.on_event(Saved(self._step, str(folder)))

    def _save_model(self) -> None:
        """``point_cloud/iteration_<steps>/``: a PLY per block (one for the coarse model), decoder and partition."""
        # Block steps; a coarse run that stopped early is named by what it did.
        steps = self._step if self._config.stage == "coarse" else self._config.steps
        folder = self._folder / "point_cloud" / f"iteration_{steps}"
        folder.mkdir(parents=True, exist_ok=True)
        for block, packed in self._store.held().items():
            rows = {k.removeprefix("anchors."): v for k, v in packed.tensors.items() if k.startswith("anchors.")}
            name = "point_cloud.ply" if self._config.stage == "coarse" else f"point_cloud_block{block}.ply"
            save_ply(folder / name, Anchors.from_rows(rows))
        if self._comm.rank == 0:
            save_decoder(folder, self._shared.student)
            if self._table is not None:
                self._table.save(folder / "partition.json")
        self._comm.barrier()
        self._observers.on_event(Saved(self._step, str(folder)))
