"""Structure from motion with pycolmap, in stages that are each done once: features, matches, mapping, undistortion.

``WORK/state.json`` says which stages are complete, and with what; a stage whose settings changed is done again, with
those after it. Within features and matching COLMAP's database knows what it has, so that an interruption costs little.

Which pairs of photographs are matched is decided here: all pairs of few, neighbours by GPS where there is GPS,
neighbours in order of name otherwise.
"""

import hashlib
import importlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Any, Literal

import torch

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import progress, say
from momentum_gs.data.images import image_size, target_size
from momentum_gs.data.prepare_align import Similarity, geodetic_to_enu, local_origin
from momentum_gs.data.prepare_files import JPEG_QUALITY, find_pictures, workers

Matching = Literal["auto", "exhaustive", "spatial", "sequential"]
Cameras = Literal["folder", "image"]

LENSES = ("OPENCV", "FULL_OPENCV", "OPENCV_FISHEYE", "RADIAL", "SIMPLE_RADIAL", "PINHOLE")
"""COLMAP's lens models to choose from; PINHOLE for pictures that have no distortion any more."""

EXHAUSTIVE = 150
"""Up to so many photographs every pair is matched: 11,175 pairs."""
NEIGHBOURS = 40
"""By GPS: in a flight with 80 % forward and 70 % side overlap, as many share an eighth of the picture or more."""
OVERLAP = 20
"""By name: every photograph with the next so many; and further ones at distances of powers of two."""
PAIRS_AT_ONCE = 500
"""Pairs of one call: what an interruption loses, and the step of the progress bar."""


@dataclass(frozen=True, kw_only=True)
class SfmSettings:
    """What decides how the result looks."""

    matching: Matching = "auto"
    cameras: Cameras = "folder"
    """Photographs of one folder and size share a camera, or each has its own."""
    camera_model: str = "OPENCV"
    """COLMAP's name of the lens model: OPENCV has two radial and two tangential terms."""
    max_features: int = 8192
    """SIFT features of a photograph."""


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
        self._pycolmap = _import_pycolmap()
        self._images, work = out / "images", out / "sfm"
        self._work, self._settings = work, settings
        self._undistorted = work / "undistorted"
        # They will be replaced, which must not befall anybody's own.
        if self._images.exists() and not self._undistorted.exists():
            raise UserError(
                f"prepare: {self._images} is there already, and not from an earlier 'prepare'; choose another folder "
                "for the scene"
            )
        work.mkdir(parents=True, exist_ok=True)
        self.names, self._photos = _without_spaces(photos, work)
        if len(self.names) < 3:
            raise UserError(f"prepare: {len(self.names)} photographs in {photos}, expected at least 3")
        self._database = work / "database.db"
        self._state = _State(work / "state.json")
        # COLMAP's own log goes to the terminal and would bury ours; errors (2) still show.
        self._pycolmap.logging.minloglevel = 2
        self._pycolmap.set_random_seed(0)

    def reconstruct(self) -> Reconstructed:
        """Features, matches, mapping; what is done already is kept."""
        cameras = {"cameras": self._settings.cameras, "camera_model": self._settings.camera_model}
        features = {"photos": _fingerprint(self._photos, self.names), "max_features": self._settings.max_features}
        self._stage("features", features | cameras, self._extract)
        self._stage("matching", {"matching": self._settings.matching}, self._match)
        self._stage("mapping", {}, self._map)
        return self._largest()

    def fixes(self) -> dict[str, tuple[float, float, float]]:
        """Latitude, longitude (degrees) and height (metres, 0 where it is not known) of photographs with GPS."""
        with self._open_database() as database:
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
            options = self._pycolmap.UndistortCameraOptions()
            cameras = self._pycolmap.Reconstruction(str(result.model)).cameras.values()
            options.max_image_size = max(max(target_size(c.width, c.height, resolution)) for c in cameras)
            self._pycolmap.undistort_images(
                self._undistorted, result.model, self._photos, undistort_options=options, jpeg_quality=JPEG_QUALITY,
                num_threads=workers(),
            )  # fmt: skip
            (self._undistorted / "images").rename(self._images)

        self._stage("undistortion", {"resolution": resolution}, undistort)
        return self._undistorted / "sparse"

    def place(self, model: Path, similarity: Similarity, target: Path) -> None:
        """Writes a model in another frame, observations and all, over the one in ``target``."""
        reconstruction = self._pycolmap.Reconstruction(str(model))
        rotation = self._pycolmap.Rotation3d(similarity.rotation.numpy())
        reconstruction.transform(self._pycolmap.Sim3d(similarity.scale, rotation, similarity.translation.numpy()))
        target.mkdir(parents=True, exist_ok=True)
        reconstruction.write(str(target))

    def _stage(self, name: str, key: dict[str, Any], work: Callable[[bool], None]) -> None:
        if self._state.is_done(name, key):
            say(f"{name}: done before")
            return
        start = time.perf_counter()
        work(self._state.begin(name, key))
        self._state.finish(name)
        say(f"{name}: done in {time.perf_counter() - start:.0f} s")

    def _open_database(self) -> Any:
        return self._pycolmap.Database.open(self._database)

    def _extract(self, resumes: bool) -> None:
        if not resumes:
            for file in self._work.glob(f"{self._database.name}*"):  # With SQLite's journal.
                file.unlink()
        options = self._pycolmap.FeatureExtractionOptions()
        options.num_threads = workers()
        options.sift.max_num_features = self._settings.max_features
        with progress(len(self.names), "features") as bar:
            for group in camera_groups(self._photos, self.names, self._settings.cameras):
                step = 4 * workers()
                for names in (group[i : i + step] for i in range(0, len(group), step)):
                    reader = self._pycolmap.ImageReaderOptions()
                    reader.camera_model = self._settings.camera_model
                    with self._open_database() as database:
                        known = next(filter(None, map(database.read_image_with_name, group)), None)
                    if known is not None:  # Its camera is the group's.
                        reader.existing_camera_id = known.camera_id
                    self._pycolmap.extract_features(
                        self._database, self._photos, image_names=names, camera_mode=self._pycolmap.CameraMode.SINGLE,
                        reader_options=reader, extraction_options=options,
                    )  # fmt: skip
                    bar.update(len(names))

    def _match(self, resumes: bool) -> None:
        if not resumes:
            with self._open_database() as database:
                database.clear_matches()
                database.clear_two_view_geometries()
        pairs = self._pairs()
        options = self._pycolmap.FeatureMatchingOptions()
        options.num_threads = workers()
        listed = self._work / "pairs.txt"
        with progress(len(pairs), "matching") as bar:
            for i in range(0, len(pairs), PAIRS_AT_ONCE):
                some = pairs[i : i + PAIRS_AT_ONCE]
                listed.write_text("".join(f"{a} {b}\n" for a, b in some), encoding="utf-8")
                self._pycolmap.match_image_pairs(
                    self._database, matching_options=options,
                    pairing_options=self._pycolmap.ImportedPairingOptions(match_list_path=str(listed)),
                )  # fmt: skip
                bar.update(len(some))

    def _pairs(self) -> list[tuple[str, str]]:
        """Pairs to match, and a line that says how they were chosen."""
        fixes, way = self.fixes(), self._settings.matching
        if way == "auto":
            located = len(fixes) >= 0.9 * len(self.names)
            way = "exhaustive" if len(self.names) <= EXHAUSTIVE else "spatial" if located else "sequential"
        pairs = choose_pairs(self.names, way, fixes)
        say(f"matching: {way}, {len(pairs)} pairs of {len(self.names)} photographs, {len(fixes)} of them with GPS")
        return pairs

    def _map(self, _: bool) -> None:
        models = self._work / "models"
        shutil.rmtree(models, ignore_errors=True)
        models.mkdir()
        options = self._pycolmap.IncrementalPipelineOptions()
        options.num_threads = workers()
        with progress(len(self.names), "mapping") as bar:
            found = self._pycolmap.incremental_mapping(
                self._database, self._photos, models, options=options, next_image_callback=bar.update
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
        missing = sorted(set(self.names) - set(registered))
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
        nearest = min(NEIGHBOURS + 1, len(located))
        for start in range(0, len(located), 1000):  # bounds the matrix of distances
            near = torch.cdist(places[start : start + 1000], places).topk(nearest, largest=False).indices
            for i, row in enumerate(near.tolist(), start=start):
                pairs |= {(located[min(i, j)], located[max(i, j)]) for j in row if j != i}
    return sorted(pairs)


def camera_groups(photos: Path, names: Sequence[str], cameras: Cameras) -> list[list[str]]:
    """The names, one list for each camera: those of one folder and size, or each alone."""
    if cameras == "image":
        return [[name] for name in names]

    def key(name: str) -> tuple[str, tuple[int, int]]:
        return Path(name).parent.as_posix(), image_size(photos / name)

    return [list(group) for _, group in groupby(sorted(names, key=key), key=key)]


class _State:
    """Which stages were begun and which are complete, and with what settings."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stages: dict[str, dict[str, Any]] = {}
        if path.is_file():
            try:
                self._stages = dict(json.loads(path.read_text(encoding="utf-8")))
            except ValueError as error:
                raise UserError(f"prepare: {path} is damaged ({error}); remove it to start again") from error

    def is_done(self, name: str, key: dict[str, Any]) -> bool:
        return self._stages.get(name) == {"key": key, "done": True}

    def begin(self, name: str, key: dict[str, Any]) -> bool:
        """Notes that a stage begins, and forgets those after it; whether it goes on with what it had begun."""
        resumes = self._stages.get(name, {}).get("key") == key
        order = list(self._stages)
        for later in order[order.index(name) :] if name in order else []:
            del self._stages[later]
        self._put(name, {"key": key, "done": False})
        return resumes

    def finish(self, name: str) -> None:
        self._put(name, self._stages[name] | {"done": True})

    def _put(self, name: str, stage: dict[str, Any]) -> None:
        self._stages[name] = stage
        with replacing(self._path) as part:
            part.write_text(json.dumps(self._stages, indent=1), encoding="utf-8")


def _import_pycolmap() -> Any:
    try:
        return importlib.import_module("pycolmap")
    except ImportError as error:
        raise UserError(
            f"prepare: pycolmap is not usable ({error}), expected it for photographs; pip install pycolmap==4.2.1"
        ) from error


def _fingerprint(photos: Path, names: Sequence[str]) -> str:
    """Changes when photographs come, go or are edited."""
    stats = [(name, (photos / name).stat()) for name in names]
    record = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    return hashlib.blake2b(record.encode(), digest_size=8).hexdigest()


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
    for link, name in renamed.items():
        (links / link).parent.mkdir(parents=True, exist_ok=True)
        os.symlink((photos / name).absolute(), links / link)
    return sorted(renamed), links
