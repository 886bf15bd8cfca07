"""Sparse points for views with known poses: features and matches of their images, triangulated by COLMAP.

This is for data sets that publish poses without points. The poses are not changed.
"""

from itertools import groupby
from pathlib import Path

import torch

from momentum_gs.core.errors import UserError
from momentum_gs.data.colmap.model import read_cameras, read_points, write_model
from momentum_gs.data.prepare.features import Workshop, digest, nearest_pairs
from momentum_gs.data.prepare.files import link


def triangulate(part: Path, max_features: int) -> int:
    """Triangulates the points of a scene and writes them to its model; returns their number.

    Each image is matched with those of its nearest cameras. Stages that are complete are kept.

    Args:
        part: Folder with ``images`` and ``sparse/0``, whose PINHOLE cameras have the images' sizes; the stages work in
            ``part/sfm``.
        max_features: Largest number of features per image.

    Raises:
        UserError: pycolmap is missing, or no point is found.
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
                frame.rig_from_world = pycolmap.Rigid3d(rotation, camera.translation.numpy())  # One camera per rig.
                reconstruction.add_frame(frame)
                reconstruction.add_image(image)
        for frame_id in images:
            reconstruction.register_frame(frame_id)
        found.mkdir(exist_ok=True)
        pycolmap.triangulate_points(reconstruction, shop.database, shop.photos, found)

    shop.stage("triangulation", {}, work)
    points = read_points(found)
    if len(points) == 0:
        raise UserError(f"prepare: no points found in the images of {part}; check that the poses belong to them")
    # Written without tracks, whose image ids are those of COLMAP's model. Cameras and poses stay bit-identical.
    write_model(found / "plain", list(cameras.values()), points)
    link(found / "plain" / "points3D.bin", model / "points3D.bin")
    return len(points)
