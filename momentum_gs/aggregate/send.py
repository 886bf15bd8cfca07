"""What a device does when its block is trained, and what an edge does when models have arrived."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from momentum_gs.aggregate.combine import combine, view_shares
from momentum_gs.aggregate.compress import compress
from momentum_gs.aggregate.upload import Upload, copy_upload, receive, write_upload
from momentum_gs.aggregate.wire import decode, encode
from momentum_gs.bake.baking import bake
from momentum_gs.config.run import out_folder
from momentum_gs.config.schema import Config
from momentum_gs.core.device import pick_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.image import to_uint8
from momentum_gs.core.memory import peak_memory
from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.data.views import Views
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.io import load_model, model_file, model_folder
from momentum_gs.model.poses import load_poses
from momentum_gs.model.splats import Harmonics, Splats


def send_run(config: Config, block: int, folder: Path) -> dict[str, Any]:
    """Compresses the model of a finished run and writes its upload; anchors are baked first.

    Args:
        config: Settings of the run, whose ``out`` holds ``partition.json`` and a model of the coarse stage.
        block: The run's block.
        folder: The upload.

    Returns:
        What was measured (``Compressed.report``) and the bytes of the upload.

    Raises:
        UserError: the run is not finished, has a learned background, or its partition does not have the block.
    """
    run, device = out_folder(config), pick_device(config.device)
    table = PartitionTable.load(run / "partition.json")
    if not 0 <= block < table.n:
        raise UserError(f"compress: block is {block}, expected 0 to {table.n - 1}; correct --block")
    scene = load_scene(config.scene)
    files = model_folder(run)
    poses = load_poses(files)
    cameras = scene.train if poses is None else [poses.camera(camera) for camera in scene.train]
    model, decoder = load_model(model_file(files))
    if isinstance(decoder, GaussianDecoder) and decoder.background is not None:
        raise UserError(f"compress: {run} has learned a background, expected model.background=fixed; train it again")
    model, decoder = model.to(device), decoder.to(device).eval()
    background = torch.full((3,), float(config.scene.white_background), device=device)
    with Views(scene, int(config.scene.cache_gb * 1e9), device, skip_bad=config.scene.bad_images == "skip") as views:
        if isinstance(model, Splats):
            splats = model
        else:
            assert not isinstance(decoder, Harmonics), "anchors have a decoder"
            splats = bake(model, decoder, cameras, counts=views.counts)
        planar = config.model.surface == "planar"
        done = compress(splats, cameras, views.target_or_skip, config.compress, background, planar, config.seed)
        chosen = border_images(decode(done.data, "compress").to(device), cameras, table, block, config.aggregate.images)
        images = {camera.name: _pixels(views, camera) for camera in chosen}
    report = done.report | {"peak_bytes": peak_memory()}
    size = write_upload(folder, f"device {block}", done.data, table, [block], cameras, images, report)
    return report | {"sent": size}


def border_images(
    splats: Splats, cameras: Sequence[Camera], table: PartitionTable, block: int, count: int
) -> list[Camera]:
    """The views whose images a device sends: those that show the most of both sides of its cell's border."""
    if count == 0:
        return []
    outside = (table.cell_of(splats.position.detach().double()) != block).long()
    least = {camera.name: float(view_shares(splats, outside, camera, 2).min()) for camera in cameras}
    return sorted(cameras, key=lambda camera: (-least[camera.name], camera.name))[:count]


def aggregate_inbox(inbox: Path, folder: Path, config: Config, name: str) -> tuple[dict[str, Any], list[str]]:
    """Aggregates the uploads in a folder and writes the result as an upload of its own.

    A single upload is passed on bit for bit.

    Args:
        inbox: A folder with uploads.
        folder: Where the result goes.
        config: ``aggregate``, ``gaussians``, ``loss``, ``seed`` and ``device``.
        name: Of the sender of the result.

    Returns:
        What was done (``Combined.report``), and a line on each upload that was left out.

    Raises:
        UserError: no intact upload is there.
    """
    uploads, lines = receive(inbox)
    if len(uploads) == 1:
        assert uploads[0].folder is not None
        copy_upload(uploads[0].folder, folder)
        return {"models": 1, "gaussians": len(uploads[0].splats)}, lines
    done = combine(uploads, config, pick_device(config.device))
    by_name: dict[str, Camera] = {}
    images: dict[str, UInt8[Tensor, "3 h w"] | Path] = {}
    for upload in uploads:
        by_name |= {camera.name: camera for camera in upload.cameras if camera.name not in by_name}
        images |= {view: path for view, path in upload.images.items() if view not in images}
    blocks = sorted(block for upload in uploads for block in upload.blocks)
    cameras = [by_name[view] for view in sorted(by_name)]
    report = done.report | {"of": made_of(uploads, config), "peak_bytes": peak_memory()}
    write_upload(folder, name, encode(done.splats), uploads[0].table, blocks, cameras, images, report)
    return report, lines


def _pixels(views: Views, camera: Camera) -> UInt8[Tensor, "3 h w"]:
    return to_uint8(views.target(camera.name).image).cpu()


def made_of(uploads: Sequence[Upload], config: Config) -> list[str]:
    """What an aggregated model depends on: the hashes of what was received, and the settings."""
    settings = f"steps={config.aggregate.steps} surface={config.aggregate.surface} seed={config.seed}"
    return [*(upload.digest for upload in uploads), settings]


def is_made_of(upload: Upload, uploads: Sequence[Upload], config: Config) -> bool:
    """Whether a model was aggregated from these with these settings, or is the only one, passed on."""
    if len(uploads) == 1:
        return upload.digest == uploads[0].digest
    return upload.report.get("of") == made_of(uploads, config)
