"""Structure from motion with pycolmap, in stages that are each done once: features, matches, mapping, undistortion.

Which pairs of photographs are matched is decided here: all pairs of few, neighbours by GPS where there is GPS,
neighbours in order of name otherwise.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Literal

import torch

from momentum_gs.core.errors import UserError
from momentum_gs.core.log import progress, say
from momentum_gs.data.images import image_size, target_size
from momentum_gs.data.prepare_align import Similarity, geodetic_to_enu, local_origin
from momentum_gs.data.prepare_features import MAX_FEATURES, Workshop, import_pycolmap, nearest_pairs
from momentum_gs.data.prepare_files import JPEG_QUALITY, find_pictures, link, place_model, workers

Matching = Literal["auto", "exhaustive", "spatial", "sequential"]
Cameras = Literal["folder", "image"]

LENSES = ("OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE", "RADIAL", "SIMPLE_RADIAL", "PINHOLE")
"""COLMAP's lens models to choose from; PINHOLE for pictures that have no distortion any more."""

EXHAUSTIVE = 150
"""Up to so many photographs every pair is matched: 11,175 pairs."""
OVERLAP = 20
"""By name: every photograph with the next so many; and further ones at distances of powers of two."""


@dataclass(frozen=True, kw_only=True)
class SfmSettings:
    """What decides how the result looks."""

    matching: Matching = "auto"
    cameras: Cameras = "folder"
    """Photographs of one folder and size share a camera, or each has its own."""
    camera_model: str = "OPENCV"
    """COLMAP's name of the lens model: OPENCV has two radial and two tangential terms."""
    max_features: int = MAX_FEATURES


@dataclass(frozen=True)
class Reconstructed:
    """The largest model that mapping found."""

    model: Path
    """COLMAP's files, in COLMAP's own frame, lenses as they are."""
    registered: list[str]
    """Names of its photographs."""
    missing: list[str]
    """Names of the others."""
    other_models: list[int]
    """Numbers of photographs of the models that were found beside it."""


class Sfm:
    """The stages for one set of photographs.

    Args:
        photos: Their folder.
        out: The scene's; the stages work in ``out/sfm``.
        settings: What decides how the result looks.

    Raises (from every method) UserError where pycolmap is missing, and for what the photographs do not allow.
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
            raise UserError(f"prepare: {len(self._names)} photographs in {photos}, expected at least 3")
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

    def fixes(self) -> dict[str, tuple[float, float, float]]:
        """Latitude, longitude (degrees) and height (metres, 0 where it is not known) of photographs with GPS."""
        with self._shop.open_database() as database:
            names = {image.image_id: image.name for image in database.read_all_images()}
            found = {}
            for prior in database.read_all_pose_priors():
                latitude, longitude, height = (float(v) for v in prior.position)
                # Cameras that had no fix yet write zeros.
                if prior.coordinate_system.name == "WGS84" and (latitude or longitude):
                    found[names[prior.corr_data_id.id]] = latitude, longitude, height if height == height else 0.0
        return found

    def undistort(self, result: Reconstructed, resolution: float) -> Path:
        """Writes the scene's ``images`` for PINHOLE cameras; returns the folder of their model, in COLMAP's frame.

        Args:
            result: Of ``reconstruct``.
            resolution: The family's ``-r``; pictures of mixed sizes are bounded by that of the largest.
        """

        def undistort(_: bool) -> None:
            for folder in (self._undistorted, self._images):
                shutil.rmtree(folder, ignore_errors=True)
            cameras = self._pycolmap.Reconstruction(str(result.model)).cameras.values()
            sides = [(camera.width, camera.height) for camera in cameras]
            sizes = [target_size(*side, resolution) for side in sides]
            if self._settings.camera_model == "PINHOLE" and sizes == sides:
                # Nothing to do, and COLMAP would encode the pictures again.
                place_model(self._undistorted / "sparse", result.model)
                for name in result.registered:
                    link((self._photos / name).resolve(), self._images / name)
                return
            options = self._pycolmap.UndistortCameraOptions()
            options.max_image_size = max(map(max, sizes))
            self._pycolmap.undistort_images(
                self._undistorted, result.model, self._photos, undistort_options=options, jpeg_quality=JPEG_QUALITY,
                num_threads=workers(),
            )  # fmt: skip
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

    def _pairs(self) -> list[tuple[str, str]]:
        """Pairs to match, and a line that says how they were chosen."""
        fixes, way = self.fixes(), self._settings.matching
        if way == "auto":
            located = len(fixes) >= 0.9 * len(self._names)
            way = "exhaustive" if len(self._names) <= EXHAUSTIVE else "spatial" if located else "sequential"
        pairs = choose_pairs(self._names, way, fixes)
        say(f"matching: {way}, {len(pairs)} pairs of {len(self._names)} photographs, {len(fixes)} of them with GPS")
        return pairs

    def _map(self, _: bool) -> None:
        models = self._work / "models"
        shutil.rmtree(models, ignore_errors=True)
        models.mkdir()
        options = self._pycolmap.IncrementalPipelineOptions()
        options.num_threads = workers()
        with progress(len(self._names), "mapping") as bar:
            found = self._pycolmap.incremental_mapping(
                self._shop.database, self._photos, models, options=options, next_image_callback=bar.update
            )
        if not found:
            raise UserError(
                "prepare: mapping found no two photographs to start from, expected neighbours to overlap by half or "
                "more; take more photographs, or try --matching exhaustive"
            )

    def _largest(self) -> Reconstructed:
        models = {}
        for folder in sorted((self._work / "models").iterdir()):
            reconstruction = self._pycolmap.Reconstruction(str(folder))
            models[folder] = sorted(reconstruction.image(i).name for i in reconstruction.reg_image_ids())
        largest = max(models, key=lambda folder: len(models[folder]))
        registered = models.pop(largest)
        missing = sorted(set(self._names) - set(registered))
        return Reconstructed(largest, registered, missing, sorted(map(len, models.values()), reverse=True))


def choose_pairs(
    names: Sequence[str], way: Matching, fixes: dict[str, tuple[float, float, float]]
) -> list[tuple[str, str]]:
    """Pairs of names to match, each once, in order.

    Args:
        names: In order.
        way: ``spatial`` takes photographs without a fix as neighbours of those next to them by name.
        fixes: Geodetic positions, ``Sfm.fixes``.

    Raises:
        UserError: for ``spatial`` with too few fixes.
    """
    if way == "exhaustive":
        return list(combinations(names, 2))
    pairs = set()
    ahead = [*range(1, OVERLAP + 1), *(2**power for power in range(5, 16))]
    for i, name in enumerate(names):
        if way == "sequential" or name not in fixes:
            pairs |= {(name, names[i + step]) for step in ahead if i + step < len(names)}
            # Those behind, too: they may have a fix, and none of them would look here.
            pairs |= {(names[i - step], name) for step in ahead if step <= i}
    if way == "spatial":
        if len(fixes) < 2:
            raise UserError(
                f"prepare: {len(fixes)} photographs have GPS, expected more for spatial matching; choose another with "
                "--matching"
            )
        located = [name for name in names if name in fixes]
        geodetic = torch.tensor([fixes[name] for name in located], dtype=torch.float64)
        places = geodetic_to_enu(geodetic, local_origin(geodetic))[:, :2]
        pairs |= nearest_pairs(located, places)
    return sorted(pairs)


def camera_groups(photos: Path, names: Sequence[str], cameras: Cameras) -> list[list[str]]:
    """The names, one list for each camera: those of one folder and size, or each alone."""
    if cameras == "image":
        return [[name] for name in names]

    def key(name: str) -> tuple[str, tuple[int, int]]:
        return Path(name).parent.as_posix(), image_size(photos / name)

    return [list(group) for _, group in groupby(sorted(names, key=key), key=key)]


def _without_spaces(photos: Path, work: Path) -> tuple[list[str], Path]:
    """Names of the photographs, and the folder that has them by these names.

    COLMAP's lists of pairs are split at spaces. Where a name has one, all get links, with underscores for spaces.
    """
    names = find_pictures(photos)
    if not any(character.isspace() for name in names for character in name):
        return names, photos
    renamed = {"".join("_" if c.isspace() else c for c in name): name for name in names}
    if len(renamed) < len(names):
        raise UserError(f"prepare: {len(names) - len(renamed)} photographs differ only in spaces or '_'; rename them")
    links = work / "photos"
    shutil.rmtree(links, ignore_errors=True)
    for new, name in renamed.items():
        (links / new).parent.mkdir(parents=True, exist_ok=True)
        os.symlink((photos / name).absolute(), links / new)
    return sorted(renamed), links
