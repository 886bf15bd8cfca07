"""The per-image pose corrections in training (docs/poses.md)."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from momentum_gs.config.load import load_config
from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera
from momentum_gs.data.frame import same_frame
from momentum_gs.model.poses import ROW_SHAPE, PoseTable, load_poses, moved
from momentum_gs.train.corrections.image_rows import ImageRows, NoRows, first_table
from momentum_gs.train.initialization import coarse_folder
from momentum_gs.train.lr import exponential

_LAST_RATE = 0.01
"""Last learning rate over the first, as gsplat's examples have it for poses."""


class NoPoses(NoRows):
    """In the place of a table (``optim.pose=null``): the poses are as given."""

    table: PoseTable | None = None

    def pose(self, camera: Camera) -> tuple[Camera, Tensor | None]:
        """The camera itself, and no gradient."""
        return camera, None

    def cameras(self, cameras: Sequence[Camera]) -> list[Camera]:
        """The cameras themselves."""
        return list(cameras)


class SharedPoses(ImageRows[PoseTable]):
    """The corrections of all images. The face of ``NoPoses``.

    The gradient is that of a further motion from where the camera is now. For a rotation of 0.01 (half a degree) it
    differs by half a percent from that of the row itself, and Adam does not care for so little.
    """

    def rate(self, config: Config) -> Callable[[float], float]:
        """From ``optim.pose`` to a hundredth of it."""
        assert config.optim.pose is not None
        return exponential(config.optim.pose, config.optim.pose * _LAST_RATE, config.optim.lr_steps)

    def pose(self, camera: Camera) -> tuple[Camera, Tensor | None]:
        """The camera where its image has it now, and a motion of zeros [6] that takes the pose's gradient
        (``render/nudge.py``); None: the poses are fixed."""
        place = self._place[camera.name]
        row = self.row(place)
        nudge = torch.zeros_like(row, requires_grad=True) if self._live else None
        self._shown = None if nudge is None else (place, nudge)
        return moved(camera, row), nudge

    def cameras(self, cameras: Sequence[Camera]) -> list[Camera]:
        """Training cameras where their images have them now."""
        rows = self.table.rows.cpu()
        return [moved(camera, rows[self._place[camera.name]]) for camera in cameras]


Poses = SharedPoses | NoPoses
"""Both have the same interface."""
NO_POSES = NoPoses()


def make_poses(config: Config, names: Sequence[str], device: torch.device, clock_scale: float, fresh: bool) -> Poses:
    """As ``optim.pose`` says; blocks start from the coarse run's corrections where it has some.

    Args:
        names: All training images of the scene.
        clock_scale: Block steps an update.
        fresh: The run begins; False: ``load`` follows.

    Raises:
        UserError: the coarse run's corrections are in other coordinates than those of ``config.scene``.
    """
    if config.optim.pose is None:
        return NO_POSES

    def load(folder: Path) -> PoseTable | None:
        table = load_poses(folder)
        if table is not None:
            _check_frame(config)
        return table

    start = first_table(config, PoseTable, names, ROW_SHAPE, load, fresh)
    return SharedPoses(config, start, device, clock_scale)


def _check_frame(config: Config) -> None:
    """Motions are lengths along axes: in other coordinates they are other ones."""
    coarse, ours = coarse_folder(config), config.scene
    if not (coarse / "config.yaml").is_file():  # A model from elsewhere; the partition takes it as well.
        return
    theirs = load_config(coarse / "config.yaml").scene
    if not same_frame(theirs, ours):
        raise UserError(
            f"{coarse}: corrections of poses with scene.unit={theirs.unit}, scene.offset={theirs.offset}, "
            f"scene.axes={theirs.axes}, expected {ours.unit}, {ours.offset} and {ours.axes} as here; train the coarse "
            "model again with these settings, or set optim.pose=null"
        )
