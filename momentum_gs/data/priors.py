"""Depth and normal priors: maps that an estimator made of the training images, in folders beside the image folder.

The map of ``a/1.jpg`` is ``a/1.npy``, ``a/1.jpg.npy``, ``a/1.png`` or ``a/1.jpg.png`` below the folder. A depth map is
a PNG of 16 bits or a float array [H,W]; a normal map is an RGB PNG of 8 bits, whose 0 to 255 stand for -1 to 1, or a
float array [H,W,3] or [3,H,W]. docs/surfaces.md has the conventions.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from momentum_gs.config.schema import Config
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import project
from momentum_gs.core.log import info, warn
from momentum_gs.data.images import stored_pixels
from momentum_gs.data.masks import find_beside
from momentum_gs.data.scene import Scene

_ASPECT = 1.1
"""Largest ratio of the aspect ratios of a map and its image. Estimators round sides to multiples of 14 or 32, which
changes the ratio by a few percent; a crop or a rotated image changes it by more."""
_LENGTHS = (0.5, 1.5)
"""Lengths between which a vector is a normal: 0 and black pixels (-1, -1, -1) mean none."""
_LEAST_KNOWN = 0.01
"""Share of a map's vectors that must be normals: with fewer, the file is something else."""
_LOOK = 3
"""Views whose depth maps are compared with the scene's points before training."""
_OPPOSITE = -0.3
"""Correlation with the points' depth below which a map is taken to hold the other kind of depth."""


@dataclass(frozen=True)
class Priors:
    """Files of the maps by image name; an image may have none."""

    depths: dict[str, Path]
    normals: dict[str, Path]
    inverse: bool
    """Whether depth maps hold inverse depth."""

    def bytes_per_pixel(self, name: str) -> int:
        """Of what ``read`` returns."""
        return 4 * (name in self.depths) + 3 * (name in self.normals)

    def read(self, name: str, width: int, height: int) -> UInt8[Tensor, "c h w"]:
        """The maps of an image at training resolution, as bytes for the cache: float32 depth, then normals of 8 bits.

        Raises:
            UserError: naming the file, for one that is damaged or holds something else.
        """
        parts = []
        if name in self.depths:
            depth = read_depth(self.depths[name], width, height, self.inverse)
            parts.append(torch.from_numpy(depth.view(np.uint8).reshape(4, height, width)))
        if name in self.normals:
            normals = read_normals(self.normals[name], width, height)
            levels = ((normals + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
            parts.append(torch.from_numpy(np.ascontiguousarray(levels.transpose(2, 0, 1))))
        return torch.cat(parts) if parts else torch.empty(0, height, width, dtype=torch.uint8)

    def take(
        self, name: str, stored: UInt8[Tensor, "c h w"]
    ) -> tuple[Float[Tensor, "h w"] | None, Float[Tensor, "3 h w"] | None]:
        """Depth (NaN where unknown) and unit normals in camera axes (0 where unknown) from what ``read`` returned."""
        depth, normal = None, None
        if name in self.depths:
            # A copy begins at an address that floats may have.
            depth = stored[:4].clone().flatten().view(torch.float32).view(stored.shape[1:])
            stored = stored[4:]
        if name in self.normals:
            normal = stored.float() / 127.5 - 1
            length = (normal * normal).sum(dim=0).sqrt()
            normal = torch.where(length > _LENGTHS[0], normal / length.clamp_min(_LENGTHS[0]), 0.0)
        return depth, normal


def find_priors(config: Config, scene: Scene) -> Priors | None:
    """The maps of the training images that the settings ask for; None without ``loss.depth_prior`` and
    ``loss.normal_prior``. Says how many images have one.

    Raises:
        UserError: no image has one; or an image with a map had to be undistorted, which its map was not.
    """
    loss, settings = config.loss, config.scene
    if not (loss.depth_prior or loss.normal_prior):
        return None
    depths = _find(scene, settings.depths, "depth", settings.undistort_folder) if loss.depth_prior else {}
    normals = _find(scene, settings.normals, "normal", settings.undistort_folder) if loss.normal_prior else {}
    priors = Priors(depths, normals, settings.depths_hold == "inverse")
    _compare_with_points(priors, scene)
    return priors


def _find(scene: Scene, folder: str, kind: str, undistort_folder: str) -> dict[str, Path]:
    # A scene in two parts trains on its train part, whose image names may have been prefixed with train/.
    parts = (scene.path / "train" / "sparse").is_dir()
    place = (scene.path / "train" if parts else scene.path) / folder
    prefixed = parts and all(camera.name.startswith("train/") for camera in scene.train)
    names = {camera.name.removeprefix("train/") if prefixed else camera.name: camera.name for camera in scene.train}
    below, unknown = find_beside(place, names, _forms)
    found = {names[name]: path for name, path in below.items()}
    if not found:
        instead = f"the first of its {len(unknown)} files is {unknown[0]}" if unknown else "it has no files"
        raise UserError(
            f"loss.{kind}_prior: no training image has a map in {place} ({instead}), expected <image name>.png or .npy "
            f"with the image's sub-folder; write the estimator's maps there, or set loss.{kind}_prior=0"
        )
    bent = next((name for name in found if scene.path / undistort_folder in scene.image_paths[name].parents), None)
    if bent is not None:
        raise UserError(
            f"loss.{kind}_prior: image {bent} is undistorted for training (scene.undistort), but its map {found[bent]} "
            "is not, expected maps of pinhole images; undistort the images first (colmap image_undistorter) and run "
            "the estimator on those"
        )
    missing = [camera.name for camera in scene.train if camera.name not in found]
    without = f"; {len(missing)} train without, first: {missing[0]}" if missing else ""
    info(f"scene: {len(found)} of {len(scene.train)} training images have a {kind} prior ({place}){without}")
    return found


def _forms(name: str) -> list[str]:
    stem = PurePosixPath(name)
    return [form for end in (".npy", ".png") for form in (str(stem.with_suffix(end)), name + end)]


def _compare_with_points(priors: Priors, scene: Scene) -> None:
    """Warns where depth maps grow the wrong way with the depths of the scene's points."""
    found = []
    for camera in [camera for camera in scene.train if camera.name in priors.depths][:_LOOK]:
        pixels, z = project(scene.points.xyz[:: max(len(scene.points) // 10000, 1)], camera)
        column, row = pixels.floor().long().unbind(1)
        inside = (z > 0) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
        depth = read_depth(priors.depths[camera.name], camera.width, camera.height, priors.inverse)
        there = torch.from_numpy(depth)[row[inside], column[inside]].double()
        seen = (1 / z if priors.inverse else z)[inside].double()
        known = there.isfinite()
        correlation = torch.corrcoef(torch.stack([there[known], seen[known]]))[0, 1] if known.sum() > 20 else None
        if correlation is not None and correlation.isfinite():
            found.append(float(correlation))
    if found and sum(found) / len(found) < _OPPOSITE:
        nearer, other = ("farther", "depth") if priors.inverse else ("nearer", "inverse")
        warn(
            f"loss.depth_prior: depth maps are larger where the scene's points are {nearer}, expected "
            f"{'inverse depth' if priors.inverse else 'depth'}; try scene.depths_hold={other}"
        )


def read_depth(path: Path, width: int, height: int, inverse: bool) -> Float32[np.ndarray, "h w"]:
    """A depth map at training resolution, in its own unit; NaN where it knows nothing.

    Values of inverse depth are all known; a depth of 0 or less is not. A pixel of a downscaled map is known if all
    pixels of the file that it covers are.

    Raises:
        UserError: the file is damaged, of another type, shape or aspect ratio, has values that are not finite, or one
            value only.
    """
    raw = _load(path, "depth", np.uint16)
    if raw.ndim != 2:
        raise _bad(path, "depth", f"has the shape {raw.shape}", "one value per pixel [H,W]", "write it as one channel")
    values = _checked(path, "depth", raw, width, height)
    known = np.ones_like(values, bool) if inverse else values > 0
    if not known.any() or values[known].min() == values[known].max():
        value = f"{values.flat[0]:g}" if not known.any() else f"{values[known].min():g}"
        found = f"is {value} at every pixel" + ("" if inverse else " with a depth")
        raise _bad(path, "depth", found, "a map that varies", "run the estimator again, or remove it")
    if values.shape == (height, width):
        return np.where(known, values, np.float32("nan"))
    small, share = (_resized(part.astype(np.float32), width, height) for part in (np.where(known, values, 0), known))
    return np.where(share > 1 - 1e-4, small, np.float32("nan"))


def read_normals(path: Path, width: int, height: int) -> Float32[np.ndarray, "h w 3"]:
    """A normal map at training resolution, in camera axes as COLMAP has them (x right, y down, z forward).

    Vectors are near unit length, after averaging shorter, and 0 where unknown. Visible surfaces face the camera, so the
    sign of z tells which of two conventions the file has: negative as COLMAP's, positive as OpenGL's (x right, y up, z
    backward).

    Raises:
        UserError: the file is damaged, of another type, shape or aspect ratio, or its values are no unit vectors.
    """
    raw = _load(path, "normal", np.uint8)
    if path.suffix == ".npy" and raw.ndim == 3 and raw.shape[0] == 3 and raw.shape[2] != 3:
        raw = raw.transpose(1, 2, 0)
    if raw.ndim != 3 or raw.shape[2] != 3:
        expected = "three channels [H,W,3]" + (" or [3,H,W]" if path.suffix == ".npy" else "")
        raise _bad(path, "normal", f"has the shape {raw.shape}", expected, "write x, y and z of every pixel")
    vectors = _checked(path, "normal", raw, width, height)
    if raw.dtype == np.uint8:
        vectors = vectors[..., ::-1] / np.float32(127.5) - 1  # OpenCV reads BGR.
    length = np.linalg.norm(vectors, axis=2)
    known = (length > _LENGTHS[0]) & (length < _LENGTHS[1])
    if known.mean() < _LEAST_KNOWN or vectors.min() >= 0:
        lengths = f"has values from {vectors.min():g} to {vectors.max():g} and {known.mean():.0%} unit vectors"
        raise _bad(path, "normal", lengths, "unit vectors in [-1, 1]", "run the estimator again, or remove it")
    vectors = np.where(known[..., None], vectors, 0)
    if vectors[..., 2].sum() > 0:
        vectors = vectors * np.array([1, -1, -1], np.float32)
    return _resized(vectors.astype(np.float32), width, height)


def _load(path: Path, kind: str, png_type: type[np.generic]) -> np.ndarray:
    """Pixels of a PNG or an array of floats, without axes of length 1."""
    if path.suffix != ".npy":
        pixels = stored_pixels(path)
        if pixels.dtype != png_type:
            bits = 8 * np.dtype(png_type).itemsize
            cure = "write it with that, or as .npy"
            raise _bad(path, kind, f"has pixels of type {pixels.dtype}", f"a PNG of {bits} bits", cure)
        return pixels
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        found = f"cannot be read ({str(error).splitlines()[0]})"
        raise _bad(path, kind, found, "an array of floats", "write it again with numpy.save") from error
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        found = f"holds {getattr(array, 'dtype', 'several arrays')}"
        raise _bad(path, kind, found, "one array of floats", "write it with numpy.save as float32")
    return array.squeeze()


def _checked(path: Path, kind: str, raw: np.ndarray, width: int, height: int) -> np.ndarray:
    """The values as float32: finite, and of the image's aspect ratio."""
    rows, columns = raw.shape[:2]
    ratio = columns * height / (max(rows, 1) * width)
    if not 1 / _ASPECT < ratio < _ASPECT:
        expected = f"the shape of its image at any size ({width}x{height} in training)"
        raise _bad(path, kind, f"is {columns}x{rows}", expected, "make it from the whole image, or remove it")
    with np.errstate(over="ignore"):
        values = raw.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        found = f"has {values.size - int(finite.sum()):,} values that are not finite, first: {values[~finite][0]}"
        cure = "write 0 where nothing is known"
        raise _bad(path, kind, found, "finite numbers", cure)
    return values


def _resized(values: np.ndarray, width: int, height: int) -> np.ndarray:
    rows, columns = values.shape[:2]
    if (rows, columns) == (height, width):
        return values
    shrinks = width <= columns and height <= rows
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _bad(path: Path, kind: str, found: str, expected: str, cure: str) -> UserError:
    return UserError(f"data: {kind} prior {path} {found}, expected {expected}; {cure}")
