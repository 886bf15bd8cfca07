"""Small data sets in the formats of other projects: conversion gives the cameras that they were made from."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scene_files import write_image
from tiny_run import BASE
from tiny_scene import SIZE, nadir_camera, texture, write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.colmap.model import read_cameras, write_model
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.prepare.matrixcity import read_matrixcity
from momentum_gs.data.prepare.meganerf import read_mega_nerf
from momentum_gs.data.scene import load_scene
from momentum_gs.partition.published_masks import read_camera_masks

# Mega-NeRF stores float32: positions of some 400 units have a rounding error of 3e-5 each, differences twice that.
STORED = 1e-4
K1 = -0.2
OPENGL = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))


def rig() -> list[Camera]:
    """Nine cameras with different tilts and headings, far from the origin; named as in Mega-NeRF."""
    cameras = []
    for i in range(9):
        flat = nadir_camera(f"{i:06d}.jpg", 0, 0)
        tilt, turn = 0.1 * i - 0.4, 0.7 * i
        s, c = math.sin(tilt), math.cos(tilt)
        x = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)
        s, c = math.sin(turn), math.cos(turn)
        z = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
        rotation = x @ z @ flat.rotation
        # COLMAP's world of these data sets has y down.
        center = torch.tensor([310.0 + 2 * (i % 3), -4.0 - 0.1 * i, 205.0 + 2 * (i // 3)], dtype=torch.float64)
        cameras.append(Camera(flat.name, *SIZE, 40.0, 41.0, 23.5, 18.5, rotation, -rotation @ center))
    return cameras


def target(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    """An image that differs from seed to seed."""
    x, y = torch.meshgrid(torch.linspace(0, 4, size[0]) + seed, torch.linspace(0, 3, size[1]), indexing="xy")
    write_image(path, (texture(torch.stack([x, y], -1)).numpy() * 255).astype(np.uint8))


def write_mega_nerf(root: Path, cameras: list[Camera], rgbs: bool = True) -> Path:
    """In the format that scripts/colmap_to_mega_nerf.py of Mega-NeRF writes; every fourth view is held out."""
    swap = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, -1]], dtype=torch.float64)  # RDF to DRB, and back
    centers = torch.stack([swap @ camera.center for camera in cameras])
    origin, scale = (centers.amax(0) + centers.amin(0)) / 2, 20.0
    lines = []
    for i, camera in enumerate(cameras):
        part = root / ("val" if i % 4 == 0 else "train")
        stem = Path(camera.name).stem
        axes = swap @ camera.rotation.T @ swap
        pose = torch.cat([axes, ((centers[i] - origin) / scale)[:, None]], dim=1)
        record = {
            "H": camera.height,
            "W": camera.width,
            "c2w": torch.cat([pose[:, 1:2], -pose[:, :1], pose[:, 2:4]], dim=1).float(),
            "intrinsics": torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy]),
            "distortion": torch.tensor([K1, 0.0, 0.0, 0.0]),
        }
        (part / "metadata").mkdir(parents=True, exist_ok=True)
        torch.save(record, part / "metadata" / f"{stem}.pt")
        if rgbs:
            target(part / "rgbs" / camera.name, i)
        lines.append(f"DJI_{i:04d}.JPG,{stem}.pt\n")
    torch.save({"origin_drb": origin.float(), "pose_scale_factor": scale}, root / "coordinates.pt")
    (root / "mappings.txt").write_text("".join(lines))
    return root


def write_matrixcity(root: Path, cameras: list[Camera]) -> Path:
    """Two blocks to train, one to test, in metres and with rotations divided by 100."""
    for i, camera in enumerate(cameras):
        block = root / ("test/block_1_test" if i % 4 == 0 else f"train/block_{2 if i < 5 else 10}")
        file = block / "transforms.json"
        frames = json.loads(file.read_text())["frames"] if file.is_file() else []
        index = len(frames)
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3], pose[:3, 3] = camera.rotation.T @ OPENGL / 100, camera.center * 100
        target(block / f"{index:04d}.png", i)
        frames.append({"frame_index": index, "rot_mat": pose.tolist(), "rig": i})
        angle = 2 * math.atan(camera.width / 2 / camera.fx)
        file.write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    return root


def write_points(model: Path, cameras: list[Camera]) -> None:
    """A model of these cameras, with a point in front of each."""
    xyz = torch.stack([camera.center + camera.rotation[2] * 4 for camera in cameras])
    write_model(model, cameras, PointCloud(xyz, torch.full((len(cameras), 3), 128, dtype=torch.uint8)))


def assert_same_rig(found: list[Camera], expected: list[Camera], tolerance: float) -> None:
    assert [camera.name for camera in found] == [camera.name for camera in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a.width, a.height) == (b.width, b.height)
        assert (a.fx, a.fy, a.cx, a.cy) == pytest.approx((b.fx, b.fy, b.cx, b.cy), rel=1e-6)
        assert (a.rotation - b.rotation).abs().max() < tolerance
        assert (a.center - b.center).abs().max() < tolerance


def split(cameras: list[Camera]) -> tuple[list[Camera], list[Camera]]:
    return [c for i, c in enumerate(cameras) if i % 4], cameras[::4]


def test_mega_nerf_comes_back_as_the_model_it_was_made_from(tmp_path: Path) -> None:
    cameras = rig()
    views = read_mega_nerf(write_mega_nerf(tmp_path, cameras))
    train, val = split(cameras)
    # In the same coordinates, not only up to a similarity: published models and aabbs are given in them.
    assert_same_rig([view.camera for view in views["train"]], train, STORED)
    assert_same_rig([view.camera for view in views["val"]], val, STORED)


def test_mill19_with_a_published_model_loads_as_a_scene(tmp_path: Path) -> None:
    cameras = rig()
    source, out = write_mega_nerf(tmp_path / "building-pixsfm", cameras), tmp_path / "out"
    train, val = split(cameras)
    write_points(tmp_path / "published/train/sparse/0", train)
    write_points(tmp_path / "published/val/sparse/0", val)
    assert main(["prepare", "mill19", str(source), str(out), "--colmap", str(tmp_path / "published")]) == 0
    scene = load_scene(SceneConfig(path=str(out), resolution=1.0))
    assert_same_rig(scene.train, train, 1e-9)  # From the published model, not from the float32 poses.
    assert_same_rig(scene.test, val, 1e-9)
    assert len(scene.points) == len(train)
    # No second copy of images that need no change.
    image = out / "train" / "images" / train[0].name
    assert image.samefile(source / "train" / "rgbs" / train[0].name)
    assert json.loads((out / "scene.json").read_text())["unit_metres"] == 1


def test_a_published_model_that_names_other_images_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cameras = rig()
    source = write_mega_nerf(tmp_path / "source", cameras)
    train, val = split(cameras)
    write_points(tmp_path / "published/train/sparse/0", [*train, nadir_camera("000099.jpg", 0, 0)])
    write_points(tmp_path / "published/val/sparse/0", val)
    argv = ["prepare", "mill19", str(source), str(tmp_path / "out"), "--colmap", str(tmp_path / "published")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "1 of 7 views" in error and "000099.jpg" in error
    assert not (tmp_path / "out" / "train" / "sparse").exists()


def test_original_images_are_undistorted(tmp_path: Path) -> None:
    """A straight line in the world is bent in the original image and straight in the one that is written."""
    cameras = [Camera(c.name, 480, 360, 400.0, 400.0, 240.0, 180.0, c.rotation, c.translation) for c in rig()[:2]]
    source, photos = write_mega_nerf(tmp_path / "source", cameras, rgbs=False), tmp_path / "photos"
    for i in range(2):
        u, v = np.meshgrid(np.arange(480) + 0.5, np.arange(360) + 0.5)
        ideal = cv2.undistortPoints(
            np.stack([u.ravel(), v.ravel()], 1)[:, None],
            np.array([[400.0, 0, 240], [0, 400, 180], [0, 0, 1]]),
            np.array([K1, 0, 0, 0]),
        )
        # The edge lies at x/z = 0.45, 180 pixels right of the middle.
        white = ideal[:, 0, 0].reshape(360, 480) > 0.45
        write_image(photos / "flight" / f"DJI_{i:04d}.JPG", np.repeat(white[..., None], 3, 2).astype(np.uint8) * 255)
    out = tmp_path / "out"
    main(["prepare", "urbanscene3d", str(source), str(out), "--photos", str(photos)])
    assert [c.name for c in read_cameras(out / "train/sparse/0")] == ["000001.jpg"]

    def edge(path: Path) -> np.ndarray:
        rows = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[5:355].astype(float)
        return (rows < 128).sum(axis=1)

    bent, straight = edge(photos / "flight/DJI_0001.JPG"), edge(out / "train/images/000001.jpg")
    assert np.ptp(bent) >= 5
    # 420 columns are black. A pixel of the image is black or white, so its edge is known to one pixel either way.
    assert np.abs(straight - 420).max() <= 1


@pytest.mark.parametrize("selected", [False, True], ids=["blocks", "pose"])
def test_matrixcity_has_its_poses_in_units_of_100_metres(tmp_path: Path, selected: bool) -> None:
    cameras = [Camera(c.name, *SIZE, 40.0, 40.0, SIZE[0] / 2, SIZE[1] / 2, c.rotation, c.translation) for c in rig()]
    write_matrixcity(tmp_path, cameras)
    train, val = split(cameras)
    names = [[f"block_2/{i:04d}.png" for i in range(3)] + [f"block_10/{i:04d}.png" for i in range(3)],
             [f"block_1_test/{i:04d}.png" for i in range(3)]]  # fmt: skip
    if selected:
        for part, chosen, paths in zip(("train", "test"), (train, val), names, strict=True):
            frames = []
            for camera, path in zip(chosen, paths, strict=True):
                pose = torch.eye(4, dtype=torch.float64)
                pose[:3, :3], pose[:3, 3] = camera.rotation.T @ OPENGL, camera.center
                frames.append({"file_path": f"../../{part}/{path}", "transform_matrix": pose.tolist()})
            record = {"fl_x": 40.0, "fl_y": 40.0, "cx": SIZE[0] / 2, "cy": SIZE[1] / 2, "w": SIZE[0], "h": SIZE[1]}
            file = tmp_path / "pose" / "block_all" / f"transforms_{part}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(record | {"frames": frames}))
        names = [[f"{i:04d}.png" for i in range(len(part))] for part in names]
    views = read_matrixcity(tmp_path)
    for part, chosen, called in zip(("train", "val"), (train, val), names, strict=True):
        expected = [Camera(name, *SIZE, 40.0, 40.0, SIZE[0] / 2, SIZE[1] / 2, c.rotation, c.translation)
                    for c, name in zip(chosen, called, strict=True)]  # fmt: skip
        # JSON has all digits of a double; dividing by 100 and back costs the last ones of 300.
        assert_same_rig([view.camera for view in views[part]], expected, 1e-11)
    # Images belong to their poses: each has the colours that were written for its camera.
    images = [cv2.imread(str(view.image)).tobytes() for view in views["train"]]
    for i, image in zip((i for i in range(9) if i % 4), images, strict=True):
        target(tmp_path / "again.png", i)
        assert cv2.imread(str(tmp_path / "again.png")).tobytes() == image


def test_matrixcity_is_written_at_the_width_asked_for_by_area(tmp_path: Path) -> None:
    cameras = rig()
    source, out = write_matrixcity(tmp_path / "aerial", cameras), tmp_path / "out"
    assert main(["prepare", "matrixcity", str(source), str(out), "-r", "24"]) == 0
    camera = read_cameras(out / "train/sparse/0")[0]
    assert (camera.width, camera.height, camera.fx) == pytest.approx((24, 18, 20.0))
    full = cv2.imread(str(source / "train/block_10/0000.png")).astype(float)
    small = cv2.imread(str(out / "train/images/block_10/0000.png")).astype(float)
    # Each pixel is the mean of four, rounded.
    assert np.abs(full.reshape(18, 2, 24, 2, 3).mean((1, 3)) - small).max() <= 0.5


def test_an_interrupted_conversion_goes_on(tmp_path: Path) -> None:
    source, out = write_matrixcity(tmp_path / "aerial", rig()), tmp_path / "out"
    argv = ["prepare", "matrixcity", str(source), str(out), "-r", "24"]
    main(argv)
    kept, lost = out / "train/images/block_10/0000.png", out / "train/images/block_10/0001.png"
    before = kept.stat().st_mtime_ns
    lost.unlink()
    main(argv)
    assert lost.is_file() and kept.stat().st_mtime_ns == before
    main([*argv[:-1], "32"])  # Images of another size are written again.
    assert cv2.imread(str(kept)).shape[1] == 32


def break_pose(source: Path) -> str:
    file = next((source / "train/metadata").glob("*.pt"))
    record = torch.load(file, weights_only=True)
    record["c2w"][0, 0] = float("nan")
    torch.save(record, file)
    return file.name


def break_code(source: Path) -> str:
    file = source / "coordinates.pt"
    torch.save({"origin_drb": Path("/"), "pose_scale_factor": 1.0}, file)  # Reading a Path would run code.
    return file.name


def remove_image(source: Path) -> str:
    file = next((source / "train/rgbs").glob("*.jpg"))
    file.unlink()
    return f"1 of 6 images are missing, first: {file}"


def remove_images(source: Path) -> str:
    for file in (source / "val/rgbs").glob("*.jpg"):
        file.unlink()
    (source / "val/rgbs").rmdir()
    return "--photos"


@pytest.mark.parametrize("harm", [break_pose, break_code, remove_image, remove_images])
def test_a_damaged_source_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], str]
) -> None:
    expected = harm(write_mega_nerf(tmp_path / "source", rig()))
    assert main(["prepare", "mill19", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    assert expected in capsys.readouterr().err


def test_published_masks_become_the_views_of_blocks(tmp_path: Path) -> None:
    masks = np.array([[1, 0], [1, 1], [0, 1]], dtype=bool)
    np.save(tmp_path / "masks.npy", masks)
    # Rows are the names in sorted order, whatever their order in the scene.
    assert read_camera_masks(tmp_path / "masks.npy", ["b", "a", "c"], 2) == [["a", "b"], ["b", "c"]]
    for names, n in ((["a", "b"], 2), (["a", "b", "c"], 4)):
        with pytest.raises(UserError, match="made for"):
            read_camera_masks(tmp_path / "masks.npy", names, n)
    np.save(tmp_path / "masks.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot read"):
        read_camera_masks(tmp_path / "masks.npy", ["a"], 1)


@pytest.mark.slow
def test_a_partition_can_be_the_published_one(tmp_path: Path) -> None:
    scene, out = write_tiny_scene(tmp_path / "scene"), tmp_path / "out"
    names = [f"{i:03d}.png" for i in range(16)]
    masks = np.zeros((16, 4), dtype=bool)
    masks[np.arange(16), np.arange(16) // 4] = masks[0] = True  # Four views a block, and the first in all.
    np.save(tmp_path / "masks.npy", masks)
    argv = ["partition", *BASE, str(scene), "-m", str(out), "--camera-masks", str(tmp_path / "masks.npy")]
    settings = ["partition.aabb=[-4,-4,-1,4,4,5]", "partition.dim=[2,2,1]", "scene.test_every=0"]
    # With min_views=1 no blocks are joined; by default a block with four views would be.
    assert main([*argv, *settings, "partition.min_views=1", "partition.min_points=0"]) == 0
    table = PartitionTable.load(out / "partition.json")
    assert table.views == [[n for n, used in zip(names, masks[:, b], strict=True) if used] for b in range(4)]
