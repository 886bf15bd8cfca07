"""The teachers of a student: finished runs of the same scene, and the mean of their renders."""

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.config.run import load_run_config
from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.image import to_uint8
from momentum_gs.core.types import Camera
from momentum_gs.data.frame import same_frame
from momentum_gs.data.scene import Scene
from momentum_gs.data.viewer_files import read_cameras_json
from momentum_gs.model.decoder_bank import Decoder
from momentum_gs.model.io import load_model, model_file, model_folder
from momentum_gs.model.poses import PoseTable, load_poses
from momentum_gs.model.splats import Harmonics, Model, Splats
from momentum_gs.render.view import render_image
from momentum_gs.train.growth.importance import importance


@dataclass(frozen=True)
class Teacher:
    """A trained model of the whole scene."""

    name: str
    """Its run's folder."""
    model: Model
    decoder: Decoder | Harmonics
    background: Float[Tensor, "3"]
    poses: PoseTable | None
    """Poses of the training images that the run has refined."""

    def render(self, camera: Camera) -> Float[Tensor, "3 h w"]:
        """Its image of a view, in [0, 1]; without the colour correction of single images."""
        seen_from = camera if self.poses is None else self.poses.camera(camera)
        return render_image(self.model, self.decoder, seen_from, self.background)

    def positions(self, cameras: Sequence[Camera]) -> Float[Tensor, "n 3"]:
        """Centres of its Gaussians; of an anchor's offsets, those that contribute to one of the views."""
        model = self.model
        if isinstance(model, Splats):
            return model.position.detach()
        seen = importance(model, self.decoder, cameras) > 0
        scale = model.log_scale[:, None, :3].exp()
        return (model.position[:, None] + model.offset * scale).detach().flatten(0, 1)[seen]


def load_teachers(folders: Sequence[str], scene: Scene, ours: SceneConfig, device: torch.device) -> list[Teacher]:
    """The merged (or coarse) models of finished runs.

    Args:
        folders: Output folders of runs.
        scene: The student's scene.
        ours: Its settings, with the coordinates that it is read in (``Frame.recorded``).
        device: Where teachers are rendered.

    Raises:
        UserError: a run has no merged model, or is of another scene, another split, other image sizes or coordinates.
    """
    teachers = []
    for name in folders:
        out = Path(name)
        theirs = load_run_config(out).scene
        ply = model_file(model_folder(out))
        _check(out, scene, theirs, ours)
        model, decoder = load_model(ply)
        background = torch.full((3,), float(theirs.white_background), device=device)
        teachers.append(
            Teacher(name, model.to(device), decoder.to(device).eval(), background, load_poses(ply.parent))
        )
    return teachers


def _check(out: Path, scene: Scene, theirs: SceneConfig, ours: SceneConfig) -> None:
    """Raises UserError if a run's views or coordinates are not those of the student."""
    if not same_frame(theirs, ours):
        there, here = (f"{s.unit}, {s.offset} and {s.axes}" for s in (theirs, ours))
        raise UserError(
            f"{out}: scene.unit, scene.offset and scene.axes are {there}, expected {here} as for the student; name "
            "teachers of the student's coordinates"
        )
    if not (out / "cameras.json").is_file():  # An imported model; its coordinates are all that is known.
        return
    found, wanted = read_cameras_json(out / "cameras.json"), [*scene.test, *scene.train]
    names, our_names = [camera.name for camera in found], [camera.name for camera in wanted]
    if sorted(names) != sorted(our_names):
        first = min(set(names) ^ set(our_names))
        whose = "the teacher's" if first in names else "the student's"
        raise UserError(
            f"{out}: trained on another scene ({len(names)} images, expected {len(our_names)}; {first} is {whose} "
            "alone); name runs of one scene"
        )
    if names != our_names:  # Held-out views come first.
        raise UserError(
            f"{out}: trained with other held-out views, which would leak into the student; use the same "
            "scene.test_every or scene.test_list"
        )
    for one, other in zip(found, wanted, strict=True):
        if (one.width, one.height) != (other.width, other.height):
            raise UserError(
                f"{out}: {one.name} has {one.width}x{one.height} pixels there, expected {other.width}x{other.height} "
                "as for the student; use the same scene.resolution"
            )


class PseudoLabels:
    """The mean of the teachers' renders of a view, rounded to 8 bits like the images.

    Renders are kept on disk up to a bound. As every view is shown once in an epoch, those that do not fit are rendered
    anew each time: a cache that replaced the oldest would then have none of the coming ones. Kept or not, a view's
    label has the same bits.
    """

    def __init__(self, teachers: Sequence[Teacher], folder: Path, max_bytes: int) -> None:
        """
        Args:
            teachers: At least one.
            folder: For the files of this process alone; its content is removed.
            max_bytes: Bound on their size; 0: nothing is kept.
        """
        self._teachers, self._folder, self._left = teachers, folder, max_bytes
        self._kept: set[str] = set()
        shutil.rmtree(folder, ignore_errors=True)

    def image(self, camera: Camera) -> Float[Tensor, "3 h w"]:
        """In [0, 1], on the teachers' device."""
        # Hashed, as the names of images may have folders.
        file = self._folder / f"{hashlib.sha256(camera.name.encode()).hexdigest()[:16]}.npy"
        if file.name in self._kept:
            return torch.from_numpy(np.load(file)).to(self._teachers[0].background.device).float() / 255
        rounded = to_uint8(mean_render(self._teachers, camera))
        if rounded.nbytes <= self._left:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as part, part.open("wb") as opened:
                np.save(opened, rounded.cpu().numpy())
            self._left -= rounded.nbytes
            self._kept.add(file.name)
        return rounded.float() / 255

    def close(self) -> None:
        """Removes the files."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # The parent folder holds other ranks' files, or does not exist.
            self._folder.parent.rmdir()


def mean_render(teachers: Sequence[Teacher], camera: Camera) -> Float[Tensor, "3 h w"]:
    """The mean of the teachers' images of a view, in [0, 1]."""
    return torch.stack([teacher.render(camera) for teacher in teachers]).mean(dim=0)
