"""Every setting of an experiment: typed, frozen, checked when built.

A docstring under a field gives its meaning, its unit and where the default comes from: [MGS] the official Momentum-GS
code, [SGS] Scaffold-GS, [paper] Momentum-GS, [ours] a decision of this project (docs/fidelity.md lists those).
"Block step" counts the steps that one block has trained; "scene unit" is the unit of the scene's
files, "training unit" the one of ``scene.unit``.
"""

from dataclasses import dataclass, field
from typing import Literal, TypeVar

from momentum_gs.core.errors import UserError

NEEDS_ANCHORS = {
    "teacher.enabled": False, "blocks.boundary_finetuning": False, "blocks.offset_clamping": False,
    "model.background": "fixed",
}  # fmt: skip
"""What needs anchors or a decoder, and its value without: ``model.primitive=gaussians`` switches it off."""

Axis = Literal["x", "y", "z", "-x", "-y", "-z"]
"""A signed axis of the scene's coordinates."""


T = TypeVar("T")


def _developers(default: T) -> T:
    """A setting that only who works on the program turns; such settings come last in their section."""
    return field(default=default, metadata={"developers": True})


def _check(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise UserError(f"config: {name} is {value!r}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Where the images are and which of them train."""

    path: str | None = None
    """Scene folder (``-s``): ``images/`` and ``sparse/0``, Mega-NeRF style ``train/`` and ``val/``, or
    ``transforms.json``."""
    images: str = "images"
    """Name of the image folder (``-i``)."""
    resolution: float = -1.0
    """``-r``: 1, 2, 4, 8 divide the size; any other positive number is the width; -1 caps the width at 1600 [SGS]."""
    test_every: int = 8
    """Every n-th image in order of name is held out [SGS]; 0 holds out none. Unused with a list or a val folder."""
    test_list: str | None = None
    """File with one held-out image name a line; also found as ``sparse/0/test.txt`` and ``test_list.txt``."""
    white_background: bool = False
    """``-w``: composite on white instead of black."""
    cache_gb: float = 4.0
    """Bound of the decoded-image cache, GiB of host memory of one process [ours]."""
    bad_images: Literal["fail", "skip"] = "fail"
    """What an image that cannot be read does to a run: end it, or leave its views out of training and report how many
    were [ours]."""
    masks: str = "masks"
    """Folder in the scene with a mask for each image, ``<image name>.png``; black pixels are ignored in the loss, in
    scores and in growth. Empty: masks are not looked for [ours]."""
    undistort: bool = False
    """Undistort images of cameras with distortion into ``undistort_folder``; otherwise they are refused [ours]."""
    points: str | None = None
    """Initial points instead of the scene's own: a PLY, LAS or LAZ file in the scene's coordinates, or ``random``
    (100,000 where the cameras look) [ours]."""
    offset: tuple[float, float, float] | None = None
    """Taken from all coordinates of the scene. Default: zero, unless the cameras are so far from the origin (100 times
    their extent) that float32 would blur the scene; then their rounded centre; with ``unit: auto`` always their centre.
    ``config.yaml`` of a run holds the one used [ours]."""
    unit: float | Literal["auto"] = 1.0
    """Scene units in one training unit: all coordinates are divided by it. 1: the scene trains in its own coordinates
    [SGS, MGS]. ``auto``: the unit in which the cameras see the points from a median distance of 5, so that the same
    settings suit a scene in metres, in feet or in COLMAP's own units. All lengths in settings, ``partition.aabb`` among
    them, and all results are in training units; ``config.yaml`` of a run holds the unit used [ours]."""
    axes: tuple[Axis, Axis, Axis] | None = None
    """Axes of the scene that become x, y and z of the training coordinates, e.g. ``[x, -z, y]``. Default: the scene's
    own; with ``unit: auto`` those that point up (z) and from the cameras to the points (x). ``config.yaml`` of a run
    holds the ones used [ours]."""
    undistort_folder: str = _developers("undistorted")
    """Where undistorted copies are kept, relative to the scene; may be deleted at any time [ours]."""

    def __post_init__(self) -> None:
        _check(self.resolution == -1 or self.resolution > 0, "scene.resolution", self.resolution, "-1 or above 0")
        _check(self.test_every >= 0 and self.test_every != 1, "scene.test_every", self.test_every, "0 or at least 2")
        _check(self.cache_gb > 0, "scene.cache_gb", self.cache_gb, "a size above 0")
        _check(self.unit == "auto" or self.unit > 0, "scene.unit", self.unit, "auto, or a number above 0")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Anchors and decoder."""

    feature_dim: int = 32
    """Length of an anchor's feature [MGS]."""
    n_offsets: int = 10
    """Gaussians that one anchor spawns, K [MGS]."""
    voxel_size: float = 1e-4
    """Edge of the voxel that holds one initial anchor, training units [MGS]; 0: median nearest distance [SGS]."""
    primitive: Literal["anchors", "gaussians"] = "anchors"
    """What a block learns: anchors with a decoder, or Gaussians with colours of their own, as 3DGS has them
    (``gaussians``; docs/baseline_3dgs.md)."""
    fill_points: float = 0.0
    """Initial points that are added where training images see something but no point lies, at a depth interpolated from
    the points around: at most so many times the scene's points [ours; 0: none]."""
    background: Literal["fixed", "constant", "directional"] = "fixed"
    """What shows where no Gaussian hides it: black, or white with ``scene.white_background`` [MGS]; one colour, learned
    and shared by all blocks as the decoder is [ours]; or such a colour by direction, spherical harmonics of degree 2
    [ours]."""
    use_feature_bank: bool = _developers(False)
    """Blend three strides of the feature by view [SGS, off in MGS]."""
    add_opacity_dist: bool = _developers(False)
    """Feed the distance to the camera to the opacity head [SGS, off in MGS]."""
    add_cov_dist: bool = _developers(False)
    """The same for the covariance head."""
    add_color_dist: bool = _developers(False)
    """The same for the colour head."""

    def __post_init__(self) -> None:
        _check(self.feature_dim >= 4 and self.feature_dim % 4 == 0, "model.feature_dim", self.feature_dim,
               "a positive multiple of 4 (the feature bank strides by 4)")
        _check(self.n_offsets >= 1, "model.n_offsets", self.n_offsets, "at least 1")
        _check(self.fill_points >= 0, "model.fill_points", self.fill_points, "at least 0")
        _check(self.voxel_size >= 0, "model.voxel_size", self.voxel_size, "0 (automatic) or a size above 0")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam and its learning rates. Pairs decay exponentially from first to second over ``lr_steps`` block steps."""

    offset_lr: tuple[float, float] = (0.01, 1e-4)
    """Times ``lr_scale`` [MGS]."""
    lr_scale: float | None = None
    """Multiplies the rates of offsets and positions, training units. Default: the radius of the block's cameras
    (``spatial_lr_scale``), which grows with the survey [MGS]. With normalized coordinates (``scene.unit: auto``) 5, the
    viewing distance, suits every scene [ours]."""
    scaling_lr: float = 0.007
    """[MGS]"""
    lr_steps: int = 30_000
    """Block steps after which the pairs stay at their second value [MGS]."""
    max_scale: float | None = None
    """Bound on the scales of an anchor's Gaussians at all times, training units, so that none runs away; default: no
    bound, [SGS] has one only while anchors grow (``growth.max_log_scale``) [ours]."""
    decoder_clip: float | None = None
    """Longest gradient of one of the decoder's heads, times the usual (root of Adam's second moment); what is longer is
    scaled down. None: no bound [MGS]."""
    pose: float | None = None
    """First learning rate of the training images' poses, radians and training units; it falls to a hundredth of that
    over ``lr_steps``. Suited to ``scene.unit: auto`` (docs/poses.md). Null: poses stay as given [MGS]."""
    feature_lr: float = _developers(0.0075)
    """[MGS]"""
    opacity_mlp_lr: tuple[float, float] = _developers((0.002, 2e-5))
    """[MGS]"""
    cov_mlp_lr: tuple[float, float] = _developers((0.004, 0.004))
    """[MGS]"""
    color_mlp_lr: tuple[float, float] = _developers((0.008, 5e-5))
    """[MGS]"""
    eps: float = _developers(1e-15)
    """Adam's epsilon [MGS]."""

    def __post_init__(self) -> None:
        _check(self.pose is None or self.pose > 0, "optim.pose", self.pose, "a number above 0, or null")
        _check(self.lr_steps >= 1, "optim.lr_steps", self.lr_steps, "at least 1")
        _check(self.max_scale is None or self.max_scale > 0, "optim.max_scale", self.max_scale, "a number above 0")
        _check(self.lr_scale is None or self.lr_scale > 0, "optim.lr_scale", self.lr_scale, "a number above 0")
        clip = self.decoder_clip
        _check(clip is None or clip >= 1, "optim.decoder_clip", clip, "at least 1, or null")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms."""

    dssim: float = 0.2
    """(1 - dssim) * L1 + dssim * (1 - SSIM) [MGS]."""
    volume: float = 0.01
    """Times the mean product of the Gaussians' scales [SGS, MGS; absent from the paper]."""
    depth: float = 0.0
    """Times the mean error of the rendered inverse depth where an image observes sparse points, relative to the point's
    own, weighed by reprojection error and track; needs a COLMAP model with tracks [ours; 0: off]."""

    def __post_init__(self) -> None:
        _check(0 <= self.dssim <= 1, "loss.dssim", self.dssim, "a number in [0, 1]")
        _check(self.depth >= 0, "loss.depth", self.depth, "at least 0")


@dataclass(frozen=True, kw_only=True)
class AppearanceConfig:
    """A colour correction for each training image, shared by all blocks that see it (docs/appearance.md)."""

    model: Literal["none", "affine", "bilateral"] = "none"
    """What the loss applies to a render before it compares it with the image: nothing [MGS], an affine map of the
    colours (3x4), or one that varies over the image and with brightness (a grid of 16x16x8 such maps). Held-out views
    are rendered without."""
    lr: tuple[float, float] = (0.01, 0.001)
    """Learning rates of the corrections; decays like the pairs of ``optim`` [3DGS: its exposures]."""
    smooth: float = 0.0
    """Weight of a loss term that keeps the corrections of images taken one after the other alike; needs images that
    carry their times. 0: off [ours]."""

    def __post_init__(self) -> None:
        _check(self.smooth >= 0, "appearance.smooth", self.smooth, "at least 0")


@dataclass(frozen=True, kw_only=True)
class GrowthConfig:
    """When anchors are added and removed. Steps are block steps."""

    start_stat: int = 500
    """First step whose gradients are counted [MGS]."""
    from_step: int = 300
    """First step that may grow [MGS]."""
    until: int = 30_000
    """Last step that counts and grows [MGS; 15,000 for the coarse model]."""
    interval: int = 25
    """Steps between growths [MGS; 100 in SGS]."""
    grad_threshold: float = 2e-4
    """Mean norm of the screen gradient (NDC) above which an offset grows [SGS]."""
    min_opacity: float = 0.005
    """Anchors with a smaller mean opacity are pruned [SGS]."""
    init_factor: int = 128
    """Edge of the coarsest growth voxel over ``model.voxel_size`` [MGS; 16 in SGS]."""
    birth_scale: float = 1.0
    """Largest scale of a new anchor's Gaussians over the edge of its voxel [SGS: 1]. New anchors draw over what is
    there already; small ones enter the images softly and grow where they are needed [ours]."""
    max_log_scale: float | None = 0.05
    """Bound that each growth puts on the natural log of the Gaussians' scales, training units [SGS: e^0.05 = 1.05
    units]. It cuts down the few large Gaussians that stand for what nothing else covers; null: no bound [ours]."""
    success_threshold: float = _developers(0.8)
    """Share of the interval in which an anchor must have been seen to be eligible [SGS]."""
    depth: int = _developers(3)
    """Number of voxel levels [SGS]."""
    hierarchy_factor: int = _developers(4)
    """Ratio of the edges of neighbouring levels [SGS]."""

    def __post_init__(self) -> None:
        _check(self.interval >= 1, "growth.interval", self.interval, "at least 1")
        _check(self.depth >= 1, "growth.depth", self.depth, "at least 1")
        _check(0 < self.birth_scale <= 1, "growth.birth_scale", self.birth_scale, "a number in (0, 1]")
        smallest = self.init_factor // self.hierarchy_factor ** (self.depth - 1)
        _check(smallest >= 1, "growth.init_factor", self.init_factor,
               f"at least hierarchy_factor^(depth-1) = {self.hierarchy_factor ** (self.depth - 1)}")


@dataclass(frozen=True, kw_only=True)
class GaussiansConfig:
    """The explicit baseline, used with ``model.primitive=gaussians``. Steps are block steps. ``optim.lr_steps``,
    ``optim.lr_scale`` and ``optim.eps`` hold for it, too; the other settings of ``optim``, ``growth`` and ``anchors``
    do not."""

    sh_degree: int = 3
    """Highest degree of the colours' spherical harmonics, 0 to 3 [3DGS]."""
    sh_every: int = 1000
    """Steps after which one more degree is evaluated [3DGS]; with ``from_coarse`` blocks begin with all."""
    position_lr: tuple[float, float] = (1.6e-4, 1.6e-6)
    """Times ``optim.lr_scale``; decays like the pairs of ``optim`` [3DGS]."""
    opacity_lr: float = 0.05
    """[3DGS as published; 0.025 in its later code]"""
    scaling_lr: float = 0.005
    """[3DGS]"""
    from_step: int = 500
    """Last step that never densifies [3DGS]."""
    until: int = 15_000
    """First step that no longer counts gradients, densifies or resets [3DGS]."""
    interval: int = 100
    """Steps between densifications [3DGS]."""
    grad_threshold: float = 2e-4
    """Mean norm of the screen gradient (NDC) from which a Gaussian is cloned or split [3DGS]."""
    min_opacity: float = 0.005
    """Gaussians with less are pruned [3DGS]."""
    reset_every: int = 3000
    """Steps between resets of all opacities to 0.01 at most; 0: none [3DGS]."""
    max_per_block: int | None = None
    """Densification stops at so many Gaussians in a block, those with the largest gradients first; default: no bound
    [ours]."""
    from_coarse: bool = True
    """A block starts from the coarse model's Gaussians that its cameras see [CityGaussian], or else from points."""
    percent_dense: float = _developers(0.01)
    """Largest scale that is cloned, over ``optim.lr_scale``; larger ones are split [3DGS]."""
    max_world_size: float = _developers(0.1)
    """Largest scale over ``optim.lr_scale``; larger ones are pruned after the first ``reset_every`` steps
    [3DGS]."""
    max_screen_radius: int | None = _developers(None)
    """The same for the radius on the screen, pixels. 3DGS has 20 here, but clears the radii before it looks at them."""

    def __post_init__(self) -> None:
        _check(0 <= self.sh_degree <= 3, "gaussians.sh_degree", self.sh_degree, "0, 1, 2 or 3")
        _check(self.sh_every >= 1, "gaussians.sh_every", self.sh_every, "at least 1")
        _check(self.interval >= 1, "gaussians.interval", self.interval, "at least 1")
        _check(self.reset_every >= 0, "gaussians.reset_every", self.reset_every, "at least 0")
        _check(0 < self.min_opacity < 1, "gaussians.min_opacity", self.min_opacity, "a number in (0, 1)")
        _check(self.max_per_block is None or self.max_per_block >= 1, "gaussians.max_per_block", self.max_per_block,
               "at least 1")


@dataclass(frozen=True, kw_only=True)
class AnchorsConfig:
    """How large a block may grow [ours]."""

    max_per_block: int | None = None
    """Growth stops at so many anchors in a block, those with the largest gradients first; default: no bound."""
    max_gb_per_block: float | None = None
    """The same as GiB that a block takes while it trains: anchors, gradients, moments and statistics. Views in work
    come on top."""

    def __post_init__(self) -> None:
        _check(self.max_per_block is None or self.max_per_block >= 1, "anchors.max_per_block", self.max_per_block,
               "at least 1")
        _check(self.max_gb_per_block is None or self.max_gb_per_block > 0, "anchors.max_gb_per_block",
               self.max_gb_per_block, "a size above 0")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The momentum teacher and the consistency loss."""

    enabled: bool = True
    """Off: the shared decoder learns from the images alone (the 'alternating' row of Table 7)."""
    momentum: float = 0.9
    """m of eq. 4 [paper, Table 9]."""
    consistency: float = 50.0
    """lambda_cons of eq. 6 [paper, Table 8]."""
    detach: bool = True
    """Treat the teacher's outputs as fixed targets [paper]; false lets gradients through it to the anchors [MGS]."""
    start: float = 0.0
    """Share of a block's steps before the consistency loss begins [ours; paper: 0]. It holds a decoder back that has
    much to learn yet, so short runs do better with a later start."""

    def __post_init__(self) -> None:
        _check(0 <= self.momentum < 1, "teacher.momentum", self.momentum, "a number in [0, 1)")
        _check(0 <= self.start <= 1, "teacher.start", self.start, "a share in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class WeightingConfig:
    """Reconstruction-guided block weights, eq. 7."""

    enabled: bool = True
    sigma: float = 10.0
    """[MGS; 9 to 13 by scene]"""
    every: int = 1000
    """Block steps between measurements; the weight is 1 before the first [MGS]."""
    source: Literal["measured", "running"] = "measured"
    """What a measurement is: renders of every ``view_stride``-th training view [MGS], or the mean over the views that
    the block has trained since the last one, which costs no render [ours]."""
    ssim_scale: float = _developers(10.0)
    """SSIM differences are multiplied by this before squaring, so lambda of eq. 7 is its square, 100 [MGS]; 0: the
    weights go by PSNR alone (Table 4)."""
    psnr_scale: float = _developers(1.0)
    """The same for PSNR differences in dB [MGS: 1]; 0: the weights go by SSIM alone."""
    view_stride: int = _developers(10)
    """Every n-th training view of the block is measured [MGS]."""
    smoothing: float = _developers(0.9)
    """Share of the old score kept at a measurement [MGS]."""

    def __post_init__(self) -> None:
        _check(self.sigma > 0, "weighting.sigma", self.sigma, "a number above 0")
        _check(self.every >= 1, "weighting.every", self.every, "at least 1")
        _check(self.view_stride >= 1, "weighting.view_stride", self.view_stride, "at least 1")
        _check(0 <= self.smoothing < 1, "weighting.smoothing", self.smoothing, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """k of n: which blocks train when."""

    active: int | Literal["all"] | None = None
    """k, blocks that train in a round, or ``all``; default: the number of ranks. A setting of the experiment, not the
    machine."""
    decoder: Literal["shared", "per_block"] = "shared"
    """One decoder for all blocks [paper], or one of its own for each, as blocks that train independently have it
    (Tables 5 and 7); then without teacher and without ``boundary_finetuning``."""
    interval: int = 500
    """Block steps of a round [MGS]."""
    schedule: Literal["permutation", "sequential", "random", "lagging"] = "permutation"
    """How rounds choose their blocks [ours; MGS: sequential]. ``lagging``: in proportion to the blocks' weights."""
    groups: int = 1
    """Blocks b with b mod groups = g form group g; every round draws equally from each, and a group stays with its
    share of the processes. As many groups as machines keep every block on one machine [ours]."""
    decoder_freeze_rounds: int = 1
    """Epochs of rounds at the end in which the decoder is frozen [ours; in MGS the freeze never fires: 0]."""
    init: Literal["visible", "full"] = "visible"
    """Initial points of a block: those that one of its cameras sees [ours], or the whole cloud [MGS]."""
    windows: bool = False
    """A block trains only the pixels that its own cell makes up, amid the other blocks' anchors as they were when the
    round began, held fixed; so no block repeats another's work and the merge drops nothing [ours; MGS: false]."""
    boundary_finetuning: bool = True
    """In the rounds with a frozen decoder a block trains its own cell amid the other cells as they are, held fixed,
    instead of anchors of its own that the merge drops [ours; MGS: false]."""
    offset_clamping: bool = True
    """Gaussians stay on their anchor's side of the cell's border, so the merge leaves no seam [ours; MGS: false]."""

    def __post_init__(self) -> None:
        _check(not isinstance(self.active, int) or self.active >= 1, "blocks.active", self.active, "at least 1, or all")
        _check(self.interval >= 1, "blocks.interval", self.interval, "at least 1")
        _check(self.decoder_freeze_rounds >= 0, "blocks.decoder_freeze_rounds", self.decoder_freeze_rounds, ">= 0")
        _check(self.groups >= 1, "blocks.groups", self.groups, "at least 1")


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Where blocks rest that are not training [ours]."""

    ram_gb: float | None = None
    """GiB of host memory for inactive blocks, of each process; what is over it goes to disk. Default: half of the
    memory that is free at the start, shared by the processes of the machine."""
    folder: str | None = None
    """Where blocks go that memory cannot hold, best a fast local disk; default ``<out>/store``."""

    def __post_init__(self) -> None:
        _check(self.ram_gb is None or self.ram_gb >= 0, "store.ram_gb", self.ram_gb, "at least 0")


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How the scene is cut and who sees what."""

    blocks: int | Literal["auto"] = 8
    """n, used where ``dim`` is not given: the grid is then chosen to fit the ground plan [paper: 8]. ``auto``: as few
    as keep every block within ``anchors.max_per_block`` and ``anchors.max_gb_per_block``, or without these within half
    of the device's free memory. ``blocks.n`` is another name of this setting."""
    dim: tuple[int, int, int] | None = None
    """Cells along x, y, z of the grid's frame."""
    aabb: tuple[float, float, float, float, float, float] | None = None
    """xmin, ymin, zmin, xmax, ymax, zmax of the uncontracted core, in world axes; default: from cameras and points.
    With an aabb the grid's frame is the world's; without, it stands on the ground plane."""
    balance: Literal["area", "cameras", "points", "contracted"] | None = None
    """What the cuts share out equally on each axis: the ground inside the box [paper], the cameras, or the points; or
    contracted space [MGS], where of 4 cells the outer two hold what lies outside the box. Default: ``contracted`` with
    an aabb, which is how the published ones are meant, else ``points`` [ours]."""
    assign: Literal["ssim", "contribution", "visibility"] = "ssim"
    """Who says which cameras train a block: the coarse image with and without it, a render for each block [MGS]; its
    share in the pixels of one coarse render for all blocks; or the share of the image that the box around its points
    covers, without a coarse model and whatever hides it [ours]."""
    threshold: float = 0.05
    """A camera joins a block when 1 - SSIM of the coarse render with and without the block exceeds this [MGS], or the
    share that the other two ways go by: on the same scale, as scripts/scale/assignment.py measures."""
    min_views: int = 3
    """A block with fewer training views is joined to a neighbour; 0: never. The third view of a place is the first that
    can contradict the other two [ours; MGS: 0]."""
    min_points: int = 10
    """The same for sparse points in its cell [ours; MGS: 0]."""
    coarse: str | None = None
    """Output folder of the coarse model that renders the test; default ``<out>/coarse``."""
    file: str | None = None
    """Partition file; default ``<out>/partition.json``."""

    @property
    def balance_used(self) -> Literal["area", "cameras", "points", "contracted"]:
        """``balance``, with its default filled in."""
        return self.balance or ("points" if self.aabb is None else "contracted")

    def __post_init__(self) -> None:
        _check(self.blocks == "auto" or self.blocks >= 1, "partition.blocks", self.blocks, "at least 1, or auto")
        _check(self.dim is None or min(self.dim) >= 1, "partition.dim", self.dim, "three counts of at least 1")
        _check(self.aabb is None or all(self.aabb[i] < self.aabb[i + 3] for i in range(3)), "partition.aabb",
               self.aabb, "xmin,ymin,zmin,xmax,ymax,zmax with min < max on every axis")
        _check(self.threshold > 0, "partition.threshold", self.threshold, "a number above 0")
        _check(self.min_views >= 0, "partition.min_views", self.min_views, "at least 0")
        _check(self.min_points >= 0, "partition.min_points", self.min_points, "at least 0")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes while it trains. Steps are global steps."""

    every: int = 10
    """Steps between scalar records in events.jsonl and the trackers."""
    tensorboard: bool = True
    wandb: bool = False
    """Also record to Weights & Biases (project ``momentum-gs``; WANDB_MODE=offline is honoured)."""
    checkpoint_every: int = 5000
    """Steps between checkpoints; 0: none by steps. There is always one at the end."""
    checkpoint_minutes: float = 15.0
    """Minutes after which a checkpoint is written anyway; 0: none by time."""
    keep_checkpoints: int = 2
    """The newest so many are kept."""
    test_every: int = 0
    """Steps between scores of the held-out views; 0 scores none while training."""
    link_checkpoints: bool = _developers(False)
    """Blocks that did not train between two checkpoints are one file with two names. Saves most of the time and space
    where n is much larger than k; but harm to such a file harms both."""
    stop_psnr_ssim: tuple[float, float] | None = _developers(None)
    """Stop once the held-out views pass both (used by the time-to-quality script)."""

    def __post_init__(self) -> None:
        _check(self.keep_checkpoints >= 1, "log.keep_checkpoints", self.keep_checkpoints, "at least 1")
        _check(self.checkpoint_minutes >= 0, "log.checkpoint_minutes", self.checkpoint_minutes, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    stage: Literal["coarse", "blocks"] = "blocks"
    """``coarse``: the whole scene as one block, no teacher; ``blocks``: k-of-n training of a partitioned scene."""
    out: str | None = None
    """Output folder (``-m``)."""
    steps: int = 60_000
    """Total block steps of every block [MGS; 30,000 for the coarse model]. A total, not an increment."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where torch and the rasterizer have it, else the CPU."""
    scene: SceneConfig = field(default_factory=SceneConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    appearance: AppearanceConfig = field(default_factory=AppearanceConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    anchors: AnchorsConfig = field(default_factory=AnchorsConfig)
    gaussians: GaussiansConfig = field(default_factory=GaussiansConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    weighting: WeightingConfig = field(default_factory=WeightingConfig)
    blocks: BlocksConfig = field(default_factory=BlocksConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def per_block_decoders(self) -> bool:
        """Whether each block has a decoder of its own; the coarse model is one block with one decoder."""
        return self.stage == "blocks" and self.model.primitive == "anchors" and self.blocks.decoder == "per_block"

    @property
    def starts_from_coarse(self) -> bool:
        """Whether blocks go on with the coarse model's Gaussians."""
        return self.stage == "blocks" and self.model.primitive == "gaussians" and self.gaussians.from_coarse

    @property
    def switched_off(self) -> str:
        """In words, what is off because there are Gaussians in the place of anchors; empty where there are anchors."""
        if self.model.primitive == "anchors":
            return ""
        off = ", ".join(f"{name}={str(value).lower()}" for name, value in NEEDS_ANCHORS.items())
        return f"with model.primitive=gaussians there are neither anchors nor a decoder, so {off}"

    @property
    def idle_sections(self) -> tuple[str, ...]:
        """Sections that do nothing in this experiment; a prefix of the dotted names of their settings."""
        gaussians = ("gaussians.",) if self.model.primitive == "anchors" else ()
        # Not the model: with other corrections, or none, it is another experiment.
        return gaussians + (("appearance.lr", "appearance.smooth") if self.appearance.model == "none" else ())

    def __post_init__(self) -> None:
        _check(self.steps >= 1, "steps", self.steps, "at least 1")
        if self.partition.aabb is not None and self.scene.unit == "auto":
            _check(False, "scene.unit", "auto", "a number with partition.aabb, which is in training units: 1 for an "
                   "aabb in the scene's own coordinates")  # fmt: skip
        if self.model.primitive == "gaussians":
            for name, off in NEEDS_ANCHORS.items():
                section, _, key = name.partition(".")
                value = getattr(getattr(self, section), key)
                _check(value == off, name, value, f"{off} with model.primitive=gaussians: no anchors, no decoder")
        if self.per_block_decoders:
            why = "without a shared decoder (blocks.decoder=per_block, see configs/modes/independent.yaml)"
            _check(not self.teacher.enabled, "teacher.enabled", True, f"false {why}")
            _check(not self.blocks.boundary_finetuning, "blocks.boundary_finetuning", True, f"false {why}")
            _check(not self.blocks.windows, "blocks.windows", True, f"false {why}")
            freeze = self.blocks.decoder_freeze_rounds
            _check(freeze == 0, "blocks.decoder_freeze_rounds", freeze, f"0 {why}")
            _check(self.model.background == "fixed", "model.background", self.model.background, f"fixed {why}")
