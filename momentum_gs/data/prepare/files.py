"""Output of all converters: images and a COLMAP model in a folder, and ``scene.json``.

Images that need no change are hard links, so that a converted data set takes no additional disk space. The model is
written last, so a folder with a model is complete; an interrupted run continues with the missing images.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.cores import usable_cores
from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import progress
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.colmap.model import write_model
from momentum_gs.data.exif import with_exif
from momentum_gs.data.images import IMAGE_SUFFIXES, image_size, read_image, same_aspect, target_size

JPEG_QUALITY = 95
"""Quality of images that must be encoded again; at 95 the loss is far below that of any reconstruction."""

_LISTED = 20
"""Files at most that an error names."""

_COLMAP_FILES = tuple(f"{stem}{suffix}" for stem in ("cameras", "images", "points3D") for suffix in (".bin", ".txt"))


@dataclass(frozen=True)
class SourceView:
    """One view of a data set: its image file and its camera."""

    camera: Camera
    """With the view's name in the scene; of any size with the image's aspect ratio."""
    image: Path
    distortion: tuple[float, ...] = ()
    """OpenCV's k1, k2, p1, p2[, k3] of the image file."""


def nearest_rotation(axes: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
    """The rotation nearest to a matrix that is one up to rounding (data sets store float32, or few digits).

    Raises:
        ValueError: the columns' lengths differ from 1 by more than about a hundredth, or it is a reflection.
    """
    product = axes.T @ axes - torch.eye(3, dtype=axes.dtype)
    # The condition is written so that NaN fails it.
    if not (product.abs().max() < 0.02 and torch.linalg.det(axes) > 0):
        raise ValueError(f"{axes.tolist()} is no rotation")
    u, _, vt = torch.linalg.svd(axes)
    return u @ vt


def workers() -> int:
    """Threads for work on images: the cores that this process may use."""
    return usable_cores()


def find_images(folder: Path) -> list[str]:
    """Names of all image files below a folder as POSIX paths, sorted; hidden files and folders are left out.

    Raises:
        UserError: the folder is missing or holds no images.
    """
    if not folder.is_dir():
        raise UserError(f"prepare: {folder} is not a folder, expected one with images; correct the path")
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    found = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    if not found:
        expected = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"prepare: no image files in {folder}, expected {expected}; check the path")
    return found


def refuse_unreadable(errors: Mapping[Path, UserError], images: int) -> None:
    """Raises one error for all images that cannot be read, so that all can be replaced at once.

    Args:
        errors: File -> why it cannot be read; empty: nothing is raised.
        images: Number of all images.

    Raises:
        UserError: there are errors.
    """
    if not errors:
        return
    paths, first = [str(path) for path in errors], next(iter(errors.values()))
    if len(paths) == 1:
        raise first
    listed = ", ".join(paths[:_LISTED]) + (", ..." if len(paths) > _LISTED else "")
    raise UserError(
        f"prepare: {len(paths)} of {images} images cannot be read; replace or remove {listed} (the first: {first})"
    )


def write_images(folder: Path, views: Sequence[SourceView], resolution: float) -> list[Camera]:
    """Writes ``images/`` of a scene, or of one of its parts.

    Images with distortion are undistorted to the same intrinsics; images are shrunk by area resampling.

    Args:
        folder: Created if needed. Existing images of the right size are kept.
        resolution: The ``-r`` of 3DGS codebases (``images.target_size``).

    Returns:
        The views' cameras at the size of the written images.

    Raises:
        UserError: images are missing (one message with their number) or unreadable, or have another aspect ratio than
            their camera.
    """
    check_images([view.image for view in views])

    def place(view: SourceView) -> Camera:
        width, height = image_size(view.image)
        camera = view.camera
        if not same_aspect((width, height), (camera.width, camera.height)):
            raise UserError(
                f"prepare: {view.image} is {width}x{height}, but its camera {camera.width}x{camera.height}; use the "
                "images that the poses were made for"
            )
        size = target_size(width, height, resolution)
        _place_image(view, camera.resized(width, height), folder / "images" / camera.name, size)
        return camera.resized(*size)

    cameras = []
    with ThreadPoolExecutor(workers()) as pool, progress(len(views), f"images of {folder.name}") as bar:
        for camera in pool.map(place, views):
            cameras.append(camera)
            bar.update()
    return cameras


def place_model(folder: Path, model: Path | Sequence[Camera]) -> None:
    """Replaces the model in ``folder`` by that of another folder, byte for byte, or by cameras without points."""
    for name in _COLMAP_FILES:  # Files of an older model, in text form, say, would be mixed with it.
        (folder / name).unlink(missing_ok=True)
    if not isinstance(model, Path):
        nothing = PointCloud(torch.empty((0, 3), dtype=torch.float64), torch.empty((0, 3), dtype=torch.uint8))
        write_model(folder, model, nothing)
        return
    for name in _COLMAP_FILES:
        if (model / name).is_file():
            link(model / name, folder / name)


def link(source: Path, target: Path) -> None:
    """Hard-links a file; copies it if the file system has no hard links, or the paths are on different ones."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part:
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)


def check_images(images: Sequence[Path]) -> None:
    """Raises UserError if any image is missing, with their number and the first."""
    missing = [path for path in images if not path.is_file()]
    if missing:
        raise UserError(
            f"prepare: {len(missing)} of {len(images)} images are missing, first: {missing[0]}; unpack or copy them"
        )


def write_scene_json(folder: Path, record: dict[str, Any]) -> None:
    """Writes ``scene.json``: the scene's source, its unit, and its place on the Earth, if known."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "scene.json") as part:
        part.write_text(json.dumps({"version": 1, **record}, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _place_image(view: SourceView, camera: Camera, target: Path, size: tuple[int, int]) -> None:
    """Writes the view's image to ``target`` in ``size``; ``camera`` has the source image's size."""
    width, height = camera.width, camera.height
    changes = size != (width, height) or any(view.distortion)
    if target.is_file() and (target.samefile(view.image) or changes and image_size(target) == size):
        return
    if not changes:
        link(view.image, target)
        return
    pixels = np.ascontiguousarray(read_image(view.image, width, height).permute(1, 2, 0).numpy()[..., ::-1])
    if any(view.distortion):
        # COLMAP's pixel centres are at .5, OpenCV's at whole numbers.
        matrix = np.array([[camera.fx, 0, camera.cx - 0.5], [0, camera.fy, camera.cy - 0.5], [0, 0, 1]])
        pixels = cv2.undistort(pixels, matrix, np.array(view.distortion, dtype=np.float64))
    if size != (width, height):
        shrinks = size[0] <= width and size[1] <= height
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    done, data = cv2.imencode(target.suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise UserError(f"prepare: cannot encode {target.name}, expected a name that ends in .jpg or .png; rename it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part:
        part.write_bytes(with_exif(data.tobytes(), view.image))
