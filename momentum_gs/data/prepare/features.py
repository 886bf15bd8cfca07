"""A COLMAP database made in resumable stages: features of images, and matches between pairs.

``WORK/state.json`` records which stages are complete and with which settings; a stage whose settings changed is
repeated, with all stages after it. Features and matching resume from the contents of COLMAP's database, so that little
is lost when they are interrupted.
"""

import hashlib
import importlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import info, progress
from momentum_gs.data.prepare.files import refuse_unreadable, workers
from momentum_gs.data.prepare.sift import sift

MAX_FEATURES = 8192
"""Largest number of SIFT features per image (COLMAP's default)."""
NEIGHBOURS = 40
"""Nearest cameras that an image is matched with: in a flight with 80 % forward and 70 % side overlap, this many share
an eighth of the image or more."""
PAIRS_AT_ONCE = 100
"""Pairs that are matched in one call: what an interruption loses, and the step of the progress bar."""


class Workshop:
    """Runs pycolmap on one folder of images, stage by stage.

    Args:
        photos: Folder of the images.
        names: Image names, sorted, without spaces, at which COLMAP would split its lists of pairs.
        work: Folder for the database and the state; created if needed.

    Raises:
        UserError: pycolmap is missing, or the state is damaged.
    """

    def __init__(self, photos: Path, names: Sequence[str], work: Path) -> None:
        self.pycolmap = import_pycolmap()
        work.mkdir(parents=True, exist_ok=True)
        self.photos, self.names, self.work = photos, names, work
        self.database = work / "database.db"
        self._state = _State(work / "state.json")
        self.spent: dict[str, tuple[float, float]] = {}
        """Wall-clock and CPU seconds of each stage that was run now."""
        # COLMAP's own log would drown ours in the terminal; errors (level 2) are still shown.
        self.pycolmap.logging.minloglevel = 2
        self.pycolmap.set_random_seed(0)

    def stage(self, name: str, key: dict[str, Any], work: Callable[[bool], None]) -> None:
        """Runs a stage unless it is complete with this key; ``work`` is called with whether it resumes."""
        if self._state.is_done(name, key):
            info(f"{name}: already done")
            return
        start, cpu = time.perf_counter(), time.process_time()
        work(self._state.begin(name, key))
        self._state.finish(name)
        self.spent[name] = time.perf_counter() - start, time.process_time() - cpu
        info(f"{name}: done in {self.spent[name][0]:.0f} s")

    def open_database(self) -> Any:
        """A ``pycolmap.Database``, to be used in a ``with``."""
        return self.pycolmap.Database.open(self.database)

    def extract(self, groups: Sequence[tuple[Sequence[str], dict[str, str]]], max_features: int) -> None:
        """The stages ``images`` (with cameras) and ``features``.

        Args:
            groups: Names that share a camera, with COLMAP's ``ImageReaderOptions`` for it.
            max_features: Largest number of features per image.
        """

        def list_images(_: bool) -> None:
            for file in self.work.glob(f"{self.database.name}*"):  # With SQLite's journal.
                file.unlink()
            self.open_database().close()
            for names, settings in progress(groups, "cameras"):
                reader = self.pycolmap.ImageReaderOptions()
                for name, value in settings.items():
                    setattr(reader, name, value)
                self.pycolmap.import_images(
                    self.database, self.photos, camera_mode=self.pycolmap.CameraMode.SINGLE, image_names=names,
                    options=reader,
                )  # fmt: skip

        def extract(resumes: bool) -> None:
            with self.open_database() as database:
                if not resumes:
                    database.clear_keypoints()
                    database.clear_descriptors()
                ids = {image.name: image.image_id for image in database.read_all_images()}
                if lost := sorted(set(self.names) - set(ids)):
                    raise UserError(f"prepare: {lost[0]} cannot be read, expected an image; replace or remove it")
                # Descriptors are written last, so an image that has them is complete.
                left = [name for name in self.names if not database.exists_descriptors(ids[name])]
                with progress(len(self.names), "features") as bar:
                    bar.update(len(self.names) - len(left))
                    errors: dict[Path, UserError] = {}
                    for name, found in self._features(left, max_features):
                        bar.update()
                        if isinstance(found, UserError):
                            errors[(self.photos / name).resolve()] = found
                            continue
                        places, descriptors = found
                        if database.exists_keypoints(ids[name]):
                            database.update_keypoints(ids[name], places)
                        else:
                            database.write_keypoints(ids[name], places)
                        sift = self.pycolmap.FeatureExtractorType.SIFT
                        database.write_descriptors(
                            ids[name], self.pycolmap.FeatureDescriptors(data=descriptors, type=sift)
                        )
                refuse_unreadable(errors, len(self.names))

        self.stage("images", {"photos": self._fingerprint(), "groups": digest(repr(groups))}, list_images)
        self.stage("features", {"max_features": max_features}, extract)

    def _features(
        self, names: Sequence[str], count: int
    ) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray] | UserError]]:
        """Name and positions and descriptors of each image, or why it cannot be read, computed in several threads."""

        def features(name: str) -> tuple[np.ndarray, np.ndarray] | UserError:
            try:
                return sift((self.photos / name).resolve(), count)  # Not the name of a link of ours.
            except UserError as error:
                return error

        step = 4 * workers()  # Ctrl-C has to wait for this many images.
        with ThreadPoolExecutor(workers()) as pool:
            for some in (names[i : i + step] for i in range(0, len(names), step)):
                yield from zip(some, pool.map(features, some), strict=True)

    def match(self, key: dict[str, Any], choose: Callable[[], Sequence[tuple[str, str]]]) -> None:
        """The stage ``matching``, for the pairs that ``choose`` returns; ``key`` identifies how they are chosen."""
        options = self.pycolmap.FeatureMatchingOptions()
        options.num_threads = workers()
        listed = self.work / "pairs.txt"

        def match(resumes: bool) -> None:
            if not resumes:
                with self.open_database() as database:
                    database.clear_matches()
                    database.clear_two_view_geometries()
            pairs = choose()
            with progress(len(pairs), "matching") as bar:
                for i in range(0, len(pairs), PAIRS_AT_ONCE):
                    some = pairs[i : i + PAIRS_AT_ONCE]
                    listed.write_text("".join(f"{a} {b}\n" for a, b in some), encoding="utf-8")
                    self.pycolmap.match_image_pairs(
                        self.database, matching_options=options,
                        pairing_options=self.pycolmap.ImportedPairingOptions(match_list_path=str(listed)),
                    )  # fmt: skip
                    bar.update(len(some))

        self.stage("matching", key, match)

    def _fingerprint(self) -> str:
        """A hash that changes when images are added, removed or edited."""
        stats = [(name, (self.photos / name).stat()) for name in self.names]
        return digest("\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats))


def nearest_pairs(names: Sequence[str], places: Float[Tensor, "n d"]) -> set[tuple[str, str]]:
    """Pairs of each name with the ``NEIGHBOURS`` whose positions are nearest; ``names`` are sorted."""
    pairs = set()
    nearest = min(NEIGHBOURS + 1, len(names))
    for start in range(0, len(names), 1000):  # Limits the size of the distance matrix.
        near = torch.cdist(places[start : start + 1000], places).topk(nearest, largest=False).indices
        for i, row in enumerate(near.tolist(), start=start):
            pairs |= {(names[min(i, j)], names[max(i, j)]) for j in row if j != i}
    return pairs


def import_pycolmap() -> Any:
    """The pycolmap module; UserError if it is not installed (it is an optional dependency) or too old."""
    try:
        module = importlib.import_module("pycolmap")
    except ImportError as error:
        raise UserError(
            f"prepare: pycolmap is not usable ({error}), expected it for this; pip install pycolmap==4.2.1"
        ) from error
    if int(module.__version__.split(".")[0]) < 4:
        raise UserError(f"prepare: pycolmap is {module.__version__}, expected 4 or newer; pip install pycolmap==4.2.1")
    return module


def digest(text: str) -> str:
    """A short hash of a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class _State:
    """Records which stages were begun and which are complete, with their settings."""

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
        """Records the beginning of a stage and discards those after it; returns whether the stage resumes."""
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
