"""A scene: posed views, their image files and the sparse points, checked as a whole before anything trains."""

from dataclasses import dataclass, replace
from pathlib import Path

from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.colmap import find_model, read_cameras, read_points
from momentum_gs.data.images import image_size, target_size
from momentum_gs.data.splits import read_list, split


@dataclass(frozen=True)
class Scene:
    """What a run trains and scores on. No pixels: ``Views`` reads those when they are wanted."""

    path: Path
    train: list[Camera]
    """Views to train on, in order of name, at training resolution."""
    test: list[Camera]
    """Held-out views, likewise; no name is in both."""
    points: PointCloud
    image_paths: dict[str, Path]
    """File of every view, by name."""
    white_background: bool = False
    """Transparent pixels show white instead of black."""


def load_scene(config: SceneConfig) -> Scene:
    """Reads a scene's poses and points and checks every image file by its header.

    Two layouts: ``sparse/0`` with an image folder, held-out views chosen by list or count; or ``train/`` and ``val/``
    that each hold such a scene (Mega-NeRF's split; points are those of ``train/``). There, if a name occurs in both,
    all names get their folder in front.

    Raises:
        UserError: for a missing or damaged model, missing images (all counted in one message; with ``bad_images=skip``
            only where all are missing), images that are not the size the model says, a test list that names what is
            not there.
    """
    if config.path is None:
        raise UserError("scene.path: none given; name the scene's folder with -s")
    root = Path(config.path)
    if not root.is_dir():
        raise UserError(f"scene.path: {root} is not a folder; correct the path (-s)")
    parts = root / "train", root / "val"
    if all((part / "sparse").is_dir() for part in parts):
        return _load_parts(root, *parts, config)
    model = find_model(root)
    paths, cameras = _load_views(root, root, config)
    listed = find_test_list(root, model, config)
    train, test = split(list(cameras), config.test_every, None if listed is None else read_list(listed))
    return _scene(root, [cameras[n] for n in train], [cameras[n] for n in test], model, paths, config)


def _load_parts(root: Path, train_part: Path, val_part: Path, config: SceneConfig) -> Scene:
    if config.test_list is not None:
        raise UserError(
            f"scene.test_list: {config.test_list} is given, but {root} holds out its val folder; use one of the two"
        )
    train_paths, train = _load_views(root, train_part, config)
    test_paths, test = _load_views(root, val_part, config)
    if train.keys() & test.keys():
        train_paths, train = _prefixed("train/", train_paths, train)
        test_paths, test = _prefixed("val/", test_paths, test)
    model = find_model(train_part)
    return _scene(root, list(train.values()), list(test.values()), model, train_paths | test_paths, config)


def _scene(
    root: Path, train: list[Camera], test: list[Camera], model: Path, paths: dict[str, Path], config: SceneConfig
) -> Scene:
    points = read_points(model)
    if len(points) == 0:
        raise UserError(f"data: {model} holds no points, expected the sparse cloud of the scene; triangulate it first")
    return Scene(root, train, test, points, paths, config.white_background)


def _load_views(root: Path, part: Path, config: SceneConfig) -> tuple[dict[str, Path], dict[str, Camera]]:
    """Image file and camera at training resolution of each view of one model, by name, in order of name."""
    model, folder = find_model(part), part / config.images
    if not folder.is_dir():
        raise UserError(f"data: no image folder {folder}; give its name with -i (scene.images)")
    cameras = read_cameras(model)
    paths = {camera.name: folder / camera.name for camera in cameras}
    missing = [path for path in paths.values() if not path.is_file()]
    # All of them: that is a wrong folder.
    if missing and (config.bad_images == "fail" or len(missing) == len(paths)):
        raise UserError(
            f"data: {len(missing)} of {len(paths)} images named in {model.relative_to(root)} are missing, first: "
            f"{missing[0].relative_to(root)}; correct the image folder (-i), or take them out of the model "
            "(colmap image_deleter)"
        )
    return paths, {camera.name: _at_training_size(camera, paths[camera.name], config) for camera in cameras}


def _at_training_size(camera: Camera, path: Path, config: SceneConfig) -> Camera:
    """The camera of an image file after ``-r``. The file may be a smaller copy of what COLMAP saw, not another crop.

    One that cannot be read, where that is allowed, keeps the model's size: its view counts, but is never shown.
    """
    try:
        width, height = image_size(path)
    except UserError:
        if config.bad_images == "fail":
            raise
        width, height = camera.width, camera.height
    if not same_shape(width, height, camera):
        raise UserError(
            f"data: image {path} is {width}x{height}, but its camera in the model is {camera.width}x{camera.height}, "
            "expected that size or the same picture resized; use the images that the model was made from"
        )
    return camera.resized(*target_size(width, height, config.resolution))


def same_shape(width: int, height: int, camera: Camera) -> bool:
    """Whether one scale gives both sides, each rounded up or down to a pixel (images_4 of 4000x3003 is 1000x751)."""
    smallest = max((width - 1) / camera.width, (height - 1) / camera.height)
    largest = min((width + 1) / camera.width, (height + 1) / camera.height)
    return smallest < largest


def find_test_list(root: Path, model: Path, config: SceneConfig) -> Path | None:
    """The list of held-out names: the one set, relative to the run's start or to the scene, else a known place."""
    if config.test_list is not None:
        given = Path(config.test_list)
        return given if given.is_file() else root / given
    found = (path for path in (model / "test.txt", root / "test_list.txt") if path.is_file())
    return next(found, None)


def _prefixed(
    prefix: str, paths: dict[str, Path], cameras: dict[str, Camera]
) -> tuple[dict[str, Path], dict[str, Camera]]:
    renamed = {prefix + name: replace(camera, name=prefix + name) for name, camera in cameras.items()}
    return {prefix + name: path for name, path in paths.items()}, renamed
