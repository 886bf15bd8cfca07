"""What a model is made of, and how large a block of anchors may become."""

from dataclasses import dataclass
from typing import Literal

from momentum_gs.config.sections.checks import check, developers


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
    flat_start: bool = False
    """Anchors that start from points start flat along the surface that the points make up [ours]: a head start of short
    runs. Planar models do so in any case; with ``use_feature_bank`` or fewer than six features there is no such start.
    False: the decoder's random weights decide [MGS]."""
    surface: Literal["none", "planar"] = "none"
    """``planar``: Gaussians become flat and lie on the surface, for meshes and depth maps; the settings of ``surface``
    say how (docs/surfaces.md) [PGSR, ours]. ``none``: images alone decide [MGS, 3DGS]."""
    use_feature_bank: bool = developers(False)
    """Blend the anchor's feature at three strides, with weights that depend on the view [SGS, off in MGS]."""
    add_opacity_dist: bool = developers(False)
    """Give the distance to the camera to the opacity head as an input [SGS, off in MGS]."""
    add_cov_dist: bool = developers(False)
    """The same for the covariance head."""
    add_color_dist: bool = developers(False)
    """The same for the colour head."""

    def __post_init__(self) -> None:
        check(self.feature_dim >= 4 and self.feature_dim % 4 == 0, "model.feature_dim", self.feature_dim,
               "a positive multiple of 4 (the feature bank strides by 4)")
        check(self.n_offsets >= 1, "model.n_offsets", self.n_offsets, "at least 1")
        check(self.fill_points >= 0, "model.fill_points", self.fill_points, "at least 0")
        check(self.voxel_size >= 0, "model.voxel_size", self.voxel_size, "0 (automatic) or a size above 0")


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
        check(self.max_per_block is None or self.max_per_block >= 1, "anchors.max_per_block", self.max_per_block,
               "at least 1")
        check(self.max_gb_per_block is None or self.max_gb_per_block > 0, "anchors.max_gb_per_block",
               self.max_gb_per_block, "a size above 0")


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
    every: int = 4
    """Steps from one that draws depth and normals to the next; the terms on them weigh as many times as much there. 1:
    better surfaces, at 2.5 times the time of training for colours alone instead of 1.5 times [ours; PGSR: 1]."""
    neighbours: int = 8
    """Neighbouring views of each view, the nearest that see enough of the same; a step draws one of them [PGSR]."""

    def __post_init__(self) -> None:
        for name in ("flatten", "normals", "geometry", "patches"):
            value = getattr(self, name)
            check(value >= 0, f"surface.{name}", value, "at least 0")
        for name in ("normals_from", "views_from"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"surface.{name}", value, "a share in [0, 1]")
        check(self.every >= 1, "surface.every", self.every, "at least 1")
        check(self.neighbours >= 1, "surface.neighbours", self.neighbours, "at least 1")
