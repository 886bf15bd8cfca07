"""Teachers that differ, and students of finished runs."""

import re
from dataclasses import dataclass
from typing import Literal

from momentum_gs.config.sections.checks import check

_COUNT = re.compile(r"(?=.*[1-9])\d+(?:\.\d+)?[kM%]?")
"""A number of Gaussians above 0, or a share."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Varied trainings of explicit Gaussians, and students that learn from several of them (docs/distillation.md). Used
    with ``model.primitive=gaussians``. Steps are block steps."""

    noise: float = 0.0
    """Perturbed teacher: standard deviation of the noise on Gaussians whose mean screen-space gradient reaches
    ``gaussians.grad_threshold``; for positions a multiple of the Gaussian's largest scale, otherwise of 1 (rotation as
    six numbers, log scales, opacity logit). 0: none. The paper gives no value, the authors' code has 0.1
    [Distilled-3DGS]."""
    noise_every: int = 500
    """Steps between perturbations [Distilled-3DGS; 1000 in its code]."""
    dropout: float = 0.0
    """Teacher with dropout: share of the Gaussians left out of a step's render, reached at ``until`` after a linear
    rise from 0 at ``from_step``; 0.2 in the paper [Distilled-3DGS]. 0: none."""
    dropout_every: int = 1
    """Steps between renders with dropout [Distilled-3DGS; 1000 in its code]."""
    from_step: int = 500
    """First step of perturbation and dropout [Distilled-3DGS; 15,000 in its code]."""
    until: int = 15_000
    """Last step of perturbation and dropout [Distilled-3DGS; 25,000 in its code]."""
    teachers: tuple[str, ...] = ()
    """Student: output folders of finished runs of the same scene, of anchors or of Gaussians, whose mean render is a
    second target; the first is also that of ``structure``. Empty: no student."""
    start: Literal["points", "teacher"] = "points"
    """What a student starts from: the scene's points, as in the paper, or the first teacher's Gaussians, which are
    baked if it has anchors [ours]."""
    lambda_kd: float = 1.0
    """Weight of the image loss against the teachers' mean render, lambda_kd [ours; the paper gives no value]."""
    structure: float = 1.0
    """Weight of the structure loss [Distilled-3DGS]. 0: off."""
    structure_every: int = 500
    """Steps between those with the structure loss [Distilled-3DGS; 1000 in its code]."""
    grid: int = 128
    """Voxels along each axis of the structure loss [Distilled-3DGS; 256 in its code]."""
    counts: Literal["trilinear", "gaussian", "marginals"] = "trilinear"
    """How the structure loss counts a Gaussian: in 8 voxels, linearly; in 64, by a normal density; on each axis for
    itself, like the outer product in the authors' code [ours]."""
    gaussians: str | None = None
    """Number of Gaussians to keep at ``prune_at``, over all blocks: a number such as 500000 or 0.5M, or a share such as
    20% of the Gaussians with which the first teacher draws the training views. Null: all."""
    pick: Literal["sample", "most", "merge"] = "sample"
    """How ``gaussians`` is reached. ``sample``: those kept at ``prune_at`` are drawn in proportion to their blending
    weights in the training views [Mini-Splatting]; ``most``: they are those with the largest weights, which suits
    students that have little time to recover. ``merge``: with ``start=teacher``, the least different of the teacher's
    are merged in pairs before the first step [ours]."""
    prune_at: int = 15_000
    """Step at which ``gaussians`` takes effect; densification has to end by then [Distilled-3DGS]."""
    keep: float = 0.99
    """Share of the blending weight that is kept at ``keep_at``; the faintest Gaussians that make up the rest leave, if
    ``gaussians`` is set [code of Distilled-3DGS]. 1: all stay."""
    keep_at: int = 20_000
    """Step at which ``keep`` takes effect [code of Distilled-3DGS]."""
    labels_gb: float = 4.0
    """Largest size of the teachers' renders on disk in OUT, GiB per process; further views are rendered whenever they
    are shown. 0: all are [ours]."""

    def __post_init__(self) -> None:
        check(self.noise >= 0, "distill.noise", self.noise, "at least 0")
        check(0 <= self.dropout < 1, "distill.dropout", self.dropout, "a share in [0, 1)")
        for name in ("noise_every", "dropout_every", "structure_every", "grid", "prune_at", "keep_at"):
            check(getattr(self, name) >= 1, f"distill.{name}", getattr(self, name), "at least 1")
        for name in ("lambda_kd", "structure", "labels_gb"):
            check(getattr(self, name) >= 0, f"distill.{name}", getattr(self, name), "at least 0")
        check(0 < self.keep <= 1, "distill.keep", self.keep, "a share in (0, 1]")
        if self.pick == "merge":
            check(self.start == "teacher", "distill.pick", "merge", "sample or most with distill.start=points")
        if self.gaussians is not None:
            check(_COUNT.fullmatch(self.gaussians) is not None, "distill.gaussians", self.gaussians,
                   "a number such as 500000 or 0.5M, or a share such as 20%")
            check(self.prune_at <= self.keep_at, "distill.keep_at", self.keep_at,
                   f"at least distill.prune_at = {self.prune_at}")

    def count(self, of: int) -> int | None:
        """``gaussians`` as a number; ``of``: that of which it may be a share. None: no bound."""
        if self.gaussians is None:
            return None
        number, unit = self.gaussians.rstrip("kM%"), self.gaussians[-1]
        return int(float(number) * {"k": 1e3, "M": 1e6, "%": of / 100}.get(unit, 1.0))
