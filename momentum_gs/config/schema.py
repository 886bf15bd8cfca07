"""Every setting of an experiment: typed, frozen and checked on construction.

The docstring under a field gives its meaning, its unit and the origin of its default: [MGS] the official Momentum-GS
code, [SGS] Scaffold-GS, [3DGS] the original code, [paper] the Momentum-GS paper, [ours] a decision of this project
(docs/fidelity.md lists those). A block step is a step that one block has trained; a scene unit is the unit of the
scene's files; a training unit is ``scene.unit`` scene units.
"""

from dataclasses import dataclass, field
from typing import Literal, NewType

from momentum_gs.config.sections.blocks import BlocksConfig, PartitionConfig, StoreConfig
from momentum_gs.config.sections.checks import check, developers
from momentum_gs.config.sections.devices import AggregateConfig, CompressConfig
from momentum_gs.config.sections.distillation import DistillConfig
from momentum_gs.config.sections.growth import GaussiansConfig, GrowthConfig
from momentum_gs.config.sections.learning import LossConfig, OptimConfig, TeacherConfig, WeightingConfig
from momentum_gs.config.sections.model import AnchorsConfig, ModelConfig, SurfaceConfig
from momentum_gs.config.sections.scene import AppearanceConfig, Axis, SceneConfig

__all__ = [
    "AggregateConfig",
    "AnchorsConfig",
    "AppearanceConfig",
    "Axis",
    "BlocksConfig",
    "CompressConfig",
    "Config",
    "DistillConfig",
    "GaussiansConfig",
    "GrowthConfig",
    "LogConfig",
    "LossConfig",
    "ModelConfig",
    "NEEDS_ANCHORS",
    "OptimConfig",
    "PartitionConfig",
    "SceneConfig",
    "StoreConfig",
    "SurfaceConfig",
    "TeacherConfig",
    "WeightingConfig",
]

NEEDS_ANCHORS = {
    "teacher.enabled": False, "blocks.boundary_finetuning": False, "blocks.offset_clamping": False,
    "model.background": "fixed",
}  # fmt: skip
"""Settings that need anchors or a decoder, with the values that ``model.primitive=gaussians`` gives them."""


Share = NewType("Share", str)
"""A share of a run's global steps, such as ``20%``. Their number follows from the blocks, so a ``Config`` keeps it."""


def steps_of(every: int | Share, total: int) -> int:
    """A number of steps, or a share of ``total`` steps: then at least 1."""
    return max(1, round(total * float(every.removesuffix("%")) / 100)) if isinstance(every, str) else every


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes while it trains. Steps are global steps, shares those of all global steps."""

    every: int = 10
    """Steps between records of scalars in events.jsonl, TensorBoard and Weights & Biases."""
    tensorboard: bool = True
    """Also record to TensorBoard."""
    wandb: bool = False
    """Also record to Weights & Biases (project ``momentum-gs``; WANDB_MODE=offline is honoured)."""
    checkpoint_every: int | Share = 5000
    """Steps between checkpoints; 0: none by steps. The end of a run always writes one."""
    checkpoint_minutes: float = 15.0
    """Minutes after which a checkpoint is written in any case; 0: none by time."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep; older ones are deleted."""
    test_every: int | Share = 0
    """Steps between evaluations of the held-out views; 0: none during training."""
    link_checkpoints: bool = developers(False)
    """Hard-link the files of blocks that did not train between two checkpoints instead of writing them again. This
    saves most of the time and space where n is much larger than k, but damage to such a file affects both
    checkpoints."""
    stop_psnr_ssim: tuple[float, float] | None = developers(None)
    """Stop once the held-out views exceed both this PSNR (dB) and this SSIM (used by the time-to-quality script)."""

    def __post_init__(self) -> None:
        check(self.keep_checkpoints >= 1, "log.keep_checkpoints", self.keep_checkpoints, "at least 1")
        check(self.checkpoint_minutes >= 0, "log.checkpoint_minutes", self.checkpoint_minutes, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    stage: Literal["coarse", "blocks"] = "blocks"
    """``coarse``: the whole scene as one block, without a teacher; ``blocks``: a partitioned scene, k of n blocks at a
    time."""
    out: str | None = None
    """Output folder (``-m``)."""
    steps: int = 60_000
    """Steps that every block trains in total, those before a resume included [MGS; 30,000 for the coarse model]."""
    seed: int = 0
    """Seed of all random numbers of the run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: CUDA where both torch and the compiled kernels support it, else the CPU."""
    scene: SceneConfig = field(default_factory=SceneConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    surface: SurfaceConfig = field(default_factory=SurfaceConfig)
    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    anchors: AnchorsConfig = field(default_factory=AnchorsConfig)
    gaussians: GaussiansConfig = field(default_factory=GaussiansConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    weighting: WeightingConfig = field(default_factory=WeightingConfig)
    blocks: BlocksConfig = field(default_factory=BlocksConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    compress: CompressConfig = field(default_factory=CompressConfig)
    aggregate: AggregateConfig = field(default_factory=AggregateConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def per_block_decoders(self) -> bool:
        """Whether there is one decoder per block; the coarse model is one block with one decoder."""
        return self.stage == "blocks" and self.model.primitive == "anchors" and self.blocks.decoder == "per_block"

    @property
    def starts_from_teacher(self) -> bool:
        """Whether blocks are those of a student that starts from its first teacher."""
        return bool(self.distill.teachers) and self.distill.start == "teacher"

    @property
    def starts_flat(self) -> bool:
        """Whether what starts from points starts flat, along the surface that they make up: anchors only where the
        covariance head reads features as they are, and has the six hidden units (as many as a feature has numbers) of
        ``start_flat_``."""
        model = self.model
        planar = model.surface == "planar" and self.surface.flatten > 0
        if model.primitive == "gaussians":
            return planar
        return (planar or model.flat_start) and model.feature_dim >= 6 and not model.use_feature_bank

    @property
    def starts_from_coarse(self) -> bool:
        """Whether blocks start from the coarse model."""
        if self.stage != "blocks" or self.starts_from_teacher:
            return False
        return self.gaussians.from_coarse if self.model.primitive == "gaussians" else self.blocks.from_coarse

    @property
    def switched_off(self) -> str:
        """A sentence on what is off because the model has explicit Gaussians; empty where it has anchors."""
        if self.model.primitive == "anchors":
            return ""
        off = ", ".join(f"{name}={str(value).lower()}" for name, value in NEEDS_ANCHORS.items())
        return f"with model.primitive=gaussians there are neither anchors nor a decoder, so {off}"

    @property
    def idle_sections(self) -> tuple[str, ...]:
        """Prefixes of the dotted names of settings that have no effect in this experiment."""
        gaussians: tuple[str, ...] = ("gaussians.", "distill.") if self.model.primitive == "anchors" else ()
        if not self.distill.teachers:
            names = ("start", "lambda_kd", "structure", "grid", "counts", "labels_gb")
            gaussians += tuple(f"distill.{name}" for name in names)
        surface = ("surface.",) if self.model.surface == "none" else ()
        # appearance.model itself always has an effect: with other corrections, or none, it is another experiment.
        return gaussians + surface + (("appearance.lr", "appearance.smooth") if self.appearance.model == "none" else ())

    def __post_init__(self) -> None:
        check(self.steps >= 1, "steps", self.steps, "at least 1")
        if self.partition.aabb is not None and self.scene.unit == "auto":
            check(False, "scene.unit", "auto", "a number with partition.aabb, which is in training units: 1 for an "
                   "aabb in the scene's own coordinates")  # fmt: skip
        if self.model.primitive == "gaussians":
            for name, off in NEEDS_ANCHORS.items():
                section, _, key = name.partition(".")
                value = getattr(getattr(self, section), key)
                check(value == off, name, value, f"{off} with model.primitive=gaussians: no anchors, no decoder")
        if self.model.primitive == "gaussians" and self.distill.gaussians is not None:
            last, until = min(self.distill.prune_at, self.steps), self.gaussians.until
            check(self.distill.keep_at <= self.steps, "distill.keep_at", self.distill.keep_at, "at most steps")
            check(until <= last, "gaussians.until", until,
                   f"at most distill.prune_at = {last} with distill.gaussians, whose number would be exceeded again")
        if self.distill.teachers:
            primitive = self.model.primitive
            check(primitive == "gaussians", "model.primitive", primitive, "gaussians with distill.teachers")
            check(self.optim.pose is None, "optim.pose", self.optim.pose, "null with distill.teachers")
        if self.per_block_decoders:
            why = "without a shared decoder (blocks.decoder=per_block, see configs/modes/independent.yaml)"
            check(not self.teacher.enabled, "teacher.enabled", True, f"false {why}")
            check(not self.blocks.boundary_finetuning, "blocks.boundary_finetuning", True, f"false {why}")
            check(not self.blocks.windows, "blocks.windows", True, f"false {why}")
            freeze = self.blocks.decoder_freeze_rounds
            check(freeze == 0, "blocks.decoder_freeze_rounds", freeze, f"0 {why}")
            check(self.model.background == "fixed", "model.background", self.model.background, f"fixed {why}")
