"""All corrections that a run learns for its images: of colours and of poses."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.data.capture_times import capture_times
from momentum_gs.data.scene import Scene
from momentum_gs.model.appearance import APPEARANCE_FILE, save_appearance
from momentum_gs.model.poses import POSES_FILE, save_poses
from momentum_gs.train.corrections.appearance import NO_APPEARANCE, Appearance, make_appearance
from momentum_gs.train.corrections.appearance_smooth import neighbours_in_time
from momentum_gs.train.corrections.image_rows import NoRows
from momentum_gs.train.corrections.poses import NO_POSES, Poses, make_poses


@dataclass(frozen=True)
class Corrections:
    """Tables with a row for each training image, updated in the same steps as the decoder."""

    appearance: Appearance = NO_APPEARANCE
    poses: Poses = NO_POSES

    @property
    def gradients(self) -> tuple[Tensor, ...]:
        """To be replaced by their sums over the ranks before ``finish_step`` is called."""
        return self.appearance.gradients + self.poses.gradients

    def begin_step(self, live: bool, n_active: int) -> None:
        """``live``: False: all corrections are fixed in this step; ``n_active``: k, active blocks of all ranks."""
        self.appearance.begin_step(live, n_active)
        self.poses.begin_step(live, n_active)

    def take_gradient(self, position: int) -> None:
        """Stores the gradients of the last image shown; ``position``: index of its block among the active ones."""
        self.appearance.take_gradient(position)
        self.poses.take_gradient(position)

    def finish_step(self) -> None:
        """Updates the rows of the images shown in this step."""
        self.appearance.finish_step()
        self.poses.finish_step()

    def retime(self, config: Config) -> None:
        """Takes the learning rates of ``config`` from the next step on; for a run with revised steps (``Pace``)."""
        self.appearance.retime(config)
        self.poses.retime(config)

    def files(self) -> dict[str, tuple[dict[str, Tensor], dict[str, str]]]:
        """File name in a checkpoint -> (tensors, metadata), for the tables that are learned."""
        parts = {APPEARANCE_FILE: self.appearance, POSES_FILE: self.poses}
        learned = {name: part for name, part in parts.items() if not isinstance(part, NoRows)}
        return {name: (part.to_tensors(), part.metadata()) for name, part in learned.items()}

    def load(self, folder: Path) -> None:
        """Reads the ``files`` of a checkpoint, bit for bit.

        Raises:
            UserError: if they are for other images.
        """
        self.appearance.load(folder / APPEARANCE_FILE)
        self.poses.load(folder / POSES_FILE)

    def save(self, folder: Path) -> None:
        """Writes the tables into a model folder."""
        if (colours := self.appearance.table) is not None:
            save_appearance(folder, colours)
        if (poses := self.poses.table) is not None:
            save_poses(folder, poses)


NO_CORRECTIONS = Corrections()


def make_corrections(
    config: Config, scene: Scene, device: torch.device, clock_scale: float, fresh: bool
) -> Corrections:
    """The corrections that the settings ask for; arguments and errors as of ``make_appearance`` and ``make_poses``."""
    config = replace(config, scene=scene.frame.recorded(config.scene))
    names = [camera.name for camera in scene.train]
    smooth = config.appearance.model != "none" and config.appearance.smooth > 0
    neighbours = neighbours_in_time(scene.path, names, capture_times(scene)) if smooth else {}
    return Corrections(
        make_appearance(config, names, device, clock_scale, fresh, neighbours),
        make_poses(config, names, device, clock_scale, fresh),
    )
