"""Learning rates, losses, the teacher and the weights of blocks."""

from dataclasses import dataclass
from typing import Literal

from momentum_gs.config.sections.checks import check, developers


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam and its learning rates. A pair of rates decays exponentially from the first to the second over ``lr_steps``
    block steps."""

    offset_lr: tuple[float, float] = (0.01, 1e-4)
    """Learning rates of the anchors' offsets, multiplied by ``lr_scale`` [MGS]."""
    lr_scale: float | None = None
    """Factor on the learning rates of offsets and positions, training units. Default: the radius of the block's cameras
    (``spatial_lr_scale``), which grows with the extent of the survey [MGS]. With ``scene.unit: auto``, 5, the viewing
    distance, suits every scene [ours]."""
    scaling_lr: float = 0.007
    """Learning rate of the anchors' scales [MGS]."""
    lr_steps: int = 30_000
    """Block steps after which pairs of learning rates stay at their second value [MGS]."""
    max_scale: float | None = None
    """Upper bound on the scales of an anchor's Gaussians at every step, training units, so that none grows without
    limit [ours]. Null: no bound; [SGS] bounds scales only when anchors grow (``growth.max_log_scale``)."""
    decoder_clip: float | None = None
    """Upper bound on the gradient norm of each head of the decoder, as a multiple of its usual norm (the root of Adam's
    second moment); longer gradients are scaled down [ours]. Null: no bound [MGS]."""
    pose: float | None = None
    """Initial learning rate of the training images' poses, radians and training units; it decays to a hundredth of that
    over ``lr_steps`` [ours]. Meant for ``scene.unit: auto`` (docs/poses.md). Null: poses stay as given [MGS]."""
    sparse_adam: bool = False
    """Whether a step moves only the anchors or Gaussians in view and leaves the moments of the others as they are
    [Taming 3DGS]; false: all move on by their moments [MGS]. Rates should then be higher, by about the root of the
    number of views from one that shows an anchor to the next (docs/lab_log.md)."""
    feature_lr: float = developers(0.0075)
    """Learning rate of the anchors' features [MGS]."""
    opacity_mlp_lr: tuple[float, float] = developers((0.002, 2e-5))
    """Learning rates of the decoder's opacity head [MGS]."""
    cov_mlp_lr: tuple[float, float] = developers((0.004, 0.004))
    """Learning rates of the decoder's covariance head [MGS]."""
    color_mlp_lr: tuple[float, float] = developers((0.008, 5e-5))
    """Learning rates of the decoder's colour head [MGS]."""
    eps: float = developers(1e-15)
    """Adam's epsilon [MGS]."""

    def __post_init__(self) -> None:
        check(self.pose is None or self.pose > 0, "optim.pose", self.pose, "a number above 0, or null")
        check(self.lr_steps >= 1, "optim.lr_steps", self.lr_steps, "at least 1")
        check(self.max_scale is None or self.max_scale > 0, "optim.max_scale", self.max_scale, "a number above 0")
        check(self.lr_scale is None or self.lr_scale > 0, "optim.lr_scale", self.lr_scale, "a number above 0")
        clip = self.decoder_clip
        check(clip is None or clip >= 1, "optim.decoder_clip", clip, "at least 1, or null")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms."""

    dssim: float = 0.2
    """Share of the SSIM term: the image loss is (1 - dssim) * L1 + dssim * (1 - SSIM) [MGS]."""
    volume: float = 0.01
    """Weight of the mean product of the Gaussians' scales [SGS, MGS; absent from the paper]."""
    depth: float = 0.0
    """Weight of the mean relative error of the rendered inverse depth at the sparse points that an image observes; each
    point counts by its reprojection error and track length. Needs a COLMAP model with tracks [ours]. 0: off."""
    depth_prior: float = 0.0
    """Weight of the mean relative error of the rendered depth against the maps in ``scene.depths``, each scaled and
    shifted to the render (docs/surfaces.md) [ours]. 0: they are not read."""
    normal_prior: float = 0.0
    """Weight of the mean 1 - cosine between the rendered normals and the maps in ``scene.normals`` [ours]. 0: they are
    not read."""

    def __post_init__(self) -> None:
        check(0 <= self.dssim <= 1, "loss.dssim", self.dssim, "a number in [0, 1]")
        for name in ("depth", "depth_prior", "normal_prior"):
            check(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "at least 0")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The momentum teacher and the consistency loss."""

    enabled: bool = True
    """Use a teacher [paper]; false: the shared decoder learns from the images alone (the 'alternating' row of
    Table 7)."""
    momentum: float = 0.9
    """Momentum of the teacher's moving average, m of eq. 4 [paper, Table 9]."""
    consistency: float = 50.0
    """Weight of the consistency loss, lambda_cons of eq. 6 [paper, Table 8]."""
    detach: bool = True
    """Treat the teacher's outputs as fixed targets [paper]; false: let gradients pass through the teacher to the
    anchors [MGS]."""
    start: float = 0.0
    """Share of a block's steps before the consistency loss begins [ours; paper: 0]. The loss holds back a decoder that
    still has much to learn, so short runs do better with a later start."""

    def __post_init__(self) -> None:
        check(0 <= self.momentum < 1, "teacher.momentum", self.momentum, "a number in [0, 1)")
        check(0 <= self.start <= 1, "teacher.start", self.start, "a share in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class WeightingConfig:
    """Reconstruction-guided block weights, eq. 7."""

    enabled: bool = True
    """Weight the losses of blocks by their scores [paper]; false: every block has weight 1."""
    sigma: float = 10.0
    """sigma of eq. 7 [MGS; 9 to 13, by scene]; a smaller one raises the weights of lagging blocks."""
    every: int = 1000
    """Block steps between measurements of a block's scores; its weight is 1 before the first [MGS]."""
    source: Literal["measured", "running"] = "measured"
    """Where the scores come from. ``measured``: from renders of every ``view_stride``-th training view [MGS];
    ``running``: the mean over the views that the block has trained since the last measurement, which needs no extra
    renders [ours]."""
    ssim_scale: float = developers(10.0)
    """Factor on SSIM differences before they are squared; lambda of eq. 7 is its square, 100 [MGS]. 0: the weights
    depend on PSNR alone (Table 4)."""
    psnr_scale: float = developers(1.0)
    """The same for PSNR differences in dB [MGS: 1]. 0: the weights depend on SSIM alone."""
    view_stride: int = developers(10)
    """Every n-th training view of the block is measured [MGS]."""
    smoothing: float = developers(0.9)
    """Share of the old score that a measurement keeps [MGS]."""

    def __post_init__(self) -> None:
        check(self.sigma > 0, "weighting.sigma", self.sigma, "a number above 0")
        check(self.every >= 1, "weighting.every", self.every, "at least 1")
        check(self.view_stride >= 1, "weighting.view_stride", self.view_stride, "at least 1")
        check(0 <= self.smoothing < 1, "weighting.smoothing", self.smoothing, "a number in [0, 1)")
