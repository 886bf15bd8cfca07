"""A scene: posed views, their image files and the initial points, all checked before training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import camera_radius
from momentum_gs.core.log import info, warn
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.colmap.model import find_model, read_points, read_views
from momentum_gs.data.frame import Frame, check_axes, normalized_frame
from momentum_gs.data.images import image_size, same_aspect, target_size
from momentum_gs.data.lens import Lens
from momentum_gs.data.masks import check_mask, find_masks
from momentum_gs.data.point_files import read_point_file
from momentum_gs.data.random_points import random_points
from momentum_gs.data.splits import read_list, split
from momentum_gs.data.transforms import Transforms, find_transforms, read_transforms
from momentum_gs.data.undistort import Job, Window, cached_path, pinhole_window, undistort_files

# The renderer computes in float32, whose resolution at distance d from the origin is d / 8e6. Farther than this many
# times the scene's extent, that exceeds a hundred-thousandth of the extent: a tenth of a pixel, seen from inside.
FAR = 100


@dataclass(frozen=True)
class Scene:
    """What a run trains on and is scored on, without pixels: ``Views`` reads those on demand."""

    path: Path
    train: list[Camera]
    """Training views, in order of name, at training resolution."""
    test: list[Camera]
    """Held-out views, likewise; no name is in both."""
    points: PointCloud
    """Initial points, training coordinates."""
    image_paths: dict[str, Path]
    """Image file of every view, by name; for a distorted view its undistorted copy."""
    white_background: bool = False
    """Whether transparent pixels are white instead of black."""
    mask_paths: dict[str, Path] = field(default_factory=dict)
    """Mask file of the views that have one, by name."""
    frame: Frame = Frame()
    """Transform from the coordinates of the scene's files to those of views and points."""


@dataclass(frozen=True)
class _Photo:
    """A view as the scene's files describe it."""

    camera: Camera
    """The pinhole part, at the image size in the model."""
    lens: Lens
    path: Path
    mask: Path | None = None


@dataclass(frozen=True)
class _Views:
    """Checked views at training resolution, by name, in order of name."""

    cameras: dict[str, Camera]
    images: dict[str, Path]
    masks: dict[str, Path]

    def prefixed(self, prefix: str) -> "_Views":
        return _Views(
            {prefix + name: replace(camera, name=prefix + name) for name, camera in self.cameras.items()},
            {prefix + name: path for name, path in self.images.items()},
            {prefix + name: path for name, path in self.masks.items()},
        )


def load_scene(config: SceneConfig) -> Scene:
    """Reads a scene's poses and points, and checks every image file by its header.

    There are three layouts: ``sparse/0`` with an image folder, with held-out views chosen by a list or every n-th;
    ``train/`` and ``val/`` that each hold such a scene (Mega-NeRF's split; points are those of ``train/``; if a name
    occurs in both, all names are prefixed with their folder); and ``transforms.json``, or ``transforms_train.json``
    with ``transforms_test.json``.

    With ``config.undistort``, distorted views are undistorted into a cache. If cameras are so far from the origin that
    float32 would blur the scene, all coordinates are shifted (``Scene.frame``).

    Raises:
        UserError: for missing or damaged files; missing images (one message with their number; with
            ``bad_images=skip`` only if all are missing); images and masks that do not fit the size in the model;
            distorted views without ``config.undistort``; and a test list with unknown names.
    """
    if config.path is None:
        raise UserError("scene.path: none given; name the scene's folder with -s")
    root = Path(config.path)
    if not root.is_dir():
        raise UserError(f"scene.path: {root} is not a folder; correct the path (-s)")
    parts = root / "train", root / "val"
    if all((part / "sparse").is_dir() for part in parts):
        return _load_parts(root, *parts, config)
    if find_transforms(root) and not (root / "sparse").is_dir():
        return _load_transforms(root, config)
    model = find_model(root)
    views = _load_views(root, root, config)
    train, test = _split(views, find_test_list(root, model, config), config)
    return _scene(root, train, test, views, model, lambda: read_points(model), config)


def _split(views: _Views, listed: Path | None, config: SceneConfig) -> tuple[list[Camera], list[Camera]]:
    train, test = split(list(views.cameras), config.test_every, None if listed is None else read_list(listed))
    return [views.cameras[name] for name in train], [views.cameras[name] for name in test]


def _load_parts(root: Path, train_part: Path, val_part: Path, config: SceneConfig) -> Scene:
    if config.test_list is not None:
        raise UserError(
            f"scene.test_list: {config.test_list} is given, but {root} holds out its val folder; use one of the two"
        )
    train, test = _load_views(root, train_part, config), _load_views(root, val_part, config)
    if train.cameras.keys() & test.cameras.keys():
        train, test = train.prefixed("train/"), test.prefixed("val/")
    model = find_model(train_part)
    both = _Views(train.cameras | test.cameras, train.images | test.images, train.masks | test.masks)
    return _scene(
        root, list(train.cameras.values()), list(test.cameras.values()), both, model, lambda: read_points(model), config
    )


def _load_transforms(root: Path, config: SceneConfig) -> Scene:
    found = read_transforms(root, config.images)
    photos = [_Photo(frame.camera, frame.lens, frame.path, frame.mask) for frame in found.frames]
    bent = next((photo for photo in photos if not photo.lens.is_pinhole), None)
    if bent is not None and not config.undistort:
        raise UserError(
            f"{found.file}: image {bent.camera.name!r} has distortion ({bent.lens.model} {list(bent.lens.extra)}), "
            "expected none; set scene.undistort=true, or undistort the images"
        )
    views = _prepared(root, root, photos, found.file.name, config)
    if found.held_out is None:
        listed = root / "test_list.txt" if config.test_list is None else find_test_list(root, root, config)
        train, test = _split(views, listed if listed and listed.is_file() else None, config)
    elif config.test_list is not None:
        raise UserError(
            f"scene.test_list: {config.test_list} is given, but {found.file} lists held-out images; use one of the two"
        )
    else:
        names = split(list(views.cameras), 0, found.held_out)
        train, test = ([views.cameras[name] for name in part] for part in names)
    return _scene(root, train, test, views, found.file, lambda: _cloud(found, train), config)


def _cloud(found: Transforms, train: list[Camera]) -> PointCloud:
    if found.cloud is not None:
        return read_point_file(found.cloud)
    points = random_points(train)
    info(f"scene: {found.file.name} names no point cloud, so training starts from {len(points):,} random points")
    return points


def _scene(
    root: Path,
    train: list[Camera],
    test: list[Camera],
    views: _Views,
    source: Path,
    cloud: Callable[[], PointCloud],
    config: SceneConfig,
) -> Scene:
    """Assembles the scene; ``cloud`` reads the points of ``source``, which are used unless ``scene.points`` is set."""
    if config.points == "random":
        points = random_points(train)
    elif config.points is not None:
        points = read_point_file(_given_or_below(Path(config.points), root))
    else:
        points = cloud()
    if len(points) == 0:
        raise UserError(
            f"data: {source} holds no points, expected the sparse points of the scene; triangulate them, or give a "
            "cloud with scene.points=FILE, or start from random points with scene.points=random"
        )
    scene = Scene(root, train, test, points, views.images, config.white_background, views.masks)
    return _framed(scene, _frame(scene, config))


def _frame(scene: Scene, config: SceneConfig) -> Frame:
    """The coordinates according to the settings; what these leave open is determined from the scene."""
    if config.axes is not None:
        check_axes(config.axes)
    if config.unit == "auto":
        return normalized_frame([*scene.train, *scene.test], scene.points, config.offset, config.axes)
    offset = config.offset if config.offset is not None else _needed_offset(scene)
    # Axes are set only where a run recorded normalized coordinates, so coordinates are rounded as in that run.
    return Frame(offset, config.unit, config.axes or ("x", "y", "z"), normalized=config.axes is not None)


def _needed_offset(scene: Scene) -> tuple[float, float, float]:
    """The default ``scene.offset``: zero, unless the cameras are more than ``FAR`` times the extent from the origin.

    Otherwise it is the cameras' centre, rounded to multiples of a power of ten above the extent, so that an additional
    view does not shift the scene. The extent is the camera radius or the points' median distance from the cameras'
    centre, whichever is larger.
    """
    centers = torch.stack([camera.center for camera in (*scene.train, *scene.test)])
    center = centers.mean(dim=0)
    extent = max(camera_radius(centers), float((scene.points.xyz - center).norm(dim=1).median()))
    if not float(center.norm()) > FAR * extent or extent == 0:
        return 0.0, 0.0, 0.0
    unit = 10.0 ** (math.floor(math.log10(extent)) + 1)
    x, y, z = (round(v / unit) * unit for v in center.tolist())
    info(
        f"scene: the cameras are {float(center.norm()):.6g} from the origin, {float(center.norm()) / extent:.0f} times "
        f"the scene's extent, too far for float32: all coordinates are relative to ({x:g}, {y:g}, {z:g}) "
        "(scene.offset), also those of partition.aabb and of what is written"
    )
    return x, y, z


def _framed(scene: Scene, frame: Frame) -> Scene:
    """The scene in the coordinates of ``frame``."""
    if frame.is_identity:
        return scene
    train, test = ([frame.camera(camera) for camera in cameras] for cameras in (scene.train, scene.test))
    points = PointCloud(frame.points(scene.points.xyz), scene.points.rgb)
    return replace(scene, train=train, test=test, points=points, frame=frame)


def _load_views(root: Path, part: Path, config: SceneConfig) -> _Views:
    """The views of one COLMAP model."""
    model, folder = find_model(part), part / config.images
    if not folder.is_dir():
        raise UserError(f"data: no image folder {folder}; give its name with -i (scene.images)")
    photos = [
        _Photo(camera, lens, folder / camera.name) for camera, lens in read_views(model, distorted=config.undistort)
    ]
    return _prepared(root, part, photos, str(model.relative_to(root)), config)


def _prepared(root: Path, part: Path, photos: Sequence[_Photo], where: str, config: SceneConfig) -> _Views:
    """Views at training resolution, with all files checked and distorted ones undistorted."""
    missing = [photo.path for photo in photos if not photo.path.is_file()]
    # If all are missing, the folder is wrong.
    if missing and (config.bad_images == "fail" or len(missing) == len(photos)):
        raise UserError(
            f"data: {len(missing)} of {len(photos)} images named in {where} are missing, first: "
            f"{missing[0].relative_to(root)}; correct the image folder (-i), or remove them from the model "
            "(colmap image_deleter)"
        )
    masks = _found_masks(part / config.masks, photos) if config.masks else {}
    cache = root / config.undistort_folder / part.relative_to(root)
    views = _Views({}, {}, {})
    windows: dict[Lens, Window] = {}
    jobs = []
    for photo in photos:
        name, path = photo.camera.name, photo.path
        camera, mask = _at_file_size(photo, config), masks.get(name)
        if mask is not None:
            check_mask(mask, camera.width, camera.height)
        if not photo.lens.is_pinhole:
            lens = photo.lens.resized(camera.width, camera.height)
            if lens not in windows:
                windows[lens] = pinhole_window(lens)
            window = windows[lens]
            camera = replace(camera, **vars(window))
            path = cached_path(cache / config.images, name, photo.path, lens)
            jobs.append(Job(photo.path, lens, window, path))
            if mask is not None:
                source, mask = mask, cached_path(cache / config.masks, name, mask, lens, mask=True)
                jobs.append(Job(source, lens, window, mask, mask=True))
        views.cameras[name] = camera.resized(*target_size(camera.width, camera.height, config.resolution))
        views.images[name] = path
        if mask is not None:
            views.masks[name] = mask
    undistort_files(jobs, skip_bad=config.bad_images == "skip")
    return views


def _found_masks(folder: Path, photos: Sequence[_Photo]) -> dict[str, Path]:
    """Mask files by image name; reports how many there are, and warns of files that belong to no image."""
    found, unknown = find_masks(folder, [photo.camera.name for photo in photos])
    # A mask that a frame of transforms.json names takes precedence.
    found |= {photo.camera.name: photo.mask for photo in photos if photo.mask is not None}
    if found:
        info(f"scene: {len(found)} of {len(photos)} images have a mask; black pixels are ignored (scene.masks)")
    unknown = [name for name in unknown if folder / name not in found.values()]
    if unknown:
        warn(
            f"scene: {len(unknown)} files in {folder} belong to no image, first: {unknown[0]}; expected "
            "<image name>.png with the image's sub-folder"
        )
    return found


def _at_file_size(photo: _Photo, config: SceneConfig) -> Camera:
    """The camera at the size of its image file, which may be a scaled copy of the model's image, but not a crop.

    With ``bad_images=skip``, a view whose image cannot be read keeps the model's size; it is never trained on.
    """
    camera = photo.camera
    try:
        width, height = image_size(photo.path)
    except UserError:
        if config.bad_images == "fail":
            raise
        width, height = camera.width, camera.height
    if not same_shape(width, height, camera):
        raise UserError(
            f"data: image {photo.path} is {width}x{height}, but its camera in the model is "
            f"{camera.width}x{camera.height}, expected that size or the same image resized; use the images that the "
            "model was made from"
        )
    return camera.resized(width, height)


def same_shape(width: int, height: int, camera: Camera) -> bool:
    """Whether an image of this size may be a scaled copy of the camera's image."""
    return same_aspect((width, height), (camera.width, camera.height))


def _given_or_below(path: Path, root: Path) -> Path:
    """A path relative to the working directory if that file exists, else relative to the scene."""
    return path if path.is_file() else root / path


def find_test_list(root: Path, model: Path, config: SceneConfig) -> Path | None:
    """The list of held-out images: ``scene.test_list`` (relative to the working directory or the scene), or else
    ``test.txt`` of the model or ``test_list.txt`` of the scene; None if there is none."""
    if config.test_list is not None:
        return _given_or_below(Path(config.test_list), root)
    found = (path for path in (model / "test.txt", root / "test_list.txt") if path.is_file())
    return next(found, None)
