"""Learning of per-image pose corrections (docs/poses.md)."""

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
"""Ratio of the last to the first learning rate, as for poses in gsplat's examples."""


class NoPoses(NoRows):
    """Stands in for a table where poses are not corrected (``optim.pose=null``)."""

    table: PoseTable | None = None

    def pose(self, camera: Camera) -> tuple[Camera, Tensor | None]:
        """The camera, unchanged, and no nudge."""
        return camera, None

    def cameras(self, cameras: Sequence[Camera]) -> list[Camera]:
        """The cameras, unchanged."""
        return list(cameras)


class SharedPoses(ImageRows[PoseTable]):
    """The pose corrections of all images; ``NoPoses`` has the same interface.

    The gradient used is that of a further motion from the corrected pose, not that of the table's row. For a correction
    of 0.01 rad (half a degree) the two differ by half a percent, which Adam tolerates.
    """

    def rate(self, config: Config) -> Callable[[float], float]:
        """Block steps done -> learning rate, from ``optim.pose`` to a hundredth of it."""
        assert config.optim.pose is not None
        return exponential(config.optim.pose, config.optim.pose * _LAST_RATE, config.optim.lr_steps)

    def pose(self, camera: Camera) -> tuple[Camera, Tensor | None]:
        """The camera at its corrected pose, and zeros [6] that receive the pose's gradient (``render/nudge.py``); None
        if the poses are fixed in this step."""
        place = self._place[camera.name]
        row = self.row(place)
        nudge = torch.zeros_like(row, requires_grad=True) if self._live else None
        self._shown = None if nudge is None else (place, nudge)
        return moved(camera, row), nudge

    def cameras(self, cameras: Sequence[Camera]) -> list[Camera]:
        """Training cameras at their corrected poses."""
        rows = self.table.rows.cpu()
        return [moved(camera, rows[self._place[camera.name]]) for camera in cameras]


Poses = SharedPoses | NoPoses
"""Both have the same interface."""
NO_POSES = NoPoses()


def make_poses(config: Config, names: Sequence[str], device: torch.device, clock_scale: float, fresh: bool) -> Poses:
    """The pose corrections for ``optim.pose``; blocks start from the coarse run's corrections if there are any.

    Args:
        names: All training images of the scene.
        clock_scale: Block steps per update of the corrections.
        fresh: True: a new run; False: ``load`` follows.

    Raises:
        UserError: if the coarse run's corrections are in other coordinates than those of ``config.scene``.
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
    """Raises UserError if the coarse run had another coordinate frame, in which its corrections mean other motions."""
    coarse, ours = coarse_folder(config), config.scene
    if not (coarse / "config.yaml").is_file():  # A model of another program, which the partition accepts, too.
        return
    theirs = load_config(coarse / "config.yaml").scene
    if not same_frame(theirs, ours):
        raise UserError(
            f"{coarse}: pose corrections with scene.unit={theirs.unit}, scene.offset={theirs.offset}, "
            f"scene.axes={theirs.axes}, expected {ours.unit}, {ours.offset} and {ours.axes} as in this run; train the "
            "coarse model again with these settings, or set optim.pose=null"
        )
