"""Mega-NeRF's folders (Mill 19, and the refined poses of UrbanScene3D) as views with COLMAP cameras.

  SRC/coordinates.pt                    origin_drb [3] and pose_scale_factor
  SRC/{train,val}/metadata/000123.pt    H, W, intrinsics (fx, fy, cx, cy), distortion, c2w [3,4]
  SRC/{train,val}/rgbs/000123.jpg       undistorted
  SRC/mappings.txt                      lines 'original image,000123.pt'

Mega-NeRF's world is DRB (x down, y right, z back) with the origin moved to origin_drb and divided by
pose_scale_factor; the columns of c2w are the camera's right, up and back. The views returned here are in the COLMAP
world that it was made from (x right, y down, z forward, metres), which is also that of the published COLMAP models and
of the aabbs in configs/scenes. Source: README and scripts/colmap_to_mega_nerf.py of cmusatyalab/mega-nerf.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera
from momentum_gs.data.images import IMAGE_SUFFIXES
from momentum_gs.data.prepare.files import SourceView, find_images, nearest_rotation

SPLITS = ("train", "val")


def read_mega_nerf(source: Path, photos: Path | None = None) -> dict[str, list[SourceView]]:
    """Views of both splits, in order of name.

    Args:
        source: The data set's folder.
        photos: Folder with the original images, for data sets without ``rgbs`` (UrbanScene3D): they are found through
            ``mappings.txt`` and have the distortion in the metadata. The images in ``rgbs`` are undistorted.

    Raises:
        UserError: for missing or damaged files.
    """
    coordinates = _load(source / "coordinates.pt", ("origin_drb", "pose_scale_factor"))
    origin = torch.as_tensor(coordinates["origin_drb"], dtype=torch.float64)
    scale = float(coordinates["pose_scale_factor"])
    originals = None if photos is None else _originals(source, photos)
    views: dict[str, list[SourceView]] = {}
    for split in SPLITS:
        folder = source / split
        files = sorted((folder / "metadata").glob("*.pt"))
        if not files:
            raise UserError(f"prepare: no *.pt files in {folder / 'metadata'}; unpack the data set again")
        views[split] = [_view(file, originals, origin, scale) for file in files]
    return views


def camera_from_mega_nerf(
    name: str,
    size: tuple[int, int],
    intrinsics: Float[Tensor, "4"],
    c2w: Float[Tensor, "3 4"],
    origin: Float[Tensor, "3"],
    scale: float,
) -> Camera:
    """One pose in COLMAP's world and camera axes.

    Args:
        name: Name of the view.
        size: Width and height, pixels.
        intrinsics: fx, fy, cx, cy, pixels.
        c2w: As stored.
        origin: origin_drb, metres.
        scale: pose_scale_factor, metres.

    Raises:
        ValueError: c2w holds no rotation.
    """
    # Swaps right with down and back with forward, so it is its own inverse.
    drb_to_rdf = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, -1]], dtype=torch.float64)
    pose = c2w.double()
    axes = drb_to_rdf @ pose[:, :3] * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)  # right, down, forward
    rotation = nearest_rotation(axes).T
    center = drb_to_rdf @ (pose[:, 3] * scale + origin)
    fx, fy, cx, cy = intrinsics.double().tolist()
    return Camera(name, *size, fx, fy, cx, cy, rotation, -rotation @ center)


def _view(file: Path, originals: dict[str, Path] | None, origin: Tensor, scale: float) -> SourceView:
    record = _load(file, ("H", "W", "c2w", "intrinsics"))
    if originals is not None:
        if file.name not in originals:
            raise UserError(f"prepare: mappings.txt does not list {file.name}; download the poses again")
        image = originals[file.name]
        distortion = tuple(torch.as_tensor(record.get("distortion", ())).double().tolist())
    else:
        image, distortion = _rgb(file), ()
    try:
        c2w = torch.as_tensor(record["c2w"])[:3, :4]
        intrinsics = torch.as_tensor(record["intrinsics"])
        size = int(record["W"]), int(record["H"])
        if c2w.shape != (3, 4) or intrinsics.shape != (4,):
            raise ValueError(f"c2w has shape {tuple(c2w.shape)}, intrinsics {tuple(intrinsics.shape)}")
        name = file.stem + image.suffix.lower()
        camera = camera_from_mega_nerf(name, size, intrinsics, c2w, origin, scale)
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"prepare: {file} has no usable camera ({error}), expected c2w [3,4] and fx, fy, cx, cy; download it again"
        ) from error
    return SourceView(camera, image, distortion)


def _rgb(file: Path) -> Path:
    """The image of a metadata file."""
    folder = file.parents[1] / "rgbs"
    for suffix in (".jpg", ".png", ".JPG", ".PNG", ".jpeg"):
        if (folder / (file.stem + suffix)).is_file():
            return folder / (file.stem + suffix)
    if not folder.is_dir():
        raise UserError(
            f"prepare: {folder} is missing, expected the undistorted images; give the folder of the original "
            "images with --photos"
        )
    return folder / f"{file.stem}.jpg"  # Missing; it will be counted with the other missing images.


def _originals(source: Path, photos: Path) -> dict[str, Path]:
    """Name of a metadata file -> original image, from mappings.txt."""
    mappings = source / "mappings.txt"
    try:
        lines = [line.strip() for line in mappings.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prepare: cannot read {mappings} ({error}); download the poses again") from error
    # The images may be in other folders than when the poses were made.
    by_name: dict[str, list[Path]] = {}
    for name in find_images(photos):
        by_name.setdefault(Path(name).name.lower(), []).append(photos / name)
    found = {}
    for line in lines:
        photo, comma, metadata = line.rpartition(",")
        if not comma or Path(photo).suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(
                f"prepare: {mappings} has the line {line!r}, expected 'image,metadata'; download the poses again"
            )
        known = by_name.get(Path(photo).name.lower(), [])
        if len(known) > 1 and not (photos / photo).is_file():
            raise UserError(
                f"prepare: {len(known)} images below {photos} are named {known[0].name}, expected one; name the "
                "folder of this scene with --photos"
            )
        found[metadata] = photos / photo if (photos / photo).is_file() or not known else known[0]
    return found


def _load(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """A dictionary of tensors and numbers from a torch file, which cannot run code."""
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"prepare: {path} is missing; name the folder with coordinates.pt, train and val") from error
    except Exception as error:  # torch.load raises many kinds of exceptions
        raise UserError(f"prepare: {path} cannot be read ({str(error).splitlines()[0]}); download it again") from error
    missing = [key for key in keys if not isinstance(record, dict) or key not in record]
    if missing:
        raise UserError(f"prepare: {path} has no {', '.join(missing)}, expected those of Mega-NeRF; download it again")
    return record
