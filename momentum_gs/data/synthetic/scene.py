"""A procedural city photographed by a drone, written as a COLMAP scene with ground-truth depth.

``OUT/images/NNNN.jpg``, ``OUT/sparse/0/{cameras,images,points3D}.bin``, ``OUT/sparse/0/test.txt`` (one held-out image
per line), ``OUT/depths/NNNN.png`` (16 bits; metres of camera z = value * ``depth_scale``, 0 where unknown),
``OUT/reference.ply`` (points of all surfaces that an image shows, to score meshes against) and ``OUT/synth.json`` (how
the scene was made, and ``depth_scale``). One unit is a metre; z points up; the city is centred
on the origin. On one machine the same settings give the same bytes.
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.cores import usable_cores
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import progress
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import PointCloud
from momentum_gs.data.colmap.model import write_model
from momentum_gs.data.synthetic.cast import Caster
from momentum_gs.data.synthetic.city import build_city
from momentum_gs.data.synthetic.shade import Shader
from momentum_gs.data.synthetic.survey import (
    FOCAL,
    features,
    fly,
    sparse_points,
    surface_cloud,
    target,
    thinned_cloud,
)
from momentum_gs.data.viewer_files import write_input_ply

POINTS_PER_BLOCK = 500
"""Sparse points per city block: about one per 6 m^2, the density of SfM on a small drone survey."""
TEST_EVERY, TEST_FIRST = 8, 4
"""Every 8th view is held out, from the 5th on: the very first lies at the corner, where a test would extrapolate."""
REFERENCE = "reference.ply"
"""Points of the surfaces, float32, metres."""
_TOGETHER = 32
"""Views whose points are thinned at once: fewer would sort the points of all before them more often."""
_MARKER = "synth.json"
_GENERATOR = "momentum-gs synth"
_DEPTH_RANGE = 8
"""Deepest depth that is stored, in altitudes of the flight; the oblique images end at about 2.5."""
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
"""Full chroma resolution: in small images, half-resolution colour would be the largest error."""


@dataclass(frozen=True, kw_only=True)
class CitySettings:
    """What to build and how to image it."""

    blocks_x: int = 4
    """City blocks along x, 56 m each."""
    blocks_y: int = 4
    """City blocks along y."""
    views: int = 80
    """Number of images, including held-out ones."""
    width: int = 320
    """Size of the images, pixels."""
    height: int = 240
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("blocks_x", 1), ("blocks_y", 1), ("views", 4), ("width", 16), ("height", 16)):
            if getattr(self, name) < least:
                raise UserError(f"synth: {name} is {getattr(self, name)}, expected at least {least}")


def write_city(folder: Path, settings: CitySettings, force: bool = False) -> int:
    """Write the scene.

    Args:
        folder: Created if needed. A synthetic city that is there already is replaced.
        settings: What to build.
        force: Also write into a folder that holds something else; only files of the same names are replaced.

    Returns:
        Number of sparse points.

    Raises:
        UserError: The folder holds something other than a synthetic city, and ``force`` is false.
    """
    # 'missing/../full' does not exist until 'missing' is created; resolved, it is 'full', which is then checked.
    folder = folder.resolve()
    _make_room(folder, force)
    city = build_city(settings.blocks_x, settings.blocks_y, settings.seed)
    caster = Caster(city)
    shader = Shader(city, caster)
    cameras, altitude = fly(city, settings.views, settings.width, settings.height, settings.seed)
    depth_scale = _DEPTH_RANGE * altitude / (2**16 - 1)
    record = {"generator": _GENERATOR, **asdict(settings), "unit": "metre", "depth_scale": depth_scale}
    for name in ("images", "depths", "sparse/0"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # Written first, so that an interrupted run can be repeated without --force.
    (folder / _MARKER).write_text(json.dumps(record, indent=2) + "\n")

    count = POINTS_PER_BLOCK * settings.blocks_x * settings.blocks_y
    # Twice what is needed: some of it falls on the sky or is seen by fewer than three views.
    wanted = -(-2 * count // settings.views)

    # Half of what a pixel covers straight below: closer points would only be those of overlapping images.
    spacing = altitude / (2 * FOCAL * settings.width)

    def take(i: int) -> tuple[Tensor, Tensor, PointCloud]:
        camera = cameras[i]
        image, depth = target(camera, caster, shader)
        _write_image(folder / "images" / camera.name, image)
        _write_depth(folder / "depths" / camera.name, depth, depth_scale)
        xyz, rgb = features(camera, image, depth, wanted, keyed_generator(settings.seed, "features", i))
        return xyz, rgb, thinned_cloud([surface_cloud(camera, image, depth)], spacing)

    found: list[tuple[Tensor, Tensor]] = []
    surfaces: list[PointCloud] = []
    with _one_thread_an_operator(), ThreadPoolExecutor(_workers()) as pool, progress(len(cameras), "synth") as bar:
        for xyz, rgb, seen in pool.map(take, range(len(cameras))):
            found.append((xyz, rgb))
            surfaces.append(seen)
            if len(surfaces) == _TOGETHER:
                surfaces = [thinned_cloud(surfaces, spacing)]
            bar.update()
        xyz, rgb = (torch.cat(part) for part in zip(*found, strict=True))
        points = sparse_points(xyz, rgb, cameras, caster, count, settings.seed)
    write_input_ply(folder / REFERENCE, thinned_cloud(surfaces, spacing))
    write_model(folder / "sparse" / "0", cameras, points, binary=True)
    held_out = [camera.name for camera in cameras[TEST_FIRST::TEST_EVERY]] or [cameras[-1].name]
    (folder / "sparse" / "0" / "test.txt").write_text("".join(f"{name}\n" for name in held_out))
    return len(points)


def read_depth(folder: Path, name: str) -> Float[Tensor, "h w"]:
    """Ground-truth depth of one view of a synthetic city: camera z in metres at the pixels' centres, 0 where unknown.

    Args:
        folder: The scene.
        name: Image name.
    """
    scale = json.loads((folder / _MARKER).read_text())["depth_scale"]
    stored = cv2.imread(str((folder / "depths" / name).with_suffix(".png")), cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise UserError(f"synth: {folder / 'depths' / name} has no depth image; write the scene again")
    return torch.from_numpy(stored.astype(np.float32)) * scale


def _workers() -> int:
    """One view per core; more than eight would only use memory."""
    return min(8, usable_cores())


@contextmanager
def _one_thread_an_operator() -> Iterator[None]:
    """Parallel views are faster than threads inside small operators, and make sums independent of the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make_room(folder: Path, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"synth: {folder} is a file, expected a folder to write to; choose another name")
    if _is_city(folder):
        for name in ("images", "depths", "sparse"):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
    elif folder.is_dir() and any(folder.iterdir()) and not force:
        raise UserError(
            f"synth: {folder} holds something other than a synthetic city; choose another folder or add --force"
        )


def _is_city(folder: Path) -> bool:
    try:
        record = json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("generator") == _GENERATOR


def _write_image(path: Path, image: Float[Tensor, "3 h w"]) -> None:
    rgb = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    _write(path, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), _JPEG)


def _write_depth(path: Path, depth: Float[Tensor, "h w"], scale: float) -> None:
    steps = (depth / scale).round()
    steps = torch.where(steps < 2**16, steps, 0.0)
    _write(path.with_suffix(".png"), steps.numpy().astype(np.uint16), [])


def _write(path: Path, image: np.ndarray, flags: list[int]) -> None:
    if not cv2.imwrite(str(path), image, flags):
        raise UserError(f"synth: cannot write {path}; is the disk full?")
