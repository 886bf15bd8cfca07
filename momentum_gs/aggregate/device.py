"""What a device has: the images of one block, their poses and the points that they see, as a scene of its own."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

from momentum_gs.config.schema import Config, SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_any_view
from momentum_gs.core.types import PointCloud
from momentum_gs.data.colmap.model import write_model
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene

LEAST_VIEWS = 3
"""Fewest views of a device: a place needs three for one to be able to contradict the other two
(``partition.min_views``)."""


def write_device_scene(folder: Path, scene: Scene, table: PartitionTable, block: int) -> int:
    """Writes the scene of a block's device: its training images, and no other, in training coordinates.

    Images and masks are hard links where the file system allows it, otherwise copies.

    Args:
        folder: Gets ``images``, ``masks`` and ``sparse/0``.
        scene: The whole scene.
        table: Its partition.
        block: The block.

    Returns:
        Bytes of the images: what sending them to the cloud would take.

    Raises:
        UserError: the block has fewer than ``LEAST_VIEWS`` views.
    """
    names = set(table.views[block])
    cameras = [camera for camera in scene.train if camera.name in names]
    if len(cameras) < LEAST_VIEWS:
        raise UserError(
            f"device {block}: {len(cameras)} views, expected at least {LEAST_VIEWS}; its cell is left to its "
            "neighbours, use fewer blocks or a lower partition.threshold"
        )
    size = 0
    for camera in cameras:
        size += _link(scene.image_paths[camera.name], folder / "images" / camera.name)
        if camera.name in scene.mask_paths:
            _link(scene.mask_paths[camera.name], folder / "masks" / f"{camera.name}.png")
    seen = in_any_view(scene.points.xyz, cameras)
    write_model(folder / "sparse" / "0", cameras, PointCloud(scene.points.xyz[seen], scene.points.rgb[seen]))
    return size


def device_config(config: Config, scene: Path, out: Path) -> Config:
    """The settings with which a device trains its block: the whole of its scene is one block.

    Args:
        config: Settings of the whole scene, with no ``auto`` left.
        scene: The device's scene (``write_device_scene``).
        out: The device's output folder.
    """
    own = SceneConfig(
        path=str(scene), resolution=config.scene.resolution, test_every=0, cache_gb=config.scene.cache_gb,
        white_background=config.scene.white_background, bad_images=config.scene.bad_images,
    )  # fmt: skip
    return replace(config, stage="coarse", out=str(out), scene=own)


def _link(source: Path, target: Path) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        try:
            os.link(source.resolve(), target)
        except OSError:  # Another file system, or one without hard links.
            shutil.copyfile(source, target)
    return source.stat().st_size
