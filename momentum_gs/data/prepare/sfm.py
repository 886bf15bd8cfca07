"""Structure from motion with pycolmap, in resumable stages: features, matches, mapping, undistortion.

``prepare/pairs.py`` decides which pairs of images are matched.
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
from momentum_gs.data.prepare.files import JPEG_QUALITY, find_images, link, place_model, refuse_unreadable, workers
from momentum_gs.data.prepare.pairs import LINKED, Fixes, Matching, choose_pairs, linked_groups, resolve
from momentum_gs.data.prepare.retrieval import similar_pairs

Cameras = Literal["folder", "image"]

LENSES = ("OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE", "RADIAL", "SIMPLE_RADIAL", "PINHOLE")
"""Lens models of COLMAP to choose from; PINHOLE is for undistorted images."""

SNAPSHOT = 50
"""Images that are registered between two snapshots of mapping: at most what an interruption loses."""
IMAGES_AT_ONCE = 100
"""Images that are undistorted in one call: at most what an interruption loses."""

MAPPING: dict[str, float] = {
    # COLMAP runs global bundle adjustment after every tenth more images; between, the neighbourhood of a new image
    # suffices for its pose.
    "ba_global_frames_ratio": 1.4, "ba_global_points_ratio": 1.4, "ba_global_max_refinements": 2,
    "ba_local_max_refinements": 1, "ba_local_max_num_iterations": 10,
}  # fmt: skip
"""Changes to COLMAP's defaults for mapping, which reduce its time to between a third and a half (figures in
docs/prepare_data.md)."""


@dataclass(frozen=True, kw_only=True)
class SfmSettings:
    """Settings of structure from motion that affect the result."""

    matching: Matching = "auto"
    cameras: Cameras = "folder"
    """``folder``: images of one folder and size share a camera; ``image``: each image has its own."""
    camera_model: str = "OPENCV"
    """COLMAP's name of the lens model: OPENCV has two radial and two tangential terms."""
    max_features: int = MAX_FEATURES


@dataclass(frozen=True)
class Reconstructed:
    """The largest model that mapping found."""

    model: Path
    """Folder of COLMAP's files, in COLMAP's own coordinates, with the distorted cameras."""
    registered: list[str]
    """Names of the images in the model."""
    missing: list[str]
    """Names of the images that are not in it."""
    other_models: list[list[str]]
    """Image names of each other model, largest first, without those in ``registered``."""
    apart: list[str]
    """Names of missing images that share too few matches with any other image."""


class Sfm:
    """The stages for one set of images.

    Args:
        photos: Folder of the images.
        out: Folder of the scene; the stages work in ``out/sfm``.
        settings: Settings that affect the result.

    Every method raises UserError if pycolmap is missing, or if the images cannot be reconstructed.
    """

    def __init__(self, photos: Path, out: Path, settings: SfmSettings) -> None:
        import_pycolmap()  # Fails before any folder is created.
        self._images, self._work, self._settings = out / "images", out / "sfm", settings
        self._undistorted = self._work / "undistorted"
        # ``images`` will be replaced, which must not happen to a user's own folder.
        if self._images.exists() and not self._undistorted.exists():
            raise UserError(
                f"prepare: {self._images} is there already, and not from an earlier 'prepare'; choose another folder "
                "for the scene"
            )
        self._names, self._photos = _without_spaces(photos, self._work)
        if len(self._names) < 3:
            raise UserError(
                f"prepare: {len(self._names)} images in {photos}, expected at least 3, and about 20 for a "
                "scene that is worth training; add images"
            )
        self._shop = Workshop(self._photos, self._names, self._work)
        self._pycolmap = self._shop.pycolmap

    def reconstruct(self) -> Reconstructed:
        """Runs features, matching and mapping; stages that are complete are kept."""
        groups = camera_groups(self._photos, self._names, self._settings.cameras)
        lens = {"camera_model": self._settings.camera_model}
        self._shop.extract([(names, lens) for names in groups], self._settings.max_features)
        self._shop.match({"matching": self._settings.matching}, self._pairs)
        self._shop.stage("mapping", {}, self._map)
        return self._largest()

    @property
    def spent(self) -> dict[str, tuple[float, float]]:
        """Wall-clock and CPU seconds of each stage that was run now."""
        return self._shop.spent

    def fixes(self) -> Fixes:
        """Latitude and longitude (degrees) and height (metres, 0 if unknown) of images with GPS, by name."""
        with self._shop.open_database() as database:
            names = {image.image_id: image.name for image in database.read_all_images()}
            found = {}
            for place in database.read_all_pose_priors():
                latitude, longitude, height = (float(v) for v in place.position)
                # Cameras without a fix write zeros.
                if place.coordinate_system.name == "WGS84" and (latitude or longitude):
                    found[names[place.corr_data_id.id]] = latitude, longitude, height if height == height else 0.0
        return found

    def undistort(self, result: Reconstructed, resolution: float) -> Path:
        """Writes the scene's undistorted ``images``; returns the folder of their PINHOLE model, COLMAP coordinates.

        Args:
            result: The result of ``reconstruct``.
            resolution: The ``-r`` of 3DGS codebases; for images of mixed sizes, the largest determines the limit.
        """

        def undistort(resumes: bool) -> None:
            shutil.rmtree(self._images, ignore_errors=True)
            if not resumes:
                shutil.rmtree(self._undistorted, ignore_errors=True)
            cameras = self._pycolmap.Reconstruction(str(result.model)).cameras.values()
            sides = [(camera.width, camera.height) for camera in cameras]
            sizes = [target_size(*side, resolution) for side in sides]
            if self._settings.camera_model == "PINHOLE" and sizes == sides:
                # Nothing to undistort, and COLMAP would encode the images again.
                place_model(self._undistorted / "sparse", result.model)
                for name in result.registered:
                    link((self._photos / name).resolve(), self._images / name)
                return
            self._undistort(result, max(map(max, sizes)))
            (self._undistorted / "images").rename(self._images)

        self._shop.stage("undistortion", {"resolution": resolution}, undistort)
        return self._undistorted / "sparse"

    def place(self, model: Path, similarity: Similarity, target: Path) -> None:
        """Writes a transformed model, including its observations, to ``target``, replacing the model there."""
        reconstruction = self._pycolmap.Reconstruction(str(model))
        rotation = self._pycolmap.Rotation3d(similarity.rotation.numpy())
        reconstruction.transform(self._pycolmap.Sim3d(similarity.scale, rotation, similarity.translation.numpy()))
        target.mkdir(parents=True, exist_ok=True)
        reconstruction.write(str(target))

    def _undistort(self, result: Reconstructed, side: int) -> None:
        """Undistorts the images in portions; continues after the number of images in ``count.txt``."""
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
        """Pairs to match; prints how they were chosen."""
        fixes = self.fixes()
        way = resolve(self._settings.matching, self._names, fixes)
        pairs = choose_pairs(self._names, way, fixes, similar_pairs(self._shop) if way == "retrieval" else ())
        info(f"matching: {way}, {len(pairs)} pairs of {len(self._names)} images, {len(fixes)} of them with GPS")
        return pairs

    def _links(self) -> list[tuple[str, str]]:
        """Pairs with enough matches for mapping."""
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
        # After a complete model there may be others, for which a start from a snapshot would not search.
        newest = self._newest(snapshots) if resumes and not any(models.glob("*")) else None
        if newest is None:
            shutil.rmtree(snapshots, ignore_errors=True)
        shutil.rmtree(models, ignore_errors=True)
        # COLMAP writes models that it starts to numbered folders, but one that it continues to the given folder itself.
        (models / "0" if newest else models).mkdir(parents=True)
        snapshots.mkdir(exist_ok=True)
        options = self._pycolmap.IncrementalPipelineOptions()
        options.num_threads = workers()
        options.snapshot_path, options.snapshot_frames_freq = str(snapshots), SNAPSHOT
        options.min_model_size = 3  # Smaller than COLMAP's 10, to report which images belong together.
        for name, value in MAPPING.items():
            setattr(options, name, value)
        # Thousands of points constrain the same poses, so bundle adjustment uses a well-spread selection of them.
        options.mapper.ba_global_ignore_redundant_points3D = True
        with progress(len(self._names), "mapping") as bar:
            if newest is not None:
                known = self._pycolmap.Reconstruction(str(newest)).num_reg_images()
                info(f"mapping: continues from {known} images")
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
        """The last complete snapshot."""
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
        # Models may share images, so names in the largest model are removed from the others.
        others = [sorted(set(names) - set(registered)) for names in models.values()]
        apart = {name for group in linked_groups(self._names, self._links()) if len(group) == 1 for name in group}
        return Reconstructed(
            largest, registered, missing, sorted(filter(None, others), key=len, reverse=True),
            sorted(apart & set(missing)),
        )  # fmt: skip


def camera_groups(photos: Path, names: Sequence[str], cameras: Cameras) -> list[list[str]]:
    """The names in one list per camera: those of one folder and size, or each on its own."""
    if cameras == "image":
        return [[name] for name in names]
    sizes: dict[str, tuple[int, int]] = {}
    errors: dict[Path, UserError] = {}
    for name in names:
        path = (photos / name).resolve()  # Not the name of a link of ours.
        try:
            sizes[name] = image_size(path)
        except UserError as error:
            errors[path] = error
    refuse_unreadable(errors, len(names))

    def key(name: str) -> tuple[str, tuple[int, int]]:
        return Path(name).parent.as_posix(), sizes[name]

    return [list(group) for _, group in groupby(sorted(names, key=key), key=key)]


def _without_spaces(photos: Path, work: Path) -> tuple[list[str], Path]:
    """Image names without spaces, and the folder in which images have these names.

    COLMAP splits its lists of pairs at spaces. If any name has a space, all images get links with underscores instead.
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
