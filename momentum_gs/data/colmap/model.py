"""COLMAP models, binary and text: ``cameras``, ``images`` and ``points3D`` in one folder.

The layouts are those of COLMAP's documentation (https://colmap.github.io/format.html). Only what training needs is
read: observations and tracks are skipped, and the newer files ``frames`` and ``rigs`` are not opened.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import matrix_to_quat, quat_to_matrix
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.colmap.binary import binary_cameras, binary_images, binary_points, write_binary
from momentum_gs.data.colmap.records import Intrinsics, Pose
from momentum_gs.data.colmap.text import text_cameras, text_images, text_points, write_text
from momentum_gs.data.lens import Lens

# Wider than any image that decoders open (JPEG's limit is 65,535); a forged size must not reach an allocation.
MAX_SIDE = 2**20


@dataclass(frozen=True)
class ColmapModel:
    """Cameras and points of a COLMAP model."""

    cameras: list[Camera]
    """Sorted by name, at the image sizes that COLMAP used."""
    points: PointCloud


def find_model(scene: Path) -> Path:
    """The model's folder in a scene: ``sparse/0``, else ``sparse``.

    Raises:
        UserError: neither holds a ``cameras`` file.
    """
    for folder in (scene / "sparse" / "0", scene / "sparse"):
        if any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return folder
    raise UserError(f"{scene}: no COLMAP model found, expected sparse/0/cameras.bin (or .txt); check the path (-s)")


def read_model(folder: Path) -> ColmapModel:
    """Reads the model in a folder; each of the three files is read in its binary form if there is one.

    Raises:
        UserError: for missing, truncated or inconsistent files, impossible values and lenses with distortion.
    """
    return ColmapModel(read_cameras(folder), read_points(folder))


def read_cameras(folder: Path) -> list[Camera]:
    """Posed views of a model, sorted by name; errors as ``read_model``."""
    return [camera for camera, _ in read_views(folder)]


def read_views(
    folder: Path, distorted: bool = False, bad: dict[str, UserError] | None = None
) -> list[tuple[Camera, Lens]]:
    """Posed views of a model with their lenses, sorted by name.

    Args:
        folder: Folder of the model.
        distorted: Whether lenses may have distortion; the camera is then the pinhole part of the view.
        bad: If given, images with impossible names, poses or cameras are left out and added here, name -> error.

    Raises:
        UserError: as ``read_model``.
    """
    path = model_file(folder, "cameras")
    lenses: dict[int, Lens] = {}
    for number, lens in binary_cameras(path) if path.suffix == ".bin" else text_cameras(path):
        if number in lenses:
            raise UserError(f"{path}: camera {number} is listed twice, expected unique ids; export the model again")
        lenses[number] = _checked_lens(path, number, lens)
        if not (distorted or lens.is_pinhole):
            raise UserError(
                f"{path}: camera {number} has model {lens.model}, which is distorted, expected a pinhole camera; "
                "set scene.undistort=true, or run: colmap image_undistorter --image_path IMAGES "
                f"--input_path {path.parent} --output_path NEW_SCENE"
            )
    path = model_file(folder, "images")
    poses: dict[str, Pose] = {}
    for pose in binary_images(path) if path.suffix == ".bin" else text_images(path):
        if pose.name in poses:
            raise UserError(f"{path}: image {pose.name!r} is listed twice, expected unique names; rename one of them")
        try:
            if pose.camera not in lenses:
                raise UserError(
                    f"{path}: image {pose.name!r} uses camera {pose.camera}, which "
                    f"cameras{model_file(folder, 'cameras').suffix} does not list (it has {sorted(lenses)[:8]}); "
                    "export the model again"
                )
            poses[pose.name] = _checked_pose(path, pose)
        except UserError as error:
            if bad is None:
                raise
            bad[pose.name] = error
    if not poses:
        raise UserError(f"{path}: holds no images, expected at least one; run the reconstruction again")
    ordered = [poses[name] for name in sorted(poses)]
    rotations = quat_to_matrix(torch.tensor([pose.quat for pose in ordered], dtype=torch.float64))
    translations = torch.tensor([pose.translation for pose in ordered], dtype=torch.float64)
    views = []
    for pose, rotation, translation in zip(ordered, rotations, translations, strict=True):
        lens = lenses[pose.camera]
        camera = Camera(pose.name, lens.width, lens.height, *lens.focal, *lens.center, rotation, translation)
        views.append((camera, lens))
    return views


def read_points(folder: Path) -> PointCloud:
    """The sparse points of a model, in the file's order; errors as ``read_model``."""
    path = model_file(folder, "points3D")
    xyz, rgb = binary_points(path) if path.suffix == ".bin" else text_points(path)
    bad = int((~np.isfinite(xyz).all(axis=1)).sum())
    if bad:
        raise UserError(f"{path}: {bad} of {len(xyz)} points have NaN or infinite coordinates; export the model again")
    return PointCloud(torch.from_numpy(xyz), torch.from_numpy(rgb))


def write_model(folder: Path, cameras: Sequence[Camera], points: PointCloud, binary: bool = True) -> None:
    """Writes a model that ``read_model`` and COLMAP read: PINHOLE cameras, no observations, no tracks.

    Cameras of equal intrinsics share one COLMAP camera; images are numbered from 1 in the given order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for camera in cameras:
        checked_name(folder, camera.name)
    ids: dict[Intrinsics, int] = {}
    for c in cameras:
        ids.setdefault(Intrinsics(c.width, c.height, c.fx, c.fy, c.cx, c.cy), len(ids) + 1)
    quats = matrix_to_quat(torch.stack([camera.rotation for camera in cameras])).tolist() if cameras else []
    poses = [
        Pose(c.name, quat, c.translation.tolist(), ids[Intrinsics(c.width, c.height, c.fx, c.fy, c.cx, c.cy)])
        for c, quat in zip(cameras, quats, strict=True)
    ]
    xyz, rgb = points.xyz.numpy(), points.rgb.numpy()
    if binary:
        write_binary(folder, ids, poses, xyz, rgb)
    else:
        write_text(folder, ids, poses, xyz, rgb)


def model_file(folder: Path, stem: str) -> Path:
    """The file ``cameras``, ``images`` or ``points3D`` of a model, preferably binary; UserError if there is none."""
    for suffix in (".bin", ".txt"):
        if (folder / (stem + suffix)).is_file():
            return folder / (stem + suffix)
    raise UserError(f"{folder}: no {stem}.bin and no {stem}.txt, expected one of them; check the scene's path (-s)")


def _checked_lens(path: Path, number: int, lens: Lens) -> Lens:
    (fx, fy), (cx, cy) = lens.focal, lens.center
    # The condition is written so that NaN fails it.
    size_ok = 1 <= lens.width <= MAX_SIDE and 1 <= lens.height <= MAX_SIDE
    if not (size_ok and fx > 0 and fy > 0 and all(math.isfinite(v) for v in (fx, fy, cx, cy, *lens.extra))):
        raise UserError(
            f"{path}: camera {number} is {lens.width}x{lens.height} with fx={fx}, fy={fy}, cx={cx}, cy={cy}"
            f"{', distortion ' + str(list(lens.extra)) if lens.extra else ''}, expected a size of 1 to {MAX_SIDE} and "
            "finite values with focal lengths above 0; export the model again"
        )
    return lens


def _checked_pose(path: Path, pose: Pose) -> Pose:
    checked_name(path, pose.name)
    length = math.hypot(*pose.quat)
    # COLMAP writes unit quaternions. Near length 0 the direction is only round-off; NaN fails the comparison.
    if not (1e-6 < length < math.inf and all(math.isfinite(v) for v in pose.translation)):
        raise UserError(
            f"{path}: image {pose.name!r} has quaternion {list(pose.quat)} and translation {list(pose.translation)}, "
            "expected finite numbers and a quaternion of length 1; take the image out of the model"
        )
    return pose


def checked_name(where: Path | str, name: str) -> None:
    """Checks that an image name, joined to the image folder, stays inside it on any operating system.

    Args:
        where: Source of the name, for the message.

    Raises:
        UserError: for a name that is not a plain relative path.
    """
    parts = name.replace("\\", "/").split("/")
    # Half of a surrogate pair, which JSON can hold, cannot be encoded; no file system accepts parts over 255 bytes.
    encodable = not any(0xD800 <= ord(c) < 0xE000 for c in name)
    long = encodable and any(len(part.encode()) > 255 for part in parts)
    if (
        any(part in ("", ".", "..") for part in parts)
        or name[1:2] == ":"
        or any(ord(c) < 32 for c in name)
        or not encodable
        or long
    ):
        raise UserError(
            f"{where}: image name {name[:80]!r} is not a plain path below the image folder (absolute, empty, '.' or "
            "'..' parts, control characters, over 255 bytes); rename the image in the model"
        )
