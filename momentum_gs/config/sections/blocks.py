"""Cutting a scene into blocks, their schedule and their store."""

from dataclasses import dataclass
from typing import Literal

from momentum_gs.config.sections.checks import check, developers


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
        check(self.blocks == "auto" or self.blocks >= 1, "partition.blocks", self.blocks, "at least 1, or auto")
        check(self.dim is None or min(self.dim) >= 1, "partition.dim", self.dim, "three counts of at least 1")
        check(self.aabb is None or all(self.aabb[i] < self.aabb[i + 3] for i in range(3)), "partition.aabb",
               self.aabb, "xmin,ymin,zmin,xmax,ymax,zmax with min < max on every axis")
        check(self.threshold > 0, "partition.threshold", self.threshold, "a number above 0")
        check(self.min_views >= 0, "partition.min_views", self.min_views, "at least 0")
        check(self.min_points >= 0, "partition.min_points", self.min_points, "at least 0")


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
    that any camera sees), and the shared decoder, or that of each block, from the coarse model's [ours]; false: from
    points and random weights [MGS]. For Gaussians, see ``gaussians.from_coarse``."""
    windows: bool = False
    """A block trains only the pixels that its own cell makes up and those beside them that it draws anyway, amid the
    other blocks' anchors as they were when the round began, held fixed; so blocks repeat little of each other's work
    and the merge drops nothing [ours; MGS: false]."""
    boundary_finetuning: bool = True
    """In the rounds with a frozen decoder, a block trains only the anchors in its own cell and renders them together
    with the fixed anchors of the other cells, instead of its own anchors there, which the merge drops [ours; MGS:
    false]."""
    offset_clamping: bool = True
    """Keep Gaussians on their anchor's side of the cell's border, so that the merge leaves no seam [ours; MGS:
    false]."""

    saved_decoder: Literal["last", "block_0"] = developers("last")
    """Which decoder is saved: that at the end [ours], or that at the end of block 0's last round, while blocks of later
    rounds continue to train it and are merged with the earlier one [MGS]."""
    decoder_moments: Literal["shared", "per_round"] = developers("shared")
    """Adam moments of the shared decoder: one set [ours], or one for each set of blocks that train together, which is
    stale when their next round begins [MGS]."""

    def __post_init__(self) -> None:
        check(not isinstance(self.active, int) or self.active >= 1, "blocks.active", self.active, "at least 1, or all")
        check(self.interval >= 1, "blocks.interval", self.interval, "at least 1")
        check(self.decoder_freeze_rounds >= 0, "blocks.decoder_freeze_rounds", self.decoder_freeze_rounds, ">= 0")
        check(self.groups >= 1, "blocks.groups", self.groups, "at least 1")


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Where inactive blocks are kept [ours]."""

    ram_gb: float | None = None
    """Host memory for inactive blocks, GiB per process; blocks beyond it are offloaded to disk. Default: half of the
    memory that is free at the start, shared equally by the processes of the machine."""
    folder: str | None = None
    """Folder of the offloaded blocks, preferably on a fast local disk. Default: ``<out>/store``."""

    def __post_init__(self) -> None:
        check(self.ram_gb is None or self.ram_gb >= 0, "store.ram_gb", self.ram_gb, "at least 0")
