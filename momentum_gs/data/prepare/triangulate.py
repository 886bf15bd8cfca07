"""Sparse points for views whose poses are known: features and matches of their images, triangulated by COLMAP.

For data sets that publish poses without points. The poses stay as they are.
"""

from itertools import groupby
from pathlib import Path

import torch

from momentum_gs.core.errors import UserError
from momentum_gs.data.colmap.model import read_cameras, read_points, write_model
from momentum_gs.data.prepare.features import Workshop, digest, nearest_pairs
from momentum_gs.data.prepare.files import link


def triangulate(part: Path, max_features: int) -> int:
    """Gives a scene's model the points that its images tell; returns their number.

    Each image is matched with those of its nearest cameras. What is done already is kept.

    Args:
        part: ``images`` and ``sparse/0`` with PINHOLE cameras, for images as they are; works in ``part/sfm``.
        max_features: Of an image.

    Raises:
        UserError: where pycolmap is missing, or no point is found.
    """
    model = part / "sparse" / "0"
    cameras = {camera.name: camera for camera in read_cameras(model)}
    spaced = next((name for name in cameras if any(c.isspace() for c in name)), None)
    if spaced is not None:
        raise UserError(f"prepare: the name {spaced!r} has a space, which COLMAP's lists cannot hold; rename the image")
    names = sorted(cameras)
    shop = Workshop(part / "images", names, part / "sfm")
    pycolmap, found = shop.pycolmap, shop.work / "points"

    def intrinsics(name: str) -> str:
        camera = cameras[name]
        return f"{camera.fx!r},{camera.fy!r},{camera.cx!r},{camera.cy!r}"

    groups = groupby(sorted(names, key=intrinsics), key=intrinsics)
    shop.extract([(list(n), {"camera_model": "PINHOLE", "camera_params": k}) for k, n in groups], max_features)
    poses = [[*camera.rotation.flatten().tolist(), *camera.translation.tolist()] for camera in cameras.values()]
    centers = torch.stack([cameras[name].center for name in names])
    shop.match({"poses": digest(repr(poses))}, lambda: sorted(nearest_pairs(names, centers)))

    def work(_: bool) -> None:
        reconstruction = pycolmap.Reconstruction()
        with shop.open_database() as database:
            images = {image.frame_id: image for image in database.read_all_images()}
            for lens in database.read_all_cameras():
                reconstruction.add_camera(lens)
            for rig in database.read_all_rigs():
                reconstruction.add_rig(rig)
            for frame in database.read_all_frames():
                image = images[frame.frame_id]
                camera = cameras[image.name]
                rotation = pycolmap.Rotation3d(camera.rotation.numpy())
                frame.rig_from_world = pycolmap.Rigid3d(rotation, camera.translation.numpy())  # One camera a rig.
                reconstruction.add_frame(frame)
                reconstruction.add_image(image)
        for frame_id in images:
            reconstruction.register_frame(frame_id)
        found.mkdir(exist_ok=True)
        pycolmap.triangulate_points(reconstruction, shop.database, shop.photos, found)

    shop.stage("triangulation", {}, work)
    points = read_points(found)
    if len(points) == 0:
        raise UserError(f"prepare: no points found in the images of {part}; do the poses belong to them?")
    # Of a model without tracks, as those of COLMAP's name views by other numbers. Cameras and poses stay, to the bit.
    write_model(found / "plain", list(cameras.values()), points)
    link(found / "plain" / "points3D.bin", model / "points3D.bin")
    return len(points)
