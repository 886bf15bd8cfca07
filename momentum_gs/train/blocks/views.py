"""The views and initial points of each block, for the coarse stage and for blocks."""

from dataclasses import dataclass

from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_any_view
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene


@dataclass(frozen=True)
class BlockPlan:
    """Views of every block."""

    train: list[list[Camera]]
    """Training views by block; a view may serve several blocks."""
    test: list[list[Camera]]
    """Held-out views by the block whose cell holds the camera."""

    def __len__(self) -> int:
        return len(self.train)


def plan_blocks(scene: Scene, table: PartitionTable | None) -> BlockPlan:
    """The views of each block; without a table the whole scene is one block (coarse stage).

    Raises:
        UserError: where a block has no view to train on.
    """
    if table is None:
        return BlockPlan([scene.train], [scene.test])
    by_name = {camera.name: camera for camera in scene.train}
    train = [[by_name[name] for name in names] for names in table.views]
    empty = [block for block, cameras in enumerate(train) if not cameras]
    if empty:
        raise UserError(
            f"partition: block(s) {empty} of {table.n} have no training view; use fewer blocks or a lower "
            "partition.threshold, then re-run 'momentum-gs partition'"
        )
    test: list[list[Camera]] = [[] for _ in train]
    for camera in scene.test:
        test[table.owner(camera)].append(camera)
    return BlockPlan(train, test)


def initial_points(scene: Scene, cameras: list[Camera], config: Config) -> PointCloud:
    """The points in at least one of the block's views; all points in the coarse stage and with ``blocks.init=full``.

    Anchors of points outside all views of the block would never get a gradient.
    """
    points = scene.points
    if config.stage == "coarse" or config.blocks.init == "full":
        return points
    seen = in_any_view(points.xyz, cameras)
    return PointCloud(points.xyz[seen], points.rgb[seen])
