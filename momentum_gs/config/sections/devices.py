"""Models that are compressed, sent and joined."""

from dataclasses import dataclass

from momentum_gs.config.sections.checks import check


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """How a device's model is compressed before it is sent (docs/aggregation.md) [ours]."""

    max_loss_db: float | None = 0.3
    """Gaussians whose removal changes the block's own views least are pruned as long as PSNR on these views, after
    quantization, stays within this many dB. Null: nothing is pruned."""
    max_mb: float | None = None
    """Prune until the file has at most this many megabytes (10^6 bytes), whatever that costs; ``max_loss_db`` is then
    ignored."""
    steps: int = 100
    """Steps of training after each cut, which removes 30 % of the Gaussians."""

    def __post_init__(self) -> None:
        loss = self.max_loss_db
        check(loss is None or loss >= 0, "compress.max_loss_db", loss, "at least 0, or null")
        check(self.max_mb is None or self.max_mb > 0, "compress.max_mb", self.max_mb, "a size above 0, or null")
        check(self.steps >= 0, "compress.steps", self.steps, "at least 0")


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
        check(self.tree is None or min(self.tree) >= 1, "aggregate.tree", self.tree, "two counts of at least 1")
        check(self.steps >= 0, "aggregate.steps", self.steps, "at least 0")
        check(self.images >= 0, "aggregate.images", self.images, "at least 0")
        check(self.surface >= 0, "aggregate.surface", self.surface, "at least 0")
