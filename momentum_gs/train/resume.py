"""The progress with which a run starts: step 0, a checkpoint, or more steps for some blocks of a finished run."""

from collections.abc import Sequence
from dataclasses import replace

from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.train.blocks.schedule import Schedule, check_counts
from momentum_gs.train.checkpoint import Checkpoint, Progress


def begin(config: Config, n: int, ranks: int) -> Progress:
    """Progress of a new run of n blocks.

    Raises:
        UserError: for counts that cannot be scheduled (``check_counts``).
    """
    active = n if config.blocks.active == "all" else config.blocks.active
    k = 1 if config.stage == "coarse" else active or max(min(ranks, n), config.blocks.groups)
    check_counts(n, k, ranks, config.blocks.groups)
    return Progress(0, k, [0] * n, {}, [], 0, config.steps)


PACED = (
    "steps", "growth", "gaussians", "distill.noise_every", "distill.from_step", "distill.until",
    "distill.structure_every", "distill.prune_at", "distill.keep_at", "optim.lr_steps", "weighting.every",
    "blocks.interval",
)  # fmt: skip
"""Settings that count steps; a run with a time limit revises them (``train/pace.py``)."""


def go_on(
    saved: Checkpoint, config: Config, n: int, ranks: int, only: Sequence[int], *, paced: bool = False
) -> Progress:
    """Progress of a run that continues from a checkpoint.

    Args:
        saved: The checkpoint.
        config: Settings of the run that continues.
        n: Number of blocks of the partition.
        ranks: Number of ranks.
        only: Blocks of a finished run to train further (``--only-blocks``); empty for an ordinary resume.
        paced: The run has a time limit (``train/pace.py``): its number of steps is that of ``config``.

    Raises:
        UserError: for a partition, settings, blocks, steps or ranks that do not fit the checkpoint.
    """
    at = saved.progress
    if len(at.block_steps) != n:
        raise UserError(
            f"{saved.path}: holds {len(at.block_steps)} blocks, but the partition has {n}; resume with the partition "
            "of the run, or train anew without --resume"
        )
    if not only:
        if at.only:
            raise UserError(
                f"{saved.path}: written with --only-blocks {','.join(map(str, at.only))}; resume with the same blocks"
            )
        saved.check_settings(config, free=PACED if paced else ())
        check_counts(n, at.active, ranks, config.blocks.groups)
        return replace(at, steps=max(config.steps, *at.block_steps), schedule={}) if paced else at
    if len(set(only)) < len(only) or not all(0 <= block < n for block in only):
        raise UserError(f"--only-blocks: {list(only)}, expected distinct blocks of 0 to {n - 1}")
    saved.check_settings(config, free=("steps",))
    towards = saved.config["steps"]
    if at.step < schedule_of(at, config).total:
        if at.only != sorted(only) or config.steps != towards:
            how = f"--only-blocks {','.join(map(str, at.only))}" if at.only else "--resume"
            raise UserError(f"{saved.path}: its run is not finished; finish it first with {how} and steps={towards}")
        return at
    if config.steps <= towards:
        raise UserError(
            f"--only-blocks: steps = {config.steps}, but the run has reached steps = {towards} already; set steps, the "
            f"total, to more than {towards}"
        )
    return Progress(
        at.step, min(at.active, len(only)), at.block_steps, {}, sorted(only), at.step, config.steps - towards, at.work
    )


def schedule_of(at: Progress, config: Config) -> Schedule:
    """All rounds of a run, including those that are over."""
    blocks = config.blocks
    if config.stage == "coarse":  # One block, one round.
        blocks = replace(blocks, interval=at.steps, decoder_freeze_rounds=0, schedule="sequential", groups=1)
    if at.only:
        schedule = Schedule.continued(at.only, at.active, at.steps, at.first_step, blocks, config.seed)
    else:
        schedule = Schedule(len(at.block_steps), at.active, at.steps, blocks, config.seed)
    if at.schedule:
        schedule.load_state(at.schedule)
    return schedule
