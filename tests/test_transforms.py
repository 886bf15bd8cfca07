"""Facts about transforms.json: axes, intrinsics, names, splits, points, and errors."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from scene_files import random_image, write_image

from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_any_view, project
from momentum_gs.core.types import Camera
from momentum_gs.data.random_points import COUNT, random_points
from momentum_gs.data.scene import load_scene
from momentum_gs.data.transforms import read_transforms

# A camera at (1, 2, 3) that looks along the world's -x, the world's z up: in OpenGL's axes its columns are right (+y),
# up (+z) and backward (+x).
MATRIX = [[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.0, 3.0], [0.0, 0.0, 0.0, 1.0]]
INTRINSICS = {"fl_x": 50.0, "fl_y": 52.0, "cx": 19.0, "cy": 16.0, "w": 40, "h": 30}


def write(root: Path, name: str = "transforms.json", **record: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(record))
    return root


def frame(path: str, matrix: list | None = None, **more: Any) -> dict[str, Any]:
    return {"file_path": path, "transform_matrix": matrix or MATRIX, **more}


def images(root: Path, *names: str) -> None:
    for name in names:
        write_image(root / name, random_image(name, 40, 30))


def moved(x: float) -> list[list[float]]:
    return [[*row[:3], row[3] + (x if i == 0 else 0)] for i, row in enumerate(MATRIX)]


def load(root: Path, **settings: Any) -> Any:
    return load_scene(SceneConfig(path=str(root), resolution=1.0, **{"test_every": 0, **settings}))


def only_camera(root: Path) -> Camera:
    (found,) = read_transforms(root).frames
    return found.camera


def test_opengl_axes_become_ours(tmp_path: Path) -> None:
    images(tmp_path, "images/a.png")
    camera = only_camera(write(tmp_path, frames=[frame("images/a.png")], **INTRINSICS))
    assert camera.center.tolist() == pytest.approx([1, 2, 3], abs=1e-12)
    # 2 in front of the camera, 0.2 to the right (+y), 0.1 up (+z).
    pixels, depth = project(torch.tensor([[-1.0, 2.2, 3.1]], dtype=torch.float64), camera)
    assert depth.tolist() == pytest.approx([2], abs=1e-12)
    assert pixels[0].tolist() == pytest.approx([19 + 50 * 0.1, 16 - 52 * 0.05], abs=1e-12)


def test_intrinsics_of_a_frame_override_those_of_the_file(tmp_path: Path) -> None:
    images(tmp_path, "a.png", "b.png")
    write(tmp_path, frames=[frame("a.png"), frame("b.png", fl_x=80.0, cx=3.0)], **INTRINSICS)
    a, b = (f.camera for f in read_transforms(tmp_path).frames)
    assert (a.fx, a.fy, a.cx, a.cy, a.width, a.height) == (50, 52, 19, 16, 40, 30)
    assert (b.fx, b.fy, b.cx, b.cy) == (80, 52, 3, 16)


def test_a_view_angle_takes_the_size_from_the_image(tmp_path: Path) -> None:
    """As Blender scenes have it: a field of view, names without extension and with a leading ./"""
    images(tmp_path, "train/r_0.png")
    camera = only_camera(write(tmp_path, frames=[frame("./train/r_0")], camera_angle_x=math.radians(60)))
    focal = 20 / math.tan(math.radians(30))
    assert camera.name == "train/r_0.png"
    assert (camera.width, camera.height, camera.cx, camera.cy) == (40, 30, 20, 15)
    assert (camera.fx, camera.fy) == pytest.approx((focal, focal))


def test_matrix_city_numbers_its_images_and_scales_its_rotations(tmp_path: Path) -> None:
    images(tmp_path, "rgb/0007.png")
    small = [[v * 0.01 for v in row[:3]] + row[3:] for row in MATRIX[:3]] + MATRIX[3:]
    entry = {"frame_index": 7, "rot_mat": small}
    camera = only_camera(write(tmp_path, frames=[entry], camera_angle_x=1.0))
    images(tmp_path / "plain", "rgb/0007.png")
    wanted = only_camera(write(tmp_path / "plain", frames=[frame("rgb/0007.png")], camera_angle_x=1.0))
    assert camera.name == "rgb/0007.png"
    for field in ("rotation", "center"):  # A cube root, a division and an SVD of numbers around 1.
        torch.testing.assert_close(getattr(camera, field), getattr(wanted, field), rtol=0, atol=1e-12)


def test_train_and_test_files_are_the_split(tmp_path: Path) -> None:
    images(tmp_path, "train/0.png", "train/1.png", "test/0.png")
    write(tmp_path, "transforms_train.json", camera_angle_x=1.0, frames=[frame("train/0"), frame("train/1", moved(1))])
    write(tmp_path, "transforms_test.json", camera_angle_x=1.0, frames=[frame("test/0", moved(2))])
    scene = load(tmp_path, test_every=2)
    assert [c.name for c in scene.train] == ["train/0.png", "train/1.png"]
    assert [c.name for c in scene.test] == ["test/0.png"]
    with pytest.raises(UserError, match="test_list: l.txt is given, but .*transforms_train.json lists held-out images"):
        load(tmp_path, test_list="l.txt")


def test_other_splits(tmp_path: Path) -> None:
    images(tmp_path, *(f"images/{i}.png" for i in range(4)))
    frames = [frame(f"images/{i}.png", moved(i)) for i in range(4)]
    write(tmp_path, frames=frames, **INTRINSICS)
    assert [c.name for c in load(tmp_path, test_every=2).test] == ["0.png", "2.png"]
    (tmp_path / "test_list.txt").write_text("3.png\n")
    assert [c.name for c in load(tmp_path, test_every=2).test] == ["3.png"]
    write(tmp_path, frames=frames, **INTRINSICS, train_filenames=[], val_filenames=["images/1.png"])
    assert [c.name for c in load(tmp_path, test_every=2).test] == ["1.png"]


def test_smaller_images_come_from_another_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "images_2" / "a.png", random_image("a", 20, 15))
    write(tmp_path, frames=[frame("images/a.png")], **INTRINSICS)
    camera = load(tmp_path, images="images_2").train[0]
    assert (camera.name, camera.width, camera.fx) == ("a.png", 20, 25)


def test_the_points_are_those_of_ply_file_path(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    kinds = {"f4": ("x", "y", "z"), "u1": ("red", "green", "blue")}
    rows = np.array([(1, 2, 3, 10, 20, 30)], [(name, kind) for kind, names in kinds.items() for name in names])
    PlyData([PlyElement.describe(rows, "vertex")]).write(str(tmp_path / "cloud.ply"))
    applied = [[1, 0, 0, 5], [0, 0, 1, 5], [0, -1, 0, 5]]
    write(tmp_path, frames=[frame("a.png")], ply_file_path="cloud.ply", applied_transform=applied, **INTRINSICS)
    scene = load(tmp_path)
    # applied_transform has been applied to poses and points alike, so it is not applied again.
    assert scene.points.xyz.tolist() == [[1, 2, 3]] and scene.points.rgb.tolist() == [[10, 20, 30]]
    assert scene.train[0].center.tolist() == pytest.approx([1, 2, 3], abs=1e-12)


def test_without_a_cloud_random_points_fill_the_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path, "a.png", "b.png")
    write(tmp_path, frames=[frame("a.png"), frame("b.png", moved(3))], **INTRINSICS)
    scene = load(tmp_path)
    assert len(scene.points) == COUNT == 100_000 and "random" in capsys.readouterr().out
    # Points nearer to a camera than its near plane, 0.2, are in no view.
    far = (torch.cdist(scene.points.xyz, torch.stack([c.center for c in scene.train])) > 0.5).all(dim=1)
    assert far.sum() > COUNT / 2 and in_any_view(scene.points.xyz[far], scene.train).all()
    assert torch.equal(random_points(scene.train).xyz, scene.points.xyz), "the same for the same views"
    assert not torch.equal(random_points(scene.train, seed=1).xyz, scene.points.xyz)
    assert random_points(scene.train[:1], count=5).xyz.isfinite().all(), "one camera has no radius"


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"k1": -0.1, "k2": 0.01, "p1": 1e-3}, ("OPENCV", (-0.1, 0.01, 1e-3, 0.0))),
        ({"k1": -0.1, "k3": 0.01, "camera_model": "OPENCV"}, ("FULL_OPENCV", (-0.1, 0, 0, 0, 0.01, 0, 0, 0))),
        ({"camera_model": "OPENCV_FISHEYE", "k1": 0.1, "k4": 0.2}, ("OPENCV_FISHEYE", (0.1, 0, 0, 0.2))),
        ({"is_fisheye": True, "k1": 0.1}, ("OPENCV_FISHEYE", (0.1, 0, 0, 0))),
        ({"k1": 0.0, "k2": 0, "p1": None, "camera_model": "OPENCV"}, ("PINHOLE", ())),
    ],
)
def test_distortion_is_that_of_a_colmap_model(tmp_path: Path, more: dict, wanted: tuple) -> None:
    images(tmp_path, "a.png")
    write(tmp_path, frames=[frame("a.png")], **INTRINSICS, **more)
    lens = read_transforms(tmp_path).frames[0].lens
    assert (lens.model, lens.extra) == wanted
    if not lens.is_pinhole:
        with pytest.raises(UserError, match="transforms.json: image 'a.png' has distortion .*scene.undistort=true"):
            load(tmp_path)
        camera = load(tmp_path, undistort=True).train[0]
        assert camera.fx == 50 and camera.width <= 80


BAD: list[tuple[dict, str]] = [
    ({}, "frames is 'None', expected a list"),
    ({"frames": []}, "holds no frames"),
    ({"frames": [3]}, "frame 0 is '3'"),
    ({"frames": [{}]}, "frame 0 has no file_path"),
    ({"frames": [{"file_path": 7}]}, "'7' is no path"),
    ({"frames": [frame("../a.png")]}, "'../a.png' is not a plain path"),
    ({"frames": [frame("/etc/a.png")]}, "is not a plain path"),
    ({"frames": [frame("\ud800.png")]}, "is not a plain path"),
    ({"frames": [frame("x" * 300)]}, "is not a plain path"),
    ({"frames": [frame("a.png")]}, "focal lengths None and None, expected"),
    ({"frames": [frame("a.png", fl_x=0)]}, "focal lengths 0.0"),
    ({"frames": [frame("a.png", fl_x=-5.0)]}, "focal lengths -5.0"),
    ({"frames": [frame("a.png", fl_x="50")]}, "fl_x is 50, expected a finite number"),
    ({"frames": [frame("a.png", fl_x=True)]}, "fl_x is True, expected a finite number"),
    ({"frames": [frame("a.png", fl_x=math.nan)]}, "fl_x is nan"),
    ({"frames": [frame("a.png", fl_x=10**400)]}, "fl_x is 1000"),
    ({"frames": [frame("a.png", fl_x=1, w=0, h=1)]}, "size 0x1"),
    ({"frames": [frame("a.png", fl_x=1, w=1e20, h=1)]}, "size 1000"),
    ({"frames": [frame("a.png", camera_angle_x=4.0)]}, "focal lengths None"),
    ({"frames": [frame("a.png", [[1, 2, 3]])], "fl_x": 1}, "expected 4x4 finite numbers"),
    ({"frames": [frame("a.png", [[math.nan] * 4] * 4)], "fl_x": 1}, "expected 4x4 finite numbers"),
    ({"frames": [frame("a.png", [[0] * 4] * 4)], "fl_x": 1}, "holds no rotation"),
    ({"frames": [frame("a.png", [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]])], "fl_x": 1}, "holds no rotation"),
    ({"frames": [frame("a.png")] * 2, "fl_x": 1}, "frame 1: image 'a.png' is listed twice"),
    ({"frames": [frame("a.png")], "fl_x": 1, "camera_model": "EQUIRECTANGULAR"}, "camera_model 'EQUIRECTANGULAR'"),
    ({"frames": [frame("a.png")], "fl_x": 1, "k4": 0.1}, "k1..k4 = 0.0, 0.0, 0.0, 0.1"),
    ({"frames": [frame("a.png")], "fl_x": 1, "ply_file_path": "../c.ply"}, "ply_file_path.* is not a plain path"),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[f"{i}-{m[:30]}" for i, (_, m) in enumerate(BAD)])
def test_bad_files_are_refused_in_one_line(tmp_path: Path, record: dict, message: str) -> None:
    images(tmp_path, "a.png")
    with pytest.raises(UserError, match=message) as error:
        read_transforms(write(tmp_path, **record))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"frames": ' + "[" * 100_000, "\xff"])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "transforms.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="transforms.json"):
        read_transforms(tmp_path)


def test_missing_images_are_counted(tmp_path: Path) -> None:
    images(tmp_path, "a.png")
    write(tmp_path, frames=[frame("a.png"), frame("b.png", moved(1))], **INTRINSICS)
    with pytest.raises(UserError, match="1 of 2 images named in transforms.json are missing, first: b.png"):
        load(tmp_path)


def test_a_colmap_model_comes_first(tmp_path: Path) -> None:
    from scene_files import write_scene

    write(write_scene(tmp_path, ["1.png"]), frames=[])
    assert [c.name for c in load(tmp_path).train] == ["1.png"]
