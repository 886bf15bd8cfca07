"""All checks of a scene before training.

The readers and ``load_scene`` decide what training accepts, and their errors become findings, word for word. Further
checks list all faulty files and images at once, and find what would train, but poorly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from momentum_gs.config.schema import Config, SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.colmap.model import find_model, read_points, read_views
from momentum_gs.data.images import IMAGE_SUFFIXES
from momentum_gs.data.masks import find_masks
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene, find_test_list, load_scene
from momentum_gs.data.splits import read_list, split
from momentum_gs.data.transforms import find_transforms, read_transforms
from momentum_gs.doctor.findings import SEVERITIES, Finding, some
from momentum_gs.doctor.images import (
    check_doubles,
    check_exposure,
    check_files,
    check_names,
    check_presence,
    check_sizes,
    inspect_images,
)
from momentum_gs.doctor.masks import check_masks
from momentum_gs.doctor.poses import check_poses
from momentum_gs.doctor.settings import Scale, check_settings, scale_of
from momentum_gs.train.blocks.views import plan_blocks

_BARE_POINT = 51
"""Bytes of a point with an empty track in COLMAP's points3D.bin."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Source:
    """One set of posed images: a COLMAP scene, its ``train/`` or ``val/`` folder, or those of ``transforms.json``."""

    folder: Path
    model: Path | None = None
    """Folder of the COLMAP model, or the transforms file; None if there is none."""
    cameras: list[Camera] = field(default_factory=list)
    """As in the files; empty if they cannot be read."""
    paths: dict[str, Path] = field(default_factory=dict)
    """Image name -> its file, which may be missing."""
    masks: dict[str, Path] = field(default_factory=dict)
    """Image name -> mask file, for the masks that the transforms file names."""
    points: PointCloud | None = None
    images: Path | None = None
    """Image folder of a COLMAP scene; None for a transforms file."""

    @property
    def missing(self) -> list[str]:
        """Names of images without a file, sorted."""
        return sorted(name for name, path in self.paths.items() if not path.is_file())

    @property
    def extra(self) -> list[str]:
        """Image files below the image folder that the model does not name, sorted."""
        folder = self.images
        if folder is None:
            return []
        there = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        return sorted({path.relative_to(folder).as_posix() for path in there} - self.paths.keys())


@dataclass(frozen=True)
class Examination:
    """The result of ``examine``."""

    findings: list[Finding]
    """Errors first, then warnings, then infos, each in the order of the checks."""
    sources: list[Source]
    scene: Scene | None
    """As training loads it; None if training would refuse it."""
    scale: Scale | None
    """None if the scene is, or has no point spacing."""
    table: PartitionTable | None
    """The partition in the file; None if there is none that fits."""

    @property
    def refused(self) -> bool:
        """Whether training would refuse or fail."""
        return any(finding.severity == "error" for finding in self.findings)


def examine(config: Config, *, quick: bool = False) -> Examination:
    """Checks the scene, the settings and the partition file.

    Writes nothing except for the undistorted copies of images that ``scene.undistort`` asks for, as training does.

    Args:
        config: The settings.
        quick: Read only the headers of images, not their pixels.

    Raises:
        UserError: if there is no scene folder.
    """
    if config.scene.path is None or not Path(config.scene.path).is_dir():
        load_scene(config.scene)  # Raises the same error as in training.
    root = Path(config.scene.path or "")
    findings: list[Finding] = []
    sources = _sources(root, config.scene, findings)
    held_out = _check_split(root, sources, config.scene, findings)
    for source in sources:
        findings += _check_images(source, config.scene, held_out, quick)
    scene, scale, refusal = None, None, None
    try:
        scene = load_scene(config.scene)
        scale = scale_of(scene, config)
    except UserError as error:
        refusal = error
    findings += _check_geometry(sources, scene, config)
    if refusal is not None and not any(finding.severity == "error" for finding in findings):
        findings.append(Finding.of_error("scene", refusal))
    if scene is not None and scale is not None:
        findings += check_settings(scene, config, scale)
    table = _check_partition(config, scene, sources[0].model, findings) if config.stage == "blocks" else None
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Examination(findings, sources, scene, scale, table)


def _sources(root: Path, config: SceneConfig, findings: list[Finding]) -> list[Source]:
    parts = [root / "train", root / "val"]
    if all((part / "sparse").is_dir() for part in parts):
        return [_colmap(part, config, findings) for part in parts]
    if not find_transforms(root) or (root / "sparse").is_dir():
        return [_colmap(root, config, findings)]
    found = _attempt("cameras", lambda: read_transforms(root, config.images), findings)
    if found is None:
        return [Source(root)]
    paths = {frame.camera.name: frame.path for frame in found.frames}
    masks = {frame.camera.name: frame.mask for frame in found.frames if frame.mask is not None}
    return [Source(root, found.file, [frame.camera for frame in found.frames], paths, masks)]


def _colmap(folder: Path, config: SceneConfig, findings: list[Finding]) -> Source:
    model = _attempt("model", lambda: find_model(folder), findings)
    if model is None:
        return Source(folder)
    bad: dict[str, UserError] = {}
    views = _attempt("cameras", lambda: read_views(model, config.undistort, bad), findings)
    if views is None and not config.undistort:
        # If the lenses are the only fault, the views can still be read for the other checks.
        views = _attempt("cameras", lambda: read_views(model, True, bad), [])
    views = views or []
    if bad:
        first = Finding.of_error("cameras", next(iter(bad.values())))
        count = f"{len(bad)} images cannot be used, first: " if len(bad) > 1 else ""
        findings.append(replace(first, found=count + first.found, names=tuple(bad)))
    bent = tuple(camera.name for camera, lens in views if not lens.is_pinhole)
    if bent and config.undistort:
        findings.append(Finding("info", "cameras", str(model), f"{some(bent, len(views))} with distortion: undistorted "
                                f"copies are in {folder / config.undistort_folder}", names=bent))  # fmt: skip
    points = _attempt("points", lambda: read_points(model), findings) if config.points is None else None
    file = model / "points3D.bin"
    if points is not None and len(points) and file.is_file() and file.stat().st_size == 8 + len(points) * _BARE_POINT:
        found = "points without tracks; only loss.depth needs them"
        findings.append(Finding("info", "points-tracks", str(file), found))
    images = folder / config.images
    cameras = [camera for camera, _ in views]
    return Source(folder, model, cameras, {c.name: images / c.name for c in cameras}, {}, points, images)


def _attempt(check: str, read: Callable[[], _T], findings: list[Finding]) -> _T | None:
    """The result of ``read``; if it raises a UserError, None, with the error added to ``findings``."""
    try:
        return read()
    except UserError as error:
        findings.append(Finding.of_error(check, error))
        return None


def _check_split(
    root: Path, sources: Sequence[Source], config: SceneConfig, findings: list[Finding]
) -> frozenset[str]:
    """Names of the held-out views, as far as they can be determined; faults of the split are added to ``findings``."""
    if len(sources) > 1:
        return frozenset(sources[1].paths)
    source = sources[0]
    if source.model is None or not source.paths:
        return frozenset()
    names = sorted(source.paths)
    listed = find_test_list(root, source.model if source.model.is_dir() else root, config)
    wanted = None if listed is None else _attempt("test-list", lambda: read_list(listed), findings)
    unknown = tuple(sorted(set(wanted or ()) - set(names)))
    if unknown:
        findings.append(Finding("error", "test-list", str(listed), f"{some(unknown, len(set(wanted or ())))} not in "
                                "the scene", f"names such as {names[0]!r}", "correct the list, or use --fix to write "
                                "one without them", unknown))  # fmt: skip
        return frozenset(wanted or ()) & frozenset(names)
    divided = _attempt("split", lambda: split(names, config.test_every, wanted), findings)
    return frozenset(divided[1] if divided is not None else ())


def _check_images(source: Source, config: SceneConfig, held_out: frozenset[str], quick: bool) -> list[Finding]:
    folder = source.images or source.folder
    if source.images is not None and not folder.is_dir():
        others = sorted(path.name for path in source.folder.iterdir() if path.is_dir() and path.name != "sparse")
        there = f"only {', '.join(others)}" if others else "and no other"
        return [Finding("error", "image-folder", str(folder), f"no such folder, {there}", "the image folder",
                        "name it with -i (scene.images)")]  # fmt: skip
    if not source.cameras:
        return []
    may_skip = config.bad_images == "skip"
    missing = source.missing
    findings = check_presence(folder, missing, source.extra, len(source.cameras), may_skip=may_skip)
    gone = set(missing)
    facts = inspect_images({name: path for name, path in source.paths.items() if name not in gone}, quick=quick)
    findings += check_files(folder, facts, may_skip=may_skip)
    findings += check_sizes(folder, facts, {camera.name: camera for camera in source.cameras})
    findings += check_names(folder, list(source.paths))
    findings += check_doubles(folder, facts, held_out)
    findings += check_exposure(folder, facts)
    if config.masks:
        place = source.folder / config.masks
        masks, unknown = find_masks(place, list(source.paths))
        findings += check_masks(place, masks | source.masks, unknown, facts, quick=quick)
    return findings


def _check_geometry(sources: Sequence[Source], scene: Scene | None, config: Config) -> list[Finding]:
    """Findings about poses and points, in training coordinates; in those of the files if training would refuse."""
    place = sources[0].model or sources[0].folder
    if scene is not None:
        frame = scene.frame
        moved = []
        if frame.normalized:
            moved = [Finding("info", "unit", "scene.unit", f"training coordinates are normalized: one training unit is "
                             f"{frame.unit:.4g} scene units")]  # fmt: skip
        elif any(frame.offset):
            moved = [Finding("info", "offset", "scene.offset", f"{frame.offset} is subtracted from all coordinates, "
                             "which lie too far from the origin for float32")]  # fmt: skip
        return moved + check_poses(place, [*scene.train, *scene.test], scene.points.xyz, config.partition)
    cameras, points = [camera for source in sources for camera in source.cameras], sources[0].points
    return check_poses(place, cameras, points.xyz, config.partition) if cameras and points is not None else []


def _check_partition(
    config: Config, scene: Scene | None, model: Path | None, findings: list[Finding]
) -> PartitionTable | None:
    """The partition in the file, if it fits; faults are added to ``findings``. It may be missing: 'partition' is
    usually run after the doctor."""
    given = config.partition.file or (None if config.out is None else str(Path(config.out) / "partition.json"))
    if given is None:
        return None
    path = Path(given)
    if not path.is_file():
        findings.append(Finding("info", "partition", given, "does not exist yet: run 'momentum-gs partition' before "
                                "training blocks"))  # fmt: skip
        return None
    table = _attempt("partition", lambda: PartitionTable.load(path), findings)
    if table is None or scene is None:
        return None
    count = len(findings)
    _attempt("partition", lambda: table.check(config.partition, scene), findings)
    if len(findings) == count:
        _attempt("partition", lambda: plan_blocks(scene, table, config.blocks.windows), findings)
    if len(findings) > count:
        return None
    assigned = {name for names in table.views for name in names}
    idle = tuple(camera.name for camera in scene.train if camera.name not in assigned)
    again = "run 'momentum-gs partition' again"
    if idle:
        findings.append(Finding("warning", "partition", given, f"training views in no block: "
                                f"{some(idle, len(scene.train))}", "every view in at least one", again,
                                idle))  # fmt: skip
    files = [] if model is None else list(model.iterdir()) if model.is_dir() else [model]
    if any(file.stat().st_mtime > path.stat().st_mtime for file in files):
        findings.append(Finding("warning", "partition", given, f"older than {model}", "a partition of this model",
                                again))  # fmt: skip
    return table
