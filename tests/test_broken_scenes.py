"""Ways to break a scene: 'doctor' reports each with file and cure, and 'train' refuses it in one line or trains."""

import json
import math
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import cv2
import numpy as np
import pytest
import torch
from tiny_run import BASE
from tiny_scene import SIZE, nadir_camera, write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.colmap.model import read_model, write_model

pytestmark = pytest.mark.slow

# 16 steps show each of the 14 training views.
TRAIN = ["stage=coarse", "steps=16", "scene.resolution=1", "model.voxel_size=0.3", "log.tensorboard=false"]
SECONDS = 60
"""A case takes two seconds; one that takes this long hangs."""


@dataclass(frozen=True)
class Case:
    """One way to break a scene."""

    damage: Callable[[Path], list[str] | None]
    """Breaks the scene in the folder; returns settings to run it with, if it needs any."""
    check: str
    """Name of the check that 'doctor' reports."""
    names: str
    """What the finding and the refusal must name: a file, an image or a setting."""
    severity: str = "error"

    @property
    def refused(self) -> bool:
        return self.severity == "error"


# Ways to edit a scene.


def model(scene: Path, file: str = "") -> Path:
    return scene / "sparse" / "0" / file


def image(scene: Path) -> Path:
    return scene / "images" / "005.png"


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def patch(path: Path, at: int, data: bytes) -> None:
    old = path.read_bytes()
    path.write_bytes(old[:at] + data + old[at + len(data) :])


def rewrite(
    scene: Path,
    camera: Callable[[Camera], Camera] = lambda camera: camera,
    points: Callable[[torch.Tensor], torch.Tensor] = lambda xyz: xyz,
    binary: bool = True,
    only: Callable[[Camera], bool] = lambda camera: True,
) -> None:
    """Writes the model anew with some things changed; images keep their files."""
    old = read_model(model(scene))
    xyz = points(old.points.xyz)
    shutil.rmtree(model(scene))
    cameras = [camera(c) for c in old.cameras if only(c)]
    write_model(model(scene), cameras, PointCloud(xyz, old.points.rgb[: len(xyz)]), binary)


def rename(scene: Path, new: str, file: str | None = None) -> None:
    """Gives image 005.png another name in the model, and its file one as well."""
    rewrite(scene, lambda c: replace(c, name=new) if c.name == "005.png" else c)
    target = scene / "images" / (new if file is None else file)
    target.parent.mkdir(parents=True, exist_ok=True)
    image(scene).rename(target)


def moved(camera: Camera, x: float, y: float, z: float) -> Camera:
    return replace(camera, translation=camera.translation - camera.rotation @ torch.tensor([x, y, z]).double())


def repaint(scene: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    pixels = cv2.imread(str(image(scene)))
    assert pixels is not None
    image(scene).write_bytes(cv2.imencode(".png", change(pixels))[1].tobytes())


def edit_text(scene: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    """Turns the model into text and edits the lines of one file."""
    rewrite(scene, binary=False)
    path = model(scene, name)
    path.write_text("\n".join(change(path.read_text().split("\n"))))


# Damage that is refused. Byte offsets are those of COLMAP's layout: a count, then in cameras.bin id, model, width,
# height, parameters; in images.bin id, quaternion, translation, camera, name.


def truncated_cameras(scene: Path) -> None:
    cut(model(scene, "cameras.bin"), 40)


def truncated_images(scene: Path) -> None:
    cut(model(scene, "images.bin"), 500)


def truncated_points(scene: Path) -> None:
    cut(model(scene, "points3D.bin"), 5000)


def trailing_bytes(scene: Path) -> None:
    path = model(scene, "images.bin")
    path.write_bytes(path.read_bytes() + b"\0" * 7)


def swapped_binaries(scene: Path) -> None:
    a, b, aside = model(scene, "images.bin"), model(scene, "points3D.bin"), model(scene, "aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


def empty_cameras(scene: Path) -> None:
    model(scene, "cameras.bin").write_bytes(b"")


def forged_point_count(scene: Path) -> None:
    patch(model(scene, "points3D.bin"), 0, struct.pack("<Q", 2**60))


def forged_image_count(scene: Path) -> None:
    patch(model(scene, "images.bin"), 0, struct.pack("<Q", 2**40))


def no_images_in_model(scene: Path) -> None:
    model(scene, "images.bin").write_bytes(struct.pack("<Q", 0))


def nan_translation(scene: Path) -> None:
    patch(model(scene, "images.bin"), 8 + 4 + 32, struct.pack("<d", math.nan))


def infinite_quaternion(scene: Path) -> None:
    patch(model(scene, "images.bin"), 8 + 4, struct.pack("<d", math.inf))


def zero_quaternion(scene: Path) -> None:
    patch(model(scene, "images.bin"), 8 + 4, struct.pack("<4d", 0, 0, 0, 0))


def zero_focal(scene: Path) -> None:
    patch(model(scene, "cameras.bin"), 8 + 24, struct.pack("<d", 0))


def nan_focal(scene: Path) -> None:
    patch(model(scene, "cameras.bin"), 8 + 24, struct.pack("<d", math.nan))


def huge_camera(scene: Path) -> None:
    patch(model(scene, "cameras.bin"), 8 + 8, struct.pack("<Q", 2**62))


def distorted_camera(scene: Path) -> None:
    path = model(scene, "cameras.bin")
    patch(path, 8 + 4, struct.pack("<i", 4))  # OPENCV, which has four numbers more.
    path.write_bytes(path.read_bytes() + struct.pack("<4d", 0.1, 0, 0, 0))


def unknown_camera_model(scene: Path) -> None:
    patch(model(scene, "cameras.bin"), 8 + 4, struct.pack("<i", 99))


def camera_id_missing(scene: Path) -> None:
    patch(model(scene, "cameras.bin"), 8, struct.pack("<i", 77))


def image_twice(scene: Path) -> None:
    path = model(scene, "images.bin")
    path.write_bytes(path.read_bytes().replace(b"006.png", b"005.png"))


def name_of_other_encoding(scene: Path) -> None:
    path = model(scene, "images.bin")
    path.write_bytes(path.read_bytes().replace(b"005.png", b"h\xf6e.png"))


def path_traversal(scene: Path) -> None:
    path = model(scene, "images.bin")
    path.write_bytes(path.read_bytes().replace(b"005.png", b"../.png"))


def absolute_name(scene: Path) -> None:
    path = model(scene, "images.bin")
    path.write_bytes(path.read_bytes().replace(b"005.png", b"/etc/pw"))


def missing_line(scene: Path) -> None:
    # The first image is line 2, its observations line 3.
    edit_text(scene, "images.txt", lambda lines: lines[:2] + lines[3:])


def short_camera_line(scene: Path) -> None:
    edit_text(scene, "cameras.txt", lambda lines: [line.rpartition(" ")[0] or line for line in lines])


def text_model_of_bytes(scene: Path) -> None:
    rewrite(scene, binary=False)
    model(scene, "points3D.txt").write_bytes(bytes(range(128, 256)) * 10)


def nan_point(scene: Path) -> None:
    patch(model(scene, "points3D.bin"), 8 + 8, struct.pack("<d", math.nan))


def points_behind(scene: Path) -> None:
    rewrite(scene, points=lambda xyz: xyz + torch.tensor([0.0, 0, 50]))


def points_file_missing(scene: Path) -> None:
    model(scene, "points3D.bin").unlink()


def sparse_missing(scene: Path) -> None:
    shutil.rmtree(scene / "sparse")


def images_folder_missing(scene: Path) -> None:
    (scene / "images").rename(scene / "elsewhere")


def empty_folder(scene: Path) -> None:
    shutil.rmtree(scene)
    scene.mkdir()


def image_missing(scene: Path) -> None:
    image(scene).unlink()


def image_is_a_folder(scene: Path) -> None:
    image(scene).unlink()
    image(scene).mkdir()


def other_extension(scene: Path) -> None:
    for path in (scene / "images").glob("*.png"):
        path.rename(path.with_suffix(".PNG"))


def image_of_no_bytes(scene: Path) -> None:
    image(scene).write_bytes(b"")


def cut_png(scene: Path) -> None:
    cut(image(scene), 20)


def text_named_png(scene: Path) -> None:
    image(scene).write_text("not an image")


def cut_jpeg(scene: Path) -> None:
    repaint(scene, lambda pixels: pixels)
    pixels = cv2.imread(str(image(scene)))
    assert pixels is not None
    rename(scene, "005.jpg")
    path = image(scene).with_suffix(".jpg")
    path.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    cut(path, path.stat().st_size // 4)


def float_pixels(scene: Path) -> None:
    rename(scene, "005.tiff")
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    (scene / "images" / "005.tiff").write_bytes(cv2.imencode(".tiff", pixels)[1].tobytes())


def wrong_size(scene: Path) -> None:
    repaint(scene, lambda pixels: pixels[:, :30])


def turned(scene: Path) -> None:
    repaint(scene, lambda pixels: pixels.transpose(1, 0, 2).copy())


def unknown_in_test_list(scene: Path) -> None:
    (scene / "test_list.txt").write_text("000.png\nelsewhere.png\n")


def bytes_for_test_list(scene: Path) -> None:
    (scene / "test_list.txt").write_bytes(b"\xff\xfe\xff")


def everything_held_out(scene: Path) -> None:
    (scene / "test_list.txt").write_text("".join(f"{i:03d}.png\n" for i in range(16)))


def one_camera_held_out(scene: Path) -> None:
    rewrite(scene, only=lambda c: c.name == "005.png")


def bytes_for_transforms(scene: Path) -> None:
    shutil.rmtree(scene / "sparse")
    (scene / "transforms.json").write_bytes(b"{")


def transforms_without_image(scene: Path) -> None:
    shutil.rmtree(scene / "sparse")
    frame = {"file_path": "images/elsewhere.png", "transform_matrix": torch.eye(4).tolist()}
    record = {"fl_x": 40, "w": SIZE[0], "h": SIZE[1], "frames": [frame, frame | {"file_path": "images/000.png"}]}
    (scene / "transforms.json").write_text(json.dumps(record))


def write_mask(scene: Path, name: str, width: int = SIZE[0], white: int = 255) -> None:
    (scene / "masks").mkdir()
    pixels = np.full((SIZE[1], width), white, np.uint8)
    (scene / "masks" / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def mask_of_another_shape(scene: Path) -> None:
    write_mask(scene, "005.png.png", width=20)


def mask_of_bytes(scene: Path) -> None:
    write_mask(scene, "005.png")
    (scene / "masks" / "005.png").write_text("not an image")


# Damage with which training still runs.


def mask_all_black(scene: Path) -> None:
    write_mask(scene, "005.png", white=0)


def mask_of_no_image(scene: Path) -> None:
    write_mask(scene, "elsewhere.png")


def mask_on_one_image(scene: Path) -> None:
    write_mask(scene, "005.png")


def undistorted_camera(scene: Path) -> list[str]:
    distorted_camera(scene)
    return ["scene.undistort=true"]


def far_from_the_origin(scene: Path) -> None:
    rewrite(scene, lambda c: moved(c, 4e6, 5e6, 0), lambda xyz: xyz + torch.tensor([4e6, 5e6, 0]).double())


def no_tracks(scene: Path) -> None:
    """No change: the tiny scene is written without tracks."""


def one_camera(scene: Path) -> list[str]:
    rewrite(scene, only=lambda c: c.name == "005.png")
    return ["scene.test_every=0"]


def all_in_one_place(scene: Path) -> None:
    first = nadir_camera("", 0, 0)
    rewrite(scene, lambda c: replace(c, translation=first.translation))


def pose_far_off(scene: Path) -> None:
    rewrite(scene, lambda c: moved(c, 900, 0, 0) if c.name == "005.png" else c)


def pose_flipped(scene: Path) -> None:
    flip = torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64))

    def flipped(c: Camera) -> Camera:
        return replace(c, rotation=flip @ c.rotation, translation=flip @ c.translation)

    rewrite(scene, lambda c: flipped(c) if c.name == "005.png" else c)


def far_points(scene: Path) -> None:
    rewrite(scene, points=lambda xyz: torch.where(torch.arange(len(xyz))[:, None] % 10 == 0, 1000 * xyz, xyz))


def few_points(scene: Path) -> None:
    rewrite(scene, points=lambda xyz: xyz[:30])


def windows_line_ends(scene: Path) -> None:
    rewrite(scene, binary=False)
    for path in model(scene).glob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def one_name_in_two_folders(scene: Path) -> None:
    rename(scene, "west/006.png")


def names_differ_by_case(scene: Path) -> None:
    rewrite(scene, lambda c: replace(c, name={"005.png": "a.png", "006.png": "A.png"}.get(c.name, c.name)))
    image(scene).rename(scene / "images" / "a.png")
    (scene / "images" / "006.png").rename(scene / "images" / "A.png")


def non_ascii_name(scene: Path) -> None:
    rename(scene, "h\u00f6he \u0432\u044b\u0441.png")


def same_image_twice(scene: Path) -> None:
    shutil.copy(scene / "images" / "006.png", image(scene))


def unregistered_image(scene: Path) -> None:
    shutil.copy(image(scene), scene / "images" / "extra.png")


def black_image(scene: Path) -> None:
    repaint(scene, np.zeros_like)


def overexposed_image(scene: Path) -> None:
    repaint(scene, lambda pixels: np.full_like(pixels, 255))


def dark_image(scene: Path) -> None:
    repaint(scene, lambda pixels: pixels // 4)


def sixteen_bits(scene: Path) -> None:
    repaint(scene, lambda pixels: pixels.astype(np.uint16) * 257)


def grey(scene: Path) -> None:
    repaint(scene, lambda pixels: pixels[..., 0].copy())


def transparent(scene: Path) -> None:
    repaint(scene, lambda pixels: np.dstack([pixels, np.full(pixels.shape[:2], 128, np.uint8)]))


def smaller_copy(scene: Path) -> None:
    repaint(scene, lambda pixels: cv2.resize(pixels, (SIZE[0] // 2, SIZE[1] // 2), interpolation=cv2.INTER_AREA))


def skipped_bad_image(scene: Path) -> list[str]:
    image(scene).write_text("not an image")
    return ["scene.bad_images=skip"]


def skipped_missing_image(scene: Path) -> list[str]:
    image(scene).unlink()
    return ["scene.bad_images=skip"]


def huge_voxels(scene: Path) -> list[str]:
    return ["model.voxel_size=5"]


CASES = [
    Case(truncated_cameras, "cameras", "cameras.bin"),
    Case(truncated_images, "cameras", "images.bin"),
    Case(truncated_points, "points", "points3D.bin"),
    Case(trailing_bytes, "cameras", "images.bin"),
    Case(swapped_binaries, "cameras", "images.bin"),
    Case(empty_cameras, "cameras", "cameras.bin"),
    Case(forged_point_count, "points", "points3D.bin"),
    Case(forged_image_count, "cameras", "images.bin"),
    Case(no_images_in_model, "cameras", "images.bin"),
    Case(nan_translation, "cameras", "000.png"),
    Case(infinite_quaternion, "cameras", "000.png"),
    Case(zero_quaternion, "cameras", "000.png"),
    Case(zero_focal, "cameras", "cameras.bin"),
    Case(nan_focal, "cameras", "cameras.bin"),
    Case(huge_camera, "cameras", "cameras.bin"),
    Case(distorted_camera, "cameras", "OPENCV"),
    Case(unknown_camera_model, "cameras", "cameras.bin"),
    Case(camera_id_missing, "cameras", "images.bin"),
    Case(image_twice, "cameras", "005.png"),
    Case(name_of_other_encoding, "cameras", "images.bin"),
    Case(path_traversal, "cameras", "../.png"),
    Case(absolute_name, "cameras", "/etc/pw"),
    Case(missing_line, "cameras", "images.txt"),
    Case(short_camera_line, "cameras", "cameras.txt"),
    Case(text_model_of_bytes, "points", "points3D.txt"),
    Case(nan_point, "points", "points3D.bin"),
    Case(points_behind, "points-unseen", "sparse/0"),
    Case(points_file_missing, "points", "points3D"),
    Case(sparse_missing, "model", "sparse/0"),
    Case(images_folder_missing, "image-folder", "images"),
    Case(empty_folder, "model", "sparse/0"),
    Case(image_missing, "image-missing", "005.png"),
    Case(image_is_a_folder, "image-missing", "005.png"),
    Case(other_extension, "image-missing", "000.png"),
    Case(image_of_no_bytes, "image-unreadable", "005.png"),
    Case(cut_png, "image-unreadable", "005.png"),
    Case(text_named_png, "image-unreadable", "005.png"),
    Case(cut_jpeg, "image-unreadable", "005.jpg"),
    Case(float_pixels, "image-unreadable", "005.tiff"),
    Case(wrong_size, "image-size", "005.png"),
    Case(turned, "image-size", "005.png"),
    Case(unknown_in_test_list, "test-list", "elsewhere.png"),
    Case(bytes_for_test_list, "test-list", "test_list.txt"),
    Case(everything_held_out, "split", "scene.test_every"),
    Case(one_camera_held_out, "split", "scene.test_every"),
    Case(bytes_for_transforms, "cameras", "transforms.json"),
    Case(transforms_without_image, "image-missing", "elsewhere.png"),
    Case(mask_of_another_shape, "mask", "005.png.png"),
    Case(mask_of_bytes, "mask", "masks/005.png"),
    Case(mask_all_black, "mask", "005.png", "warning"),
    Case(mask_of_no_image, "mask", "elsewhere.png", "warning"),
    Case(mask_on_one_image, "mask", "1 images", "info"),
    Case(undistorted_camera, "cameras", "distortion", "info"),
    Case(far_from_the_origin, "offset", "scene.offset", "info"),
    Case(no_tracks, "points-tracks", "points3D.bin", "info"),
    Case(one_camera, "poses-one", "005.png", "warning"),
    Case(all_in_one_place, "poses-one-place", "sparse/0", "warning"),
    Case(pose_far_off, "poses-far", "005.png", "warning"),
    Case(pose_flipped, "poses-direction", "005.png", "warning"),
    Case(pose_flipped, "poses-blind", "005.png", "warning"),
    Case(far_points, "points-far", "sparse/0", "warning"),
    Case(few_points, "points-few", "30 points", "warning"),
    Case(windows_line_ends, "up-axis", "+z", "info"),
    Case(one_name_in_two_folders, "name-folders", "west/006.png", "info"),
    Case(names_differ_by_case, "name-case", "A.png", "warning"),
    Case(non_ascii_name, "name-ascii", "h\u00f6he", "info"),
    Case(same_image_twice, "image-double", "006.png", "warning"),
    Case(unregistered_image, "image-extra", "extra.png", "info"),
    Case(black_image, "exposure", "005.png", "warning"),
    Case(dark_image, "exposure", "005.png", "warning"),
    Case(overexposed_image, "exposure", "005.png", "warning"),
    Case(sixteen_bits, "image-kind", "005.png", "info"),
    Case(grey, "image-kind", "005.png", "info"),
    Case(transparent, "image-kind", "005.png", "info"),
    Case(smaller_copy, "image-size", "005.png", "info"),
    Case(skipped_bad_image, "image-unreadable", "005.png", "warning"),
    Case(skipped_missing_image, "image-missing", "005.png", "warning"),
    Case(huge_voxels, "voxel-size", "model.voxel_size", "warning"),
]


@pytest.fixture(scope="module")
def whole_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("whole"))


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Raises ``TimeoutError`` in a test that hangs."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.damage.__name__}-{case.check}" for case in CASES])
def test_damage_is_reported_and_refused_or_tolerated(
    case: Case, whole_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = tmp_path / "scene"
    shutil.copytree(whole_scene, scene)
    settings = [*TRAIN, *(case.damage(scene) or [])]

    status = main(["doctor", *BASE, str(scene), "--json", *settings])
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert status == case.refused, findings
    mine = [f for f in findings if f["check"] == case.check and f["severity"] == case.severity]
    assert mine, findings
    shown = [f"{f['where']} {f['found']} {f['expected']} {f['cure']}" for f in mine]
    assert any(case.names in line for line in shown), shown
    if case.severity != "info":
        assert all(finding["cure"] for finding in mine), mine

    status = main(["train", *BASE, "-s", str(scene), "-m", str(tmp_path / "out"), *settings])
    printed = capsys.readouterr().err
    assert status == (2 if case.refused else 0), printed
    if case.refused:
        assert printed.count("\n") == 1, printed
        assert case.names in printed
    else:
        assert list((tmp_path / "out" / "point_cloud").glob("iteration_16/point_cloud.ply"))


def test_a_whole_scene_has_no_errors(whole_scene: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *BASE, str(whole_scene), "--json", *TRAIN]) == 0
    checks = {finding["check"] for finding in json.loads(capsys.readouterr().out)["findings"]}
    # Findings that follow from these settings and from points over 13 units, of which the images show fewer.
    assert checks <= {"steps", "points-unseen", "points-tracks", "up-axis", "voxel-size"}


@pytest.mark.parametrize("is_file", [False, True])
def test_a_scene_that_is_no_folder_is_refused(
    is_file: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = tmp_path / "scene"
    if is_file:
        scene.touch()
    assert main(["doctor", str(scene)]) == 2
    printed = capsys.readouterr().err
    assert str(scene) in printed and printed.count("\n") == 1
