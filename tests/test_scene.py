"""Facts about scenes: layouts, splits, resolutions, errors, and the files that viewers of 3DGS codebases read."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData
from scene_files import REAL_SCENES, camera, points, random_image, write_image, write_scene
from tiny_run import BASE

from momentum_gs.cli.main import main
from momentum_gs.config.run import load_run_config
from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import project
from momentum_gs.core.types import PointCloud
from momentum_gs.data.colmap.model import write_model
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.splits import read_list, split
from momentum_gs.data.viewer_files import write_cameras_json, write_input_ply

NAMES = [f"{i:02d}.png" for i in range(10)]


def config(root: Path, **settings: object) -> SceneConfig:
    return SceneConfig(**{"path": str(root), "resolution": 1.0, **settings})


def names(scene: Scene) -> tuple[list[str], list[str]]:
    return [c.name for c in scene.train], [c.name for c in scene.test]


# Splits.


def test_every_nth_name_is_held_out_from_the_first(tmp_path: Path) -> None:
    assert split(NAMES[::-1], 4) == (
        ["01.png", "02.png", "03.png", "05.png", "06.png", "07.png", "09.png"],
        ["00.png", "04.png", "08.png"],
    )
    assert split(NAMES, 0) == (NAMES, [])


@pytest.mark.parametrize("every", [2, 3, 8, 100])
def test_every_name_is_in_one_part_of_a_split(every: int) -> None:
    train, test = split(NAMES, every)
    assert sorted(train + test) == NAMES and not set(train) & set(test)


def test_a_list_replaces_every_nth_name() -> None:
    assert split(NAMES, 2, ["07.png", "01.png", "07.png"])[1] == ["01.png", "07.png"]
    assert split(NAMES, 2, [])[1] == []


def test_a_listed_name_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"2 of 3 names in the test list are not in the scene, first: 'a\.png'"):
        split(NAMES, 8, ["b.png", "a.png", "01.png"])


def test_something_must_be_left_to_train_on() -> None:
    for names_and_list in ((NAMES, 8, NAMES), (NAMES[:1], 8)):
        with pytest.raises(UserError, match="images are held out, expected at least one to train on"):
            split(*names_and_list)


def test_lists_may_have_comments_blank_lines_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeff# held out\r\n\r\n a b.png \r\nö/c.png".encode())
    assert read_list(path) == ["a b.png", "ö/c.png"]
    path.write_bytes(b"\xff")
    for broken in (path, tmp_path / "none.txt"):
        with pytest.raises(UserError, match=f"test list {broken} cannot be read"):
            read_list(broken)


# One folder.


def test_a_scene_and_its_split(tmp_path: Path) -> None:
    scene = load_scene(config(write_scene(tmp_path, NAMES)))
    assert names(scene) == split(NAMES, 8)
    assert torch.equal(scene.points.xyz, points().xyz)
    assert scene.image_paths == {name: tmp_path / "images" / name for name in NAMES}
    assert (scene.path, scene.white_background) == (tmp_path, False)
    assert load_scene(config(tmp_path, white_background=True)).white_background


def test_subfolders_stay_in_the_names(tmp_path: Path) -> None:
    scene = load_scene(config(write_scene(tmp_path, ["a/1.png", "b/1.png", "1.png"]), test_every=0))
    assert names(scene) == (["1.png", "a/1.png", "b/1.png"], [])
    assert len(set(scene.image_paths.values())) == 3


def test_a_list_is_found_in_its_known_places(tmp_path: Path) -> None:
    write_scene(tmp_path, NAMES)
    (tmp_path / "test_list.txt").write_text("03.png\n")
    assert names(load_scene(config(tmp_path)))[1] == ["03.png"]
    (tmp_path / "sparse" / "0" / "test.txt").write_text("05.png\n")
    assert names(load_scene(config(tmp_path)))[1] == ["05.png"]


def test_a_given_list_comes_first_and_may_be_relative_to_the_scene(tmp_path: Path) -> None:
    write_scene(tmp_path, NAMES)
    (tmp_path / "test_list.txt").write_text("03.png\n")
    (tmp_path / "mine.txt").write_text("04.png\n")
    for given in ("mine.txt", str(tmp_path / "mine.txt")):
        assert names(load_scene(config(tmp_path, test_list=given)))[1] == ["04.png"]
    with pytest.raises(UserError, match="test list .*none.txt cannot be read"):
        load_scene(config(tmp_path, test_list="none.txt"))


def test_resolution_scales_the_intrinsics(tmp_path: Path) -> None:
    write_scene(tmp_path, ["a.png"], width=40, height=30)
    whole = load_scene(config(tmp_path, test_every=0)).train[0]
    half = load_scene(config(tmp_path, test_every=0, resolution=2.0)).train[0]
    wide = load_scene(config(tmp_path, test_every=0, resolution=20.0)).train[0]
    assert (whole.width, whole.height, whole.fx, whole.fy, whole.cx, whole.cy) == (40, 30, 35.5, 36.25, 19, 16)
    assert (half.width, half.height, half.fx, half.fy, half.cx, half.cy) == (20, 15, 17.75, 18.125, 9.5, 8)
    assert (wide.width, wide.fx) == (half.width, half.fx)
    assert torch.equal(half.rotation, whole.rotation) and torch.equal(half.translation, whole.translation)


# Copies in another size, such as images_4 of 400x301 rounded down or up, or larger ones.
@pytest.mark.parametrize("size", [(100, 75), (100, 76), (800, 602), (50, 37), (50, 38)])
def test_a_resized_copy_scales_the_intrinsics(tmp_path: Path, size: tuple[int, int]) -> None:
    seen = camera("a.png", 400, 301)
    write_model(tmp_path / "sparse" / "0", [seen], points())
    write_image(tmp_path / "images_4" / "a.png", random_image("a", *size))
    found = load_scene(config(tmp_path, images="images_4", test_every=0)).train[0]
    assert (found.width, found.height) == size
    assert found.fx / seen.fx == pytest.approx(size[0] / 400) and found.cy / seen.cy == pytest.approx(size[1] / 301)


@pytest.mark.parametrize("size", [(301, 400), (100, 70), (100, 78), (400, 299), (104, 75)])
def test_another_shape_is_refused_with_both_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    write_model(tmp_path / "sparse" / "0", [camera("a.png", 400, 301)], points())
    write_image(tmp_path / "images" / "a.png", np.zeros((size[1], size[0]), np.uint8))
    with pytest.raises(UserError, match=f"a.png is {size[0]}x{size[1]}, but its camera in the model is 400x301"):
        load_scene(config(tmp_path, test_every=0))


# Train and val folders.


def test_train_and_val_folders(tmp_path: Path) -> None:
    write_scene(tmp_path / "train", ["1.png", "2.png"])
    write_scene(tmp_path / "val", ["3.png"])
    scene = load_scene(config(tmp_path))
    assert names(scene) == (["1.png", "2.png"], ["3.png"])
    assert scene.image_paths["3.png"] == tmp_path / "val" / "images" / "3.png"


def test_equal_names_in_train_and_val_get_their_folder(tmp_path: Path) -> None:
    write_scene(tmp_path / "train", ["1.png", "2.png"])
    write_scene(tmp_path / "val", ["2.png"])
    scene = load_scene(config(tmp_path))
    assert names(scene) == (["train/1.png", "train/2.png"], ["val/2.png"])
    assert scene.image_paths["train/2.png"] != scene.image_paths["val/2.png"]
    assert set(scene.image_paths) == {c.name for c in (*scene.train, *scene.test)}


def test_points_come_from_the_train_folder_alone(tmp_path: Path) -> None:
    write_scene(tmp_path / "train", ["1.png"])
    write_scene(tmp_path / "val", ["2.png"])
    (tmp_path / "val" / "sparse" / "0" / "points3D.bin").unlink()
    assert len(load_scene(config(tmp_path)).points) == len(points())


def test_a_list_and_a_val_folder_contradict(tmp_path: Path) -> None:
    write_scene(tmp_path / "train", ["1.png"])
    write_scene(tmp_path / "val", ["2.png"])
    with pytest.raises(UserError, match="scene.test_list: a.txt is given, but .* holds out its val folder"):
        load_scene(config(tmp_path, test_list="a.txt"))


# Scenes far from the origin.

UTM = torch.tensor([412_345.5, 5_654_321.25, 87.0], dtype=torch.float64)


def write_far_scene(root: Path, names: list[str], shift: torch.Tensor = UTM) -> Path:
    """The scene of ``write_scene`` with cameras ten times as far apart, moved by ``shift``."""
    write_scene(root, names)
    views = [camera(name, x=float(i)) for i, name in enumerate(names)]
    far = [replace(view, translation=view.translation - view.rotation @ shift) for view in views]
    cloud = points()
    write_model(root / "sparse" / "0", far, PointCloud(cloud.xyz + shift, cloud.rgb))
    return root


def test_a_scene_near_the_origin_is_left_where_it_is(tmp_path: Path) -> None:
    # A distance of ten extents of the scene still counts as near.
    for shift in (0.0, 100.0):
        there = torch.tensor([shift, 0, 0], dtype=torch.float64)
        scene = load_scene(config(write_far_scene(tmp_path / str(shift), NAMES, there)))
        assert scene.frame.offset == (0, 0, 0)
        assert torch.equal(scene.points.xyz, points().xyz + there)


def test_a_far_scene_moves_to_the_origin_as_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    near = load_scene(config(write_far_scene(tmp_path / "near", NAMES, torch.zeros(3).double())))
    capsys.readouterr()
    far = load_scene(config(write_far_scene(tmp_path / "far", NAMES)))
    assert "scene.offset" in capsys.readouterr().out
    shift = torch.tensor(far.frame.offset, dtype=torch.float64)
    assert float((UTM - shift).norm()) < 200
    # A float64 step at 5.7 million is 1e-9, which points and translations are rounded by.
    torch.testing.assert_close(far.points.xyz + shift - UTM, near.points.xyz, rtol=0, atol=4e-9)
    for a, b in zip((*far.train, *far.test), (*near.train, *near.test), strict=True):
        seen, wanted = (project(cloud.xyz[:5], view)[0] for cloud, view in ((far.points, a), (near.points, b)))
        torch.testing.assert_close(seen, wanted, rtol=1e-5, atol=1e-5)  # 4e-9 at depths down to a hundredth
        # The translations are small enough for float32, which those of the far scene were not.
        assert (a.translation.float().double() - a.translation).abs().max() < 1e-5


def test_the_offset_does_not_depend_on_a_single_view(tmp_path: Path) -> None:
    whole = load_scene(config(write_far_scene(tmp_path / "whole", NAMES)))
    fewer = load_scene(config(write_far_scene(tmp_path / "fewer", NAMES[:-1])))
    assert fewer.frame.offset == whole.frame.offset


def test_an_offset_that_is_given_is_used(tmp_path: Path) -> None:
    root = write_far_scene(tmp_path, NAMES)
    stays = load_scene(config(root, offset=(0.0, 0.0, 0.0)))
    assert torch.equal(stays.points.xyz, points().xyz + UTM)
    x, y, z = UTM.tolist()
    moved = load_scene(config(root, offset=(x, y, z)))
    assert moved.frame.offset == (x, y, z)
    torch.testing.assert_close(moved.points.xyz, points().xyz, rtol=0, atol=4e-9)


@pytest.mark.parametrize("unit", [1.0, "auto"])
def test_a_run_records_the_coordinates_it_chose(tmp_path: Path, unit: float | str) -> None:
    root = write_far_scene(tmp_path / "scene", NAMES[:3])
    out = tmp_path / "out"
    settings = [*BASE, "stage=coarse", "steps=2", "device=cpu", "log.tensorboard=false", "model.voxel_size=0.1"]
    settings.append(f"scene.unit={unit}")
    assert main(["train", "-s", str(root), "-m", str(out), *settings]) == 0
    found, frame = load_run_config(out).scene, load_scene(config(root, unit=unit)).frame
    assert found.offset == frame.offset != (0, 0, 0)
    assert found.unit == frame.unit and found.axes == (frame.axes if unit == "auto" else None)
    assert main(["train", "-s", str(root), "-m", str(out), *settings, "--resume"]) == 0


# What is refused.


def drop_images(root: Path) -> None:
    for name in ("03.png", "07.png", "05.png"):
        (root / "images" / name).unlink()


def drop_points(root: Path) -> None:
    cloud = points(0)
    write_model(root / "sparse" / "0", [camera(name) for name in NAMES], cloud)


def cut_points(root: Path) -> None:
    path = root / "sparse" / "0" / "points3D.bin"
    path.write_bytes(path.read_bytes()[:-1])


def break_a_header(root: Path) -> None:
    (root / "images" / "03.png").write_bytes(b"not an image")


def swap_a_folder(root: Path) -> None:
    (root / "images" / "03.png").unlink()
    (root / "images" / "03.png").mkdir()


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (drop_images, "data: 3 of 10 images named in sparse/0 are missing, first: images/03.png; "),
    (swap_a_folder, "data: 1 of 10 images named in sparse/0 are missing, first: images/03.png; "),
    (drop_points, "sparse/0 holds no points"),
    (cut_points, "points3D.bin: truncated or damaged"),
    (break_a_header, "03.png .* is truncated or no image"),
    (lambda root: (root / "images").rename(root / "photos"), "no image folder .*images; give its name with -i"),
    (lambda root: (root / "sparse").rename(root / "dense"), "no COLMAP model found"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_broken_scenes_are_refused_in_one_line(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(write_scene(tmp_path, NAMES))
    with pytest.raises(UserError, match=message) as error:
        load_scene(config(tmp_path))
    assert "\n" not in str(error.value)


def test_with_skip_images_that_cannot_be_read_keep_their_views(tmp_path: Path) -> None:
    root = write_scene(tmp_path, NAMES)
    whole = load_scene(config(root, bad_images="skip"))
    (root / "images" / NAMES[0]).unlink()
    (root / "images" / NAMES[1]).write_bytes(b"no image")
    left = load_scene(config(root, bad_images="skip"))
    assert [c.name for c in left.train] == [c.name for c in whole.train]
    assert [(c.width, c.height, c.fx) for c in left.test] == [(c.width, c.height, c.fx) for c in whole.test]
    with pytest.raises(UserError, match="1 of 10 images .* are missing"):
        load_scene(config(root))
    for name in NAMES:
        (root / "images" / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="10 of 10 images .* are missing"):
        load_scene(config(root, bad_images="skip"))


def test_missing_images_of_a_val_folder_say_which_model_names_them(tmp_path: Path) -> None:
    write_scene(tmp_path / "train", ["1.png"])
    write_scene(tmp_path / "val", ["2.png"])
    (tmp_path / "val" / "images" / "2.png").unlink()
    with pytest.raises(UserError, match="1 of 1 images named in val/sparse/0 are missing, first: val/images/2.png"):
        load_scene(config(tmp_path))


def test_no_path_and_a_wrong_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scene.path: none given"):
        load_scene(SceneConfig())
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_scene(config(tmp_path / "nowhere"))


# Files of 3DGS codebases.


def test_cameras_json_is_camera_to_world_test_first(tmp_path: Path) -> None:
    scene = load_scene(config(write_scene(tmp_path, NAMES), resolution=2.0))
    write_cameras_json(tmp_path / "cameras.json", scene)
    views = json.loads((tmp_path / "cameras.json").read_text())
    assert [v["img_name"] for v in views] == [c.name for c in scene.test] + [c.name for c in scene.train]
    assert [v["id"] for v in views] == list(range(10))
    assert set(views[0]) == {"id", "img_name", "width", "height", "position", "rotation", "fx", "fy"}
    first = scene.test[0]
    assert (views[0]["width"], views[0]["height"], views[0]["fx"], views[0]["fy"]) == (20, 15, 17.75, 18.125)
    # Two units along the camera's axis from its position is where the camera sees depth 2.
    position, rotation = torch.tensor(views[0]["position"]), torch.tensor(views[0]["rotation"])
    ahead = position.double() + rotation.double() @ torch.tensor([0, 0, 2.0]).double()
    seen = first.rotation @ ahead + first.translation
    torch.testing.assert_close(seen, torch.tensor([0, 0, 2.0]).double(), atol=1e-6, rtol=0)  # float32 in between


def test_input_ply_holds_the_points(tmp_path: Path) -> None:
    cloud = points(50)
    write_input_ply(tmp_path / "input.ply", cloud)
    # The viewer of 3DGS reads the count from the third line and expects rows of fixed size.
    header = (tmp_path / "input.ply").read_bytes().split(b"\n")[:3]
    assert header == [b"ply", b"format binary_little_endian 1.0", b"element vertex 50"]
    vertices = PlyData.read(tmp_path / "input.ply")["vertex"].data
    assert vertices.dtype.names == ("x", "y", "z", "nx", "ny", "nz", "red", "green", "blue")
    assert vertices.dtype.itemsize == 6 * 4 + 3
    assert np.array_equal(np.stack([vertices[n] for n in "xyz"], 1), cloud.xyz.numpy().astype(np.float32))
    assert np.array_equal(np.stack([vertices[n] for n in ("red", "green", "blue")], 1), cloud.rgb.numpy())
    assert not any(vertices[n].any() for n in ("nx", "ny", "nz"))


@pytest.mark.skipif(not REAL_SCENES.is_dir(), reason=f"no {REAL_SCENES}; set MOMENTUM_GS_SHARED")
def test_the_real_scene() -> None:
    scene = load_scene(config(REAL_SCENES / "caliterra", resolution=2.0))
    assert (len(scene.train), len(scene.test), len(scene.points)) == (65, 10, 42_506)
    assert {(c.width, c.height) for c in (*scene.train, *scene.test)} == {(500, 376)}
    assert scene.train[0].fx == pytest.approx(761.152 / 2, abs=1e-3)
