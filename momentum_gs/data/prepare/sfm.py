"""Structure from motion with pycolmap, in stages that are each done once: features, matches, mapping, undistortion.

Which pairs of images are matched is decided in ``prepare_pairs``.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import info, progress
from momentum_gs.data.images import image_size, target_size
from momentum_gs.data.prepare.align import Similarity
from momentum_gs.data.prepare.features import MAX_FEATURES, Workshop, import_pycolmap
from momentum_gs.data.prepare.files import JPEG_QUALITY, find_images, link, place_model, workers
from momentum_gs.data.prepare.pairs import LINKED, Fixes, Matching, choose_pairs, linked_groups, resolve

Cameras = Literal["folder", "image"]

LENSES = ("OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE", "RADIAL", "SIMPLE_RADIAL", "PINHOLE")
"""COLMAP's lens models to choose from; PINHOLE for images that have no distortion any more."""

SNAPSHOT = 50
"""Images that mapping takes in between two snapshots: what a kill loses."""
IMAGES_AT_ONCE = 100
"""Images of one call of undistortion: what a kill loses."""

MAPPING: dict[str, float] = {
    # COLMAP adjusts the whole model at every tenth more; between, the next poses need the neighbourhood only.
    "ba_global_frames_ratio": 1.4, "ba_global_points_ratio": 1.4, "ba_global_max_refinements": 2,
    "ba_local_max_refinements": 1, "ba_local_max_num_iterations": 10,
}  # fmt: skip
"""How mapping differs from COLMAP's defaults, for a third to a half of the time; docs/prepare_data.md has figures."""


@dataclass(frozen=True, kw_only=True)
class SfmSettings:
    """What decides how the result looks."""

    matching: Matching = "auto"
    cameras: Cameras = "folder"
    """Images of one folder and size share a camera, or each has its own."""
    camera_model: str = "OPENCV"
    """COLMAP's name of the lens model: OPENCV has two radial and two tangential terms."""
    max_features: int = MAX_FEATURES


@dataclass(frozen=True)
class Reconstructed:
    """The largest model that mapping found."""

    model: Path
    """COLMAP's files, in COLMAP's own frame, lenses as they are."""
    registered: list[str]
    """Names of its images."""
    missing: list[str]
    """Names of the others."""
    other_models: list[list[str]]
    """Names of the models that were found beside it, the largest first."""
    apart: list[str]
    """Names of those that are missing and share too little with any other image."""


class Sfm:
    """The stages for one set of images.

    Args:
        photos: Their folder.
        out: The scene's; the stages work in ``out/sfm``.
        settings: What decides how the result looks.

    Raises (from every method) UserError where pycolmap is missing, and for what the images do not allow.
    """

    def __init__(self, photos: Path, out: Path, settings: SfmSettings) -> None:
        import_pycolmap()  # Before anything is made.
        self._images, self._work, self._settings = out / "images", out / "sfm", settings
        self._undistorted = self._work / "undistorted"
        # They will be replaced, which must not befall anybody's own.
        if self._images.exists() and not self._undistorted.exists():
            raise UserError(
                f"prepare: {self._images} is there already, and not from an earlier 'prepare'; choose another folder "
                "for the scene"
            )
        self._names, self._photos = _without_spaces(photos, self._work)
        if len(self._names) < 3:
            raise UserError(
                f"prepare: {len(self._names)} images in {photos}, expected at least 3, and some 20 for a scene that is "
                "worth training; add images"
            )
        self._shop = Workshop(self._photos, self._names, self._work)
        self._pycolmap = self._shop.pycolmap

    def reconstruct(self) -> Reconstructed:
        """Features, matches, mapping; what is done already is kept."""
        groups = camera_groups(self._photos, self._names, self._settings.cameras)
        lens = {"camera_model": self._settings.camera_model}
        self._shop.extract([(names, lens) for names in groups], self._settings.max_features)
        self._shop.match({"matching": self._settings.matching}, self._pairs)
        self._shop.stage("mapping", {}, self._map)
        return self._largest()

    @property
    def spent(self) -> dict[str, tuple[float, float]]:
        """Seconds of each stage that was done now, on the clock and of all cores."""
        return self._shop.spent

    def fixes(self) -> Fixes:
        """Where images with GPS were taken; a height that is not known is 0."""
        with self._shop.open_database() as database:
            names = {image.image_id: image.name for image in database.read_all_images()}
            found = {}
            for place in database.read_all_pose_priors():
                latitude, longitude, height = (float(v) for v in place.position)
                # Cameras that had no fix yet write zeros.
                if place.coordinate_system.name == "WGS84" and (latitude or longitude):
                    found[names[place.corr_data_id.id]] = latitude, longitude, height if height == height else 0.0
        return found

    def undistort(self, result: Reconstructed, resolution: float) -> Path:
        """Writes the scene's ``images`` for PINHOLE cameras; returns the folder of their model, in COLMAP's frame.

        Args:
            result: Of ``reconstruct``.
            resolution: The ``-r`` of 3DGS codebases; images of mixed sizes are bounded by that of the largest.
        """

        def undistort(resumes: bool) -> None:
            shutil.rmtree(self._images, ignore_errors=True)
            if not resumes:
                shutil.rmtree(self._undistorted, ignore_errors=True)
            cameras = self._pycolmap.Reconstruction(str(result.model)).cameras.values()
            sides = [(camera.width, camera.height) for camera in cameras]
            sizes = [target_size(*side, resolution) for side in sides]
            if self._settings.camera_model == "PINHOLE" and sizes == sides:
                # Nothing to do, and COLMAP would encode the images again.
                place_model(self._undistorted / "sparse", result.model)
                for name in result.registered:
                    link((self._photos / name).resolve(), self._images / name)
                return
            self._undistort(result, max(map(max, sizes)))
            (self._undistorted / "images").rename(self._images)

        self._shop.stage("undistortion", {"resolution": resolution}, undistort)
        return self._undistorted / "sparse"

    def place(self, model: Path, similarity: Similarity, target: Path) -> None:
        """Writes a model in another frame, observations and all, over the one in ``target``."""
        reconstruction = self._pycolmap.Reconstruction(str(model))
        rotation = self._pycolmap.Rotation3d(similarity.rotation.numpy())
        reconstruction.transform(self._pycolmap.Sim3d(similarity.scale, rotation, similarity.translation.numpy()))
        target.mkdir(parents=True, exist_ok=True)
        reconstruction.write(str(target))

    def _undistort(self, result: Reconstructed, side: int) -> None:
        """Writes the images, some at once; goes on after those that a note counts."""
        options = self._pycolmap.UndistortCameraOptions()
        options.max_image_size = side
        note, names = self._undistorted / "count.txt", result.registered
        begun = note.is_file() and (self._undistorted / "images").is_dir()
        start = int(note.read_text(encoding="utf-8")) if begun else 0
        with progress(len(names), "undistortion") as bar:
            bar.update(start)
            for i in range(start, len(names), IMAGES_AT_ONCE):
                some = names[i : i + IMAGES_AT_ONCE]
                self._pycolmap.undistort_images(
                    self._undistorted, result.model, self._photos, image_names=some, undistort_options=options,
                    jpeg_quality=JPEG_QUALITY, num_threads=workers(),
                )  # fmt: skip
                with replacing(note) as part:
                    part.write_text(str(i + len(some)), encoding="utf-8")
                bar.update(len(some))

    def _pairs(self) -> list[tuple[str, str]]:
        """Pairs to match, and a line that says how they were chosen."""
        fixes = self.fixes()
        way = resolve(self._settings.matching, self._names, fixes)
        pairs = choose_pairs(self._names, way, fixes)
        info(f"matching: {way}, {len(pairs)} pairs of {len(self._names)} images, {len(fixes)} of them with GPS")
        return pairs

    def _links(self) -> list[tuple[str, str]]:
        """Pairs that share enough for mapping."""
        with self._shop.open_database() as database:
            names = {image.image_id: image.name for image in database.read_all_images()}
            ids, counts = database.read_two_view_geometry_num_inliers()
        pairs = (self._pycolmap.pair_id_to_image_pair(i) for i, n in zip(ids, counts, strict=True) if n >= LINKED)
        return [(names[a], names[b]) for a, b in pairs]

    def _map(self, resumes: bool) -> None:
        groups = linked_groups(self._names, self._links())
        if len(groups[0]) < 2:
            raise UserError(
                f"prepare: no two of {len(self._names)} images show the same place ({LINKED} common points and more), "
                "expected neighbours to overlap by half or more; take images closer together, or try --matching "
                "exhaustive"
            )
        models, snapshots = self._work / "models", self._work / "snapshots"
        # A model that is complete may be followed by others, which a start from a snapshot would not look for.
        newest = self._newest(snapshots) if resumes and not any(models.glob("*")) else None
        if newest is None:
            shutil.rmtree(snapshots, ignore_errors=True)
        shutil.rmtree(models, ignore_errors=True)
        # COLMAP numbers models that it starts, and writes the one that goes on to the folder itself.
        (models / "0" if newest else models).mkdir(parents=True)
        snapshots.mkdir(exist_ok=True)
        options = self._pycolmap.IncrementalPipelineOptions()
        options.num_threads = workers()
        options.snapshot_path, options.snapshot_frames_freq = str(snapshots), SNAPSHOT
        options.min_model_size = 3  # Smaller ones than COLMAP's 10, to say which images belong together.
        for name, value in MAPPING.items():
            setattr(options, name, value)
        # Of thousands of points that hold the same poses, a spread selection; the others follow them.
        options.mapper.ba_global_ignore_redundant_points3D = True
        with progress(len(self._names), "mapping") as bar:
            if newest is not None:
                known = self._pycolmap.Reconstruction(str(newest)).num_reg_images()
                info(f"mapping: goes on from {known} images")
                bar.update(known)
            found = self._pycolmap.incremental_mapping(
                self._shop.database, self._photos, models / "0" if newest else models, options=options,
                next_image_callback=bar.update, input_path=newest or "",
            )  # fmt: skip
        if not found:
            raise UserError(
                f"prepare: {len(groups[0])} of {len(self._names)} images overlap (first: {', '.join(groups[0][:3])}), "
                "but no two of them start a model, expected neighbours that were taken from different places and "
                "overlap by half or more; take more images, or try --matching exhaustive"
            )
        shutil.rmtree(snapshots)

    def _newest(self, snapshots: Path) -> Path | None:
        """The last snapshot that is whole."""
        for folder in sorted(snapshots.glob("*"), key=lambda folder: folder.name, reverse=True):
            try:
                self._pycolmap.Reconstruction(str(folder))
            except (ValueError, RuntimeError, OSError):  # Killed while it was written.
                continue
            return folder
        return None

    def _largest(self) -> Reconstructed:
        models = {}
        for folder in sorted((self._work / "models").iterdir()):
            reconstruction = self._pycolmap.Reconstruction(str(folder))
            models[folder] = sorted(reconstruction.image(i).name for i in reconstruction.reg_image_ids())
        largest = max(models, key=lambda folder: len(models[folder]))
        registered = models.pop(largest)
        missing = sorted(set(self._names) - set(registered))
        # A model may share images with another; what is left out is reported once.
        others = [sorted(set(names) - set(registered)) for names in models.values()]
        apart = {name for group in linked_groups(self._names, self._links()) if len(group) == 1 for name in group}
        return Reconstructed(
            largest, registered, missing, sorted(filter(None, others), key=len, reverse=True),
            sorted(apart & set(missing)),
        )  # fmt: skip


def camera_groups(photos: Path, names: Sequence[str], cameras: Cameras) -> list[list[str]]:
    """The names, one list for each camera: those of one folder and size, or each alone."""
    if cameras == "image":
        return [[name] for name in names]

    def key(name: str) -> tuple[str, tuple[int, int]]:
        return Path(name).parent.as_posix(), image_size(photos / name)

    return [list(group) for _, group in groupby(sorted(names, key=key), key=key)]


def _without_spaces(photos: Path, work: Path) -> tuple[list[str], Path]:
    """Names of the images, and the folder that has them by these names.

    COLMAP's lists of pairs are split at spaces. Where a name has one, all get links, with underscores for spaces.
    """
    names = find_images(photos)
    if not any(character.isspace() for name in names for character in name):
        return names, photos
    renamed = {"".join("_" if c.isspace() else c for c in name): name for name in names}
    if len(renamed) < len(names):
        raise UserError(f"prepare: {len(names) - len(renamed)} images differ only in spaces or '_'; rename them")
    links = work / "photos"
    shutil.rmtree(links, ignore_errors=True)
    for new, name in renamed.items():
        (links / new).parent.mkdir(parents=True, exist_ok=True)
        os.symlink((photos / name).absolute(), links / new)
    return sorted(renamed), links
