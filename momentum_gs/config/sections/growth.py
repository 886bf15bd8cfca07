"""When anchors and explicit Gaussians are added and removed."""

from dataclasses import dataclass

from momentum_gs.config.sections.checks import check, developers


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
    success_threshold: float = developers(0.8)
    """Share of the steps between growths in which an anchor must have been seen to be eligible [SGS]."""
    depth: int = developers(3)
    """Number of voxel levels [SGS]."""
    hierarchy_factor: int = developers(4)
    """Ratio of the edges of neighbouring levels [SGS]."""

    def __post_init__(self) -> None:
        check(self.interval >= 1, "growth.interval", self.interval, "at least 1")
        check(self.depth >= 1, "growth.depth", self.depth, "at least 1")
        check(0 < self.birth_scale <= 1, "growth.birth_scale", self.birth_scale, "a number in (0, 1]")
        smallest = self.init_factor // self.hierarchy_factor ** (self.depth - 1)
        check(smallest >= 1, "growth.init_factor", self.init_factor,
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
    percent_dense: float = developers(0.01)
    """Largest scale of a Gaussian that is cloned, as a share of ``optim.lr_scale``; larger ones are split [3DGS]."""
    max_world_size: float = developers(0.1)
    """Largest allowed scale, as a share of ``optim.lr_scale``; larger Gaussians are pruned after the first
    ``reset_every`` steps [3DGS]."""
    max_screen_radius: int | None = developers(None)
    """The same for the radius on the screen, pixels. 3DGS sets 20, but clears the radii before it reads them."""

    def __post_init__(self) -> None:
        check(0 <= self.sh_degree <= 3, "gaussians.sh_degree", self.sh_degree, "0, 1, 2 or 3")
        check(self.sh_every >= 1, "gaussians.sh_every", self.sh_every, "at least 1")
        check(self.interval >= 1, "gaussians.interval", self.interval, "at least 1")
        check(self.reset_every >= 0, "gaussians.reset_every", self.reset_every, "at least 0")
        check(0 < self.min_opacity < 1, "gaussians.min_opacity", self.min_opacity, "a number in (0, 1)")
        check(self.max_per_block is None or self.max_per_block >= 1, "gaussians.max_per_block", self.max_per_block,
               "at least 1")
