"""Every setting of an experiment: typed, frozen and checked on construction.

The docstring under a field gives its meaning, its unit and the origin of its default: [MGS] the official Momentum-GS
code, [SGS] Scaffold-GS, [3DGS] the original code, [paper] the Momentum-GS paper, [ours] a decision of this project
(docs/fidelity.md lists those). A block step is a step that one block has trained; a scene unit is the unit of the
scene's files; a training unit is ``scene.unit`` scene units.
"""

import re
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from momentum_gs.core.errors import UserError

NEEDS_ANCHORS = {
    "teacher.enabled": False, "blocks.boundary_finetuning": False, "blocks.offset_clamping": False,
    "model.background": "fixed",
}  # fmt: skip
"""Settings that need anchors or a decoder, with the values that ``model.primitive=gaussians`` gives them."""

_COUNT = re.compile(r"(?=.*[1-9])\d+(?:\.\d+)?[kM%]?")
"""A number of Gaussians above 0, or a share."""

Axis = Literal["x", "y", "z", "-x", "-y", "-z"]
"""A signed axis of the scene's coordinates."""


T = TypeVar("T")


def _developers(default: T) -> T:
    """A setting that only developers of the program change; such settings come last in their section."""
    return field(default=default, metadata={"developers": True})


def _check(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise UserError(f"config: {name} is {value!r}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """Where the images are and which of them train."""

    path: str | None = None
    """Scene folder (``-s``): with ``images/`` and ``sparse/0``, with ``train/`` and ``val/`` as Mega-NeRF has them, or
    with ``transforms.json``."""
    images: str = "images"
    """Name of the image folder (``-i``)."""
    resolution: float = -1.0
    """``-r``: 1, 2, 4 and 8 divide the image size; any other positive number is the image width in pixels; -1 limits
    the width to 1600 [SGS]."""
    test_every: int = 8
    """Every n-th image, in order of name, is held out [SGS]; 0: none. Ignored where there is a ``test_list`` or a
    ``val/`` folder."""
    test_list: str | None = None
    """File with one held-out image name per line. Default: ``sparse/0/test.txt`` or ``test_list.txt`` of the scene,
    where there is one."""
    white_background: bool = False
    """``-w``: composite onto white instead of black."""
    cache_gb: float = 4.0
    """Largest size of the cache of decoded images, GiB of host memory per process [ours]."""
    bad_images: Literal["fail", "skip"] = "fail"
    """What happens when an image cannot be read: the run ends (``fail``), or the image is left out of training and the
    number of such images is reported (``skip``) [ours]."""
    masks: str = "masks"
    """Folder in the scene with a mask for each image, ``<image name>.png``; black pixels are ignored in the loss, in
    scores and in growth. Empty: no masks are used [ours]."""
    undistort: bool = False
    """Undistort images of cameras with lens distortion into ``undistort_folder``; without this, such a scene is an
    error [ours]."""
    points: str | None = None
    """Initial points instead of the scene's own: a PLY, LAS or LAZ file in the scene's coordinates, or ``random``
    (100,000 random points where the cameras look) [ours]."""
    offset: tuple[float, float, float] | None = None
    """Subtracted from all coordinates of the scene, scene units. Default: zero, unless the cameras are so far from the
    origin (100 times their extent) that float32 would blur the scene; then their rounded centre. With ``unit: auto``
    the default is always their centre. A run writes the offset that it used to its ``config.yaml`` [ours]."""
    unit: float | Literal["auto"] = 1.0
    """Scene units in one training unit: all coordinates are divided by this number. 1: training uses the scene's own
    coordinates [SGS, MGS]. ``auto``: the unit in which the median distance from the cameras to the points is 5, so that
    the same settings suit a scene in metres, in feet or in COLMAP's arbitrary unit. All lengths in settings, including
    ``partition.aabb``, and all results are in training units. A run writes the unit that it used to its
    ``config.yaml`` [ours]."""
    axes: tuple[Axis, Axis, Axis] | None = None
    """Axes of the scene that become x, y and z of the training coordinates, e.g. ``[x, -z, y]``. Default: the scene's
    own; with ``unit: auto`` those that point up (z) and from the cameras to the points (x). A run writes the axes that
    it used to its ``config.yaml`` [ours]."""
    undistort_folder: str = _developers("undistorted")
    """Folder of the undistorted copies, relative to the scene; it may be deleted at any time [ours]."""

    def __post_init__(self) -> None:
        _check(self.resolution == -1 or self.resolution > 0, "scene.resolution", self.resolution, "-1 or above 0")
        _check(self.test_every >= 0 and self.test_every != 1, "scene.test_every", self.test_every, "0 or at least 2")
        _check(self.cache_gb > 0, "scene.cache_gb", self.cache_gb, "a size above 0")
        _check(self.unit == "auto" or self.unit > 0, "scene.unit", self.unit, "auto, or a number above 0")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Anchors and decoder."""

    feature_dim: int = 32
    """Length of an anchor's feature vector [MGS]."""
    n_offsets: int = 10
    """Number of Gaussians that one anchor spawns, K [MGS]."""
    voxel_size: float = 1e-4
    """Edge of the voxels that each hold one initial anchor, training units [MGS]; 0: the median distance of a point to
    its nearest neighbour [SGS]."""
    primitive: Literal["anchors", "gaussians"] = "anchors"
    """What a block learns: anchors with a decoder, or explicit Gaussians as in 3DGS (docs/baseline_3dgs.md)."""
    fill_points: float = 0.0
    """Upper bound on the number of fill points, as a multiple of the number of the scene's points. Fill points are
    initial points added where training images see a surface but no point lies, at a depth interpolated from the points
    around [ours]. 0: none."""
    background: Literal["fixed", "constant", "directional"] = "fixed"
    """What a pixel shows where no Gaussian covers it. ``fixed``: black, or white with ``scene.white_background`` [MGS];
    ``constant``: one learned colour, shared by all blocks like the decoder [ours]; ``directional``: a learned colour
    that depends on the viewing direction, spherical harmonics of degree 2, also shared [ours]."""
    surface: Literal["none", "planar"] = "none"
    """``planar``: Gaussians become flat and lie on the surface, for meshes and depth maps; the settings of ``surface``
    say how (docs/surfaces.md) [PGSR, ours]. ``none``: images alone decide [MGS, 3DGS]."""
    use_feature_bank: bool = _developers(False)
    """Blend the anchor's feature at three strides, with weights that depend on the view [SGS, off in MGS]."""
    add_opacity_dist: bool = _developers(False)
    """Give the distance to the camera to the opacity head as an input [SGS, off in MGS]."""
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
    feature_lr: float = _developers(0.0075)
    """Learning rate of the anchors' features [MGS]."""
    opacity_mlp_lr: tuple[float, float] = _developers((0.002, 2e-5))
    """Learning rates of the decoder's opacity head [MGS]."""
    cov_mlp_lr: tuple[float, float] = _developers((0.004, 0.004))
    """Learning rates of the decoder's covariance head [MGS]."""
    color_mlp_lr: tuple[float, float] = _developers((0.008, 5e-5))
    """Learning rates of the decoder's colour head [MGS]."""
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
    """Share of the SSIM term: the image loss is (1 - dssim) * L1 + dssim * (1 - SSIM) [MGS]."""
    volume: float = 0.01
    """Weight of the mean product of the Gaussians' scales [SGS, MGS; absent from the paper]."""
    depth: float = 0.0
    """Weight of the mean relative error of the rendered inverse depth at the sparse points that an image observes; each
    point counts by its reprojection error and track length. Needs a COLMAP model with tracks [ours]. 0: off."""

    def __post_init__(self) -> None:
        _check(0 <= self.dssim <= 1, "loss.dssim", self.dssim, "a number in [0, 1]")
        _check(self.depth >= 0, "loss.depth", self.depth, "at least 0")


@dataclass(frozen=True, kw_only=True)
class SurfaceConfig:
    """Loss terms of ``model.surface=planar``, in stages: colours and flat Gaussians from the start, then a view's depth
    against its normals, then two views against each other. Clocks are shares of a block's steps."""

    flatten: float = 100.0
    """Weight of the mean smallest scale of the Gaussians, training units [PGSR]."""
    normals: float = 0.015
    """Weight of the difference between the normals of a view's depth map and its blended normals [PGSR]. 0: off."""
    normals_from: float = 0.25
    """Share of the steps after which that term begins [ours; PGSR: 0.23]."""
    geometry: float = 0.03
    """Weight of the distance in pixels by which surface points miss their pixel after the way to a neighbouring view's
    surface and back [PGSR]. 0: off."""
    patches: float = 0.15
    """Weight of 1 - correlation between grey patches of the image and those of a neighbouring view's, warped by the
    surface [PGSR]. 0: off."""
    views_from: float = 0.4
    """Share of the steps after which the terms of two views begin; each renders another view [ours; PGSR: 0.23]."""
    neighbours: int = 8
    """Neighbouring views of each view, the nearest that see enough of the same; a step draws one of them [PGSR]."""

    def __post_init__(self) -> None:
        for name in ("flatten", "normals", "geometry", "patches"):
            value = getattr(self, name)
            _check(value >= 0, f"surface.{name}", value, "at least 0")
        for name in ("normals_from", "views_from"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"surface.{name}", value, "a share in [0, 1]")
        _check(self.neighbours >= 1, "surface.neighbours", self.neighbours, "at least 1")


@dataclass(frozen=True, kw_only=True)
class AppearanceConfig:
    """A colour correction for each training image, shared by all blocks that see it (docs/appearance.md)."""

    model: Literal["none", "affine", "bilateral"] = "none"
    """Correction that the loss applies to a render before comparing it with the training image: none [MGS]; ``affine``:
    an affine map of the colours (3x4); ``bilateral``: one that varies over the image and with brightness (a grid of
    16x16x8 such maps). Held-out views are rendered without a correction."""
    lr: tuple[float, float] = (0.01, 0.001)
    """Learning rates of the corrections; they decay like the pairs of ``optim`` [3DGS: exposure learning rates]."""
    smooth: float = 0.0
    """Weight of a loss term that keeps the corrections of images taken one after the other similar; needs images with
    capture times [ours]. 0: off."""

    def __post_init__(self) -> None:
        _check(self.smooth >= 0, "appearance.smooth", self.smooth, "at least 0")


@dataclass(frozen=True, kw_only=True)
class GrowthConfig:
    """When anchors are added and removed. Steps are block steps."""

    start_stat: int = 500
    """First step whose gradients are accumulated [MGS]."""
    from_step: int = 300
    """First step at which anchors may be added and removed [MGS]."""
    until: int = 30_000
    """Last step at which gradients are accumulated and anchors added and removed [MGS; 15,000 for the coarse model]."""
    interval: int = 25
    """Steps between growths [MGS; 100 in SGS]."""
    grad_threshold: float = 2e-4
    """Mean norm of the screen-space gradient (NDC) above which an offset grows a new anchor [SGS]."""
    min_opacity: float = 0.005
    """Anchors with a smaller mean opacity are pruned [SGS]."""
    init_factor: int = 128
    """Edge of the coarsest growth voxel, as a multiple of ``model.voxel_size`` [MGS; 16 in SGS]."""
    birth_scale: float = 1.0
    """Largest scale of a new anchor's Gaussians, as a share of the edge of its voxel [SGS: 1]. New anchors cover what
    is rendered already; small ones change the render little and grow where they are needed [ours]."""
    max_log_scale: float | None = 0.05
    """Upper bound that each growth sets on the natural logarithm of the Gaussians' scales in training units [SGS:
    e^0.05 = 1.05 units]. It shrinks the few large Gaussians that cover what nothing else does. Null: no bound
    [ours]."""
    success_threshold: float = _developers(0.8)
    """Share of the steps between growths in which an anchor must have been seen to be eligible [SGS]."""
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
    """The baseline of explicit Gaussians, used with ``model.primitive=gaussians``. Steps are block steps. It also uses
    ``optim.lr_steps``, ``optim.lr_scale`` and ``optim.eps``, but no other settings of ``optim``, ``growth`` and
    ``anchors``."""

    sh_degree: int = 3
    """Highest degree of the colours' spherical harmonics, 0 to 3 [3DGS]."""
    sh_every: int = 1000
    """Steps after which the active degree rises by one [3DGS]; with ``from_coarse``, blocks begin with all degrees."""
    position_lr: tuple[float, float] = (1.6e-4, 1.6e-6)
    """Learning rates of the positions, multiplied by ``optim.lr_scale``; they decay like the pairs of ``optim``
    [3DGS]."""
    opacity_lr: float = 0.05
    """Learning rate of the opacities [3DGS as published; 0.025 in its later code]."""
    scaling_lr: float = 0.005
    """Learning rate of the scales [3DGS]."""
    from_step: int = 500
    """Densification begins after this step [3DGS]."""
    until: int = 15_000
    """First step without accumulation of gradients, densification and opacity resets [3DGS]."""
    interval: int = 100
    """Steps between densifications [3DGS]."""
    grad_threshold: float = 2e-4
    """Mean norm of the screen-space gradient (NDC) from which a Gaussian is cloned or split [3DGS]."""
    min_opacity: float = 0.005
    """Gaussians with a smaller opacity are pruned [3DGS]."""
    reset_every: int = 3000
    """Steps between opacity resets, which lower all opacities to at most 0.01; 0: no resets [3DGS]."""
    max_per_block: int | None = None
    """Number of Gaussians in a block at which densification stops; those with the largest gradients are densified
    first. Null: no bound [ours]."""
    from_coarse: bool = True
    """Start a block from those Gaussians of the coarse model that its cameras see [CityGaussian]; false: from
    points."""
    percent_dense: float = _developers(0.01)
    """Largest scale of a Gaussian that is cloned, as a share of ``optim.lr_scale``; larger ones are split [3DGS]."""
    max_world_size: float = _developers(0.1)
    """Largest allowed scale, as a share of ``optim.lr_scale``; larger Gaussians are pruned after the first
    ``reset_every`` steps [3DGS]."""
    max_screen_radius: int | None = _developers(None)
    """The same for the radius on the screen, pixels. 3DGS sets 20, but clears the radii before it reads them."""

    def __post_init__(self) -> None:
        _check(0 <= self.sh_degree <= 3, "gaussians.sh_degree", self.sh_degree, "0, 1, 2 or 3")
        _check(self.sh_every >= 1, "gaussians.sh_every", self.sh_every, "at least 1")
        _check(self.interval >= 1, "gaussians.interval", self.interval, "at least 1")
        _check(self.reset_every >= 0, "gaussians.reset_every", self.reset_every, "at least 0")
        _check(0 < self.min_opacity < 1, "gaussians.min_opacity", self.min_opacity, "a number in (0, 1)")
        _check(self.max_per_block is None or self.max_per_block >= 1, "gaussians.max_per_block", self.max_per_block,
               "at least 1")


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
        _check(self.noise >= 0, "distill.noise", self.noise, "at least 0")
        _check(0 <= self.dropout < 1, "distill.dropout", self.dropout, "a share in [0, 1)")
        for name in ("noise_every", "dropout_every", "structure_every", "grid", "prune_at", "keep_at"):
            _check(getattr(self, name) >= 1, f"distill.{name}", getattr(self, name), "at least 1")
        for name in ("lambda_kd", "structure", "labels_gb"):
            _check(getattr(self, name) >= 0, f"distill.{name}", getattr(self, name), "at least 0")
        _check(0 < self.keep <= 1, "distill.keep", self.keep, "a share in (0, 1]")
        if self.pick == "merge":
            _check(self.start == "teacher", "distill.pick", "merge", "sample or most with distill.start=points")
        if self.gaussians is not None:
            _check(_COUNT.fullmatch(self.gaussians) is not None, "distill.gaussians", self.gaussians,
                   "a number such as 500000 or 0.5M, or a share such as 20%")
            _check(self.prune_at <= self.keep_at, "distill.keep_at", self.keep_at,
                   f"at least distill.prune_at = {self.prune_at}")

    def count(self, of: int) -> int | None:
        """``gaussians`` as a number; ``of``: that of which it may be a share. None: no bound."""
        if self.gaussians is None:
            return None
        number, unit = self.gaussians.rstrip("kM%"), self.gaussians[-1]
        return int(float(number) * {"k": 1e3, "M": 1e6, "%": of / 100}.get(unit, 1.0))


@dataclass(frozen=True, kw_only=True)
class AnchorsConfig:
    """How large a block may grow [ours]."""

    max_per_block: int | None = None
    """Number of anchors in a block at which growth stops; candidates with the largest gradients are added first.
    Null: no bound."""
    max_gb_per_block: float | None = None
    """The same bound as GiB that a block takes while it trains: anchors, gradients, Adam moments and growth statistics.
    The view that is being rendered takes memory besides. Null: no bound."""

    def __post_init__(self) -> None:
        _check(self.max_per_block is None or self.max_per_block >= 1, "anchors.max_per_block", self.max_per_block,
               "at least 1")
        _check(self.max_gb_per_block is None or self.max_gb_per_block > 0, "anchors.max_gb_per_block",
               self.max_gb_per_block, "a size above 0")


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
        _check(0 <= self.momentum < 1, "teacher.momentum", self.momentum, "a number in [0, 1)")
        _check(0 <= self.start <= 1, "teacher.start", self.start, "a share in [0, 1]")


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
    ssim_scale: float = _developers(10.0)
    """Factor on SSIM differences before they are squared; lambda of eq. 7 is its square, 100 [MGS]. 0: the weights
    depend on PSNR alone (Table 4)."""
    psnr_scale: float = _developers(1.0)
    """The same for PSNR differences in dB [MGS: 1]. 0: the weights depend on SSIM alone."""
    view_stride: int = _developers(10)
    """Every n-th training view of the block is measured [MGS]."""
    smoothing: float = _developers(0.9)
    """Share of the old score that a measurement keeps [MGS]."""

    def __post_init__(self) -> None:
        _check(self.sigma > 0, "weighting.sigma", self.sigma, "a number above 0")
        _check(self.every >= 1, "weighting.every", self.every, "at least 1")
        _check(self.view_stride >= 1, "weighting.view_stride", self.view_stride, "at least 1")
        _check(0 <= self.smoothing < 1, "weighting.smoothing", self.smoothing, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class BlocksConfig:
    """Which k of the n blocks train in each round."""

    active: int | Literal["all"] | None = None
    """k, the number of blocks that train in a round, or ``all``. Default: the number of ranks. The result depends on
    this number, but not on how many ranks share the k blocks."""
    decoder: Literal["shared", "per_block"] = "shared"
    """One decoder for all blocks [paper], or one per block, for blocks that train independently (Table 5); the latter
    excludes the teacher and ``boundary_finetuning``."""
    interval: int = 500
    """Block steps in a round [MGS]."""
    schedule: Literal["permutation", "sequential", "random", "lagging"] = "permutation"
    """How rounds choose their blocks [ours; MGS: sequential]. ``lagging``: in proportion to the blocks' weights."""
    groups: int = 1
    """Blocks b with b mod groups = g form group g. Every round draws equally many blocks from each group, and a group
    always trains on the same share of the processes. With one group per machine, no block moves between machines
    [ours]."""
    decoder_freeze_rounds: int = 1
    """Epochs at the end of the run in which the decoder is frozen; an epoch is the rounds in which every block trains
    once [ours; 0 in MGS, where the freeze never takes effect]."""
    init: Literal["visible", "full"] = "visible"
    """Initial points of a block: ``visible``: those that at least one of its cameras sees [ours]; ``full``: all points
    of the scene [MGS]."""
    from_coarse: bool = False
    """Start a block from those anchors of the coarse model that its cameras see (with ``windows``: those in its cell
    that any camera sees), and the shared decoder from the coarse model's [ours]; false: from points and random weights
    [MGS]. For Gaussians, see ``gaussians.from_coarse``."""
    windows: bool = False
    """A block trains only the pixels that its own cell makes up, amid the other blocks' anchors as they were when the
    round began, held fixed; so no block repeats another's work and the merge drops nothing [ours; MGS: false]."""
    boundary_finetuning: bool = True
    """In the rounds with a frozen decoder, a block trains only the anchors in its own cell and renders them together
    with the fixed anchors of the other cells, instead of its own anchors there, which the merge drops [ours; MGS:
    false]."""
    offset_clamping: bool = True
    """Keep Gaussians on their anchor's side of the cell's border, so that the merge leaves no seam [ours; MGS:
    false]."""

    saved_decoder: Literal["last", "block_0"] = _developers("last")
    """Which decoder is saved: that at the end [ours], or that at the end of block 0's last round, while blocks of later
    rounds continue to train it and are merged with the earlier one [MGS]."""
    decoder_moments: Literal["shared", "per_round"] = _developers("shared")
    """Adam moments of the shared decoder: one set [ours], or one for each set of blocks that train together, which is
    stale when their next round begins [MGS]."""

    def __post_init__(self) -> None:
        _check(not isinstance(self.active, int) or self.active >= 1, "blocks.active", self.active, "at least 1, or all")
        _check(self.interval >= 1, "blocks.interval", self.interval, "at least 1")
        _check(self.decoder_freeze_rounds >= 0, "blocks.decoder_freeze_rounds", self.decoder_freeze_rounds, ">= 0")
        _check(self.groups >= 1, "blocks.groups", self.groups, "at least 1")


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Where inactive blocks are kept [ours]."""

    ram_gb: float | None = None
    """Host memory for inactive blocks, GiB per process; blocks beyond it are offloaded to disk. Default: half of the
    memory that is free at the start, shared equally by the processes of the machine."""
    folder: str | None = None
    """Folder of the offloaded blocks, preferably on a fast local disk. Default: ``<out>/store``."""

    def __post_init__(self) -> None:
        _check(self.ram_gb is None or self.ram_gb >= 0, "store.ram_gb", self.ram_gb, "at least 0")


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How the scene is cut into blocks, and which cameras train each block."""

    blocks: int | Literal["auto"] = 8
    """n, the number of blocks, used where ``dim`` is not given; the grid is then chosen to fit the ground plan [paper:
    8]. ``auto``: the fewest that keep every block within ``anchors.max_per_block`` and ``anchors.max_gb_per_block``,
    or, without these, within half of the device's free memory. ``blocks.n`` is another name of this setting."""
    dim: tuple[int, int, int] | None = None
    """Number of cells along x, y and z of the grid's frame."""
    aabb: tuple[float, float, float, float, float, float] | None = None
    """xmin, ymin, zmin, xmax, ymax, zmax of the uncontracted core, world axes, training units. Default: from cameras
    and points. With an aabb, the grid's axes are the world's; without, the grid is aligned with the ground plane."""
    balance: Literal["area", "cameras", "points", "contracted"] | None = None
    """What the cuts along each axis divide equally: the ground inside the box (``area``) [paper], the cameras, the
    points, or contracted space [MGS], in which the outer two of 4 cells hold what lies outside the box. Default:
    ``contracted`` with an aabb, for which the published boxes are made; else ``points`` [ours]."""
    assign: Literal["ssim", "contribution", "visibility"] = "ssim"
    """How the cameras of a block are chosen. ``ssim``: by the difference between coarse renders with and without the
    block, one render per block [MGS]; ``contribution``: by the block's share in the pixels of one coarse render, which
    serves all blocks [ours]; ``visibility``: by the share of the image that the box around the block's points covers,
    which needs no coarse model but ignores occlusion [ours]."""
    threshold: float = 0.05
    """A camera trains a block if 1 - SSIM of the coarse renders with and without the block exceeds this [MGS], or if
    the share used by the other two values of ``assign`` does; all three are on the same scale, as
    scripts/scale/assignment.py measures."""
    min_views: int = 3
    """A block with fewer training views is joined to a neighbour; 0: never. A place needs three views for one to be
    able to contradict the other two [ours; MGS: 0]."""
    min_points: int = 10
    """A block with fewer sparse points in its cell is joined to a neighbour; 0: never [ours; MGS: 0]."""
    coarse: str | None = None
    """Output folder of the coarse model from which cameras are assigned. Default: ``<out>/coarse``."""
    file: str | None = None
    """Partition file. Default: ``<out>/partition.json``."""

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
class CompressConfig:
    """How a device's model is compressed before it is sent (docs/aggregation.md) [ours]."""

    max_loss_db: float | None = 0.3
    """Gaussians that contribute least to the block's own views are pruned as long as PSNR on these views, after
    quantization, stays within this many dB. Null: nothing is pruned."""
    max_mb: float | None = None
    """Prune until the file has at most this many megabytes (10^6 bytes), whatever that costs; ``max_loss_db`` is then
    ignored."""
    steps: int = 100
    """Steps of training after each cut, which removes 30 % of the Gaussians."""

    def __post_init__(self) -> None:
        loss = self.max_loss_db
        _check(loss is None or loss >= 0, "compress.max_loss_db", loss, "at least 0, or null")
        _check(self.max_mb is None or self.max_mb > 0, "compress.max_mb", self.max_mb, "a size above 0, or null")
        _check(self.steps >= 0, "compress.steps", self.steps, "at least 0")


@dataclass(frozen=True, kw_only=True)
class AggregateConfig:
    """How models of devices become one (docs/aggregation.md) [ours]."""

    tree: tuple[int, int] | None = None
    """Devices of an edge, and number of edges; their product is at least the number of blocks. Default: one edge for
    each group of ``blocks.groups``."""
    steps: int = 300
    """Steps of self-distillation at each edge and in the cloud; 0: models are only cropped and joined."""
    images: int = 0
    """Images that each device may send with its model, at training resolution; 0: images stay on the device."""
    surface: float = 0.0
    """Weight of the depth and the normals of the models before aggregation; 0: only their colours are learned."""

    def __post_init__(self) -> None:
        _check(self.tree is None or min(self.tree) >= 1, "aggregate.tree", self.tree, "two counts of at least 1")
        _check(self.steps >= 0, "aggregate.steps", self.steps, "at least 0")
        _check(self.images >= 0, "aggregate.images", self.images, "at least 0")
        _check(self.surface >= 0, "aggregate.surface", self.surface, "at least 0")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run writes while it trains. Steps are global steps."""

    every: int = 10
    """Steps between records of scalars in events.jsonl, TensorBoard and Weights & Biases."""
    tensorboard: bool = True
    """Also record to TensorBoard."""
    wandb: bool = False
    """Also record to Weights & Biases (project ``momentum-gs``; WANDB_MODE=offline is honoured)."""
    checkpoint_every: int = 5000
    """Steps between checkpoints; 0: none by steps. The end of a run always writes one."""
    checkpoint_minutes: float = 15.0
    """Minutes after which a checkpoint is written in any case; 0: none by time."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep; older ones are deleted."""
    test_every: int = 0
    """Steps between evaluations of the held-out views; 0: none during training."""
    link_checkpoints: bool = _developers(False)
    """Hard-link the files of blocks that did not train between two checkpoints instead of writing them again. This
    saves most of the time and space where n is much larger than k, but damage to such a file affects both
    checkpoints."""
    stop_psnr_ssim: tuple[float, float] | None = _developers(None)
    """Stop once the held-out views exceed both this PSNR (dB) and this SSIM (used by the time-to-quality script)."""

    def __post_init__(self) -> None:
        _check(self.keep_checkpoints >= 1, "log.keep_checkpoints", self.keep_checkpoints, "at least 1")
        _check(self.checkpoint_minutes >= 0, "log.checkpoint_minutes", self.checkpoint_minutes, "at least 0")


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
        _check(self.steps >= 1, "steps", self.steps, "at least 1")
        if self.partition.aabb is not None and self.scene.unit == "auto":
            _check(False, "scene.unit", "auto", "a number with partition.aabb, which is in training units: 1 for an "
                   "aabb in the scene's own coordinates")  # fmt: skip
        if self.model.primitive == "gaussians":
            for name, off in NEEDS_ANCHORS.items():
                section, _, key = name.partition(".")
                value = getattr(getattr(self, section), key)
                _check(value == off, name, value, f"{off} with model.primitive=gaussians: no anchors, no decoder")
        if self.model.primitive == "gaussians" and self.distill.gaussians is not None:
            last, until = min(self.distill.prune_at, self.steps), self.gaussians.until
            _check(self.distill.keep_at <= self.steps, "distill.keep_at", self.distill.keep_at, "at most steps")
            _check(until <= last, "gaussians.until", until,
                   f"at most distill.prune_at = {last} with distill.gaussians, whose number would be exceeded again")
        if self.distill.teachers:
            primitive = self.model.primitive
            _check(primitive == "gaussians", "model.primitive", primitive, "gaussians with distill.teachers")
            _check(self.optim.pose is None, "optim.pose", self.optim.pose, "null with distill.teachers")
        if self.per_block_decoders:
            why = "without a shared decoder (blocks.decoder=per_block, see configs/modes/independent.yaml)"
            _check(not self.teacher.enabled, "teacher.enabled", True, f"false {why}")
            _check(not self.blocks.boundary_finetuning, "blocks.boundary_finetuning", True, f"false {why}")
            _check(not self.blocks.windows, "blocks.windows", True, f"false {why}")
            _check(not self.blocks.from_coarse, "blocks.from_coarse", True, f"false {why}")
            freeze = self.blocks.decoder_freeze_rounds
            _check(freeze == 0, "blocks.decoder_freeze_rounds", freeze, f"0 {why}")
            _check(self.model.background == "fixed", "model.background", self.model.background, f"fixed {why}")
