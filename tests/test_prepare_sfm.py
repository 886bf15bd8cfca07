"""Structure from motion on images rendered from known cameras: it must find these cameras."""

import importlib.util
import json
import math
import struct
import sys
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from scene_files import random_image, write_image
from torch import Tensor

from momentum_gs.cli.main import main
from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera
from momentum_gs.data.colmap.model import read_cameras, read_points
from momentum_gs.data.prepare.align import fit_similarity
from momentum_gs.data.prepare.features import Workshop, nearest_pairs
from momentum_gs.data.prepare.files import place_model
from momentum_gs.data.prepare.pairs import OVERLAP, choose_pairs, linked_groups, pairs_around, resolve
from momentum_gs.data.prepare.retrieval import similar_pairs
from momentum_gs.data.prepare.sfm import Sfm, SfmSettings, camera_groups
from momentum_gs.data.prepare.sift import sift
from momentum_gs.data.prepare.triangulate import triangulate
from momentum_gs.data.scene import load_scene

needs_pycolmap = pytest.mark.skipif(importlib.util.find_spec("pycolmap") is None, reason="pycolmap is not installed")

WIDTH, HEIGHT, FOCAL = 400, 300, 380.0
PIXELS_PER_METRE = 5
ORIGIN = (30.0, -98.0, 200.0)
# Metres of a degree at the origin, by the radii of curvature of WGS 84; over 100 m they are right to a centimetre.
NORTH, EAST = 110855.9, 96489.3


def exif(latitude: float, longitude: float, height: float) -> bytes:
    """The JPEG segment that a camera with GPS writes (EXIF 2.3: a TIFF with a GPS directory)."""

    def degrees(value: float) -> bytes:
        whole = int(abs(value))
        minutes = int((abs(value) - whole) * 60)
        seconds = ((abs(value) - whole) * 60 - minutes) * 60
        return struct.pack("<6I", whole, 1, minutes, 1, round(seconds * 1e6), 10**6)

    values = 8 + 18 + 2 + 6 * 12 + 4  # Header, the first directory with one entry, the GPS one with six.
    entries = [
        struct.pack("<HHI4s", 1, 2, 2, b"N\0\0\0" if latitude >= 0 else b"S\0\0\0"),
        struct.pack("<HHII", 2, 5, 3, values),
        struct.pack("<HHI4s", 3, 2, 2, b"E\0\0\0" if longitude >= 0 else b"W\0\0\0"),
        struct.pack("<HHII", 4, 5, 3, values + 24),
        struct.pack("<HHI4s", 5, 1, 1, b"\0\0\0\0"),
        struct.pack("<HHII", 6, 5, 1, values + 48),
    ]
    tiff = b"II*\0" + struct.pack("<I", 8)
    tiff += struct.pack("<H", 1) + struct.pack("<HHII", 0x8825, 4, 1, 26) + struct.pack("<I", 0)
    tiff += struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    tiff += degrees(latitude) + degrees(longitude) + struct.pack("<2I", round(height * 1000), 1000)
    segment = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment


def cameras_of_the_flight() -> list[Camera]:
    """4 x 4 cameras at a height of 60 m, a third of an image apart, tilted by up to 9 degrees."""
    draw, cameras = np.random.default_rng(0), []
    for i in range(16):
        tilt, roll, turn = draw.uniform(-0.15, 0.15, 2).tolist() + [draw.uniform(-0.3, 0.3) + (i // 4 % 2) * math.pi]
        x = np.array([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
        y = np.array([[math.cos(roll), 0, math.sin(roll)], [0, 1, 0], [-math.sin(roll), 0, math.cos(roll)]])
        z = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
        rotation = torch.from_numpy(x @ y @ z @ np.diag([1.0, -1, -1]))
        center = torch.tensor([20.0 * (i % 4) - 30, 16.0 * (i // 4) - 24, 60 + draw.uniform(-4, 4)]).double()
        cameras.append(
            Camera(f"{i:02d}.jpg", WIDTH, HEIGHT, FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, rotation, -rotation @ center)
        )
    return cameras


def target(camera: Camera, layers: list[tuple[np.ndarray, float, float, float]]) -> np.ndarray:
    """Image of horizontal squares, the lowest first: of each its texture, the x and y of its corner, and its height."""
    image = np.zeros((camera.height, camera.width, 3), np.uint8)
    intrinsics = np.array([[camera.fx, 0, camera.cx - 0.5], [0, camera.fy, camera.cy - 0.5], [0, 0, 1]])
    rotation, translation = camera.rotation.numpy(), camera.translation.numpy()
    for texture, x, y, height in layers:
        origin = rotation @ np.array([x, y, height]) + translation
        plane = np.stack([rotation[:, 0] / PIXELS_PER_METRE, rotation[:, 1] / PIXELS_PER_METRE, origin], axis=1)
        size = camera.width, camera.height
        warped = cv2.warpPerspective(texture, intrinsics @ plane, size)
        covered = cv2.warpPerspective(np.full(texture.shape[:2], 255, np.uint8), intrinsics @ plane, size) > 127
        image[covered] = warped[covered]
    return image


def texture(metres: int, draw: np.random.Generator) -> np.ndarray:
    """Noise at three scales, in which SIFT finds features."""
    side = metres * PIXELS_PER_METRE
    noise = [draw.uniform(0, 85, (side // step + 2, side // step + 2, 3)) for step in (3, 8, 24)]
    return np.sum([cv2.resize(values, (side, side)) for values in noise], axis=0).astype(np.uint8)


def layers_of_the_city() -> list[tuple[np.ndarray, float, float, float]]:
    """The ground, and roofs of different heights above it: a plane alone does not determine the focal length."""
    draw = np.random.default_rng(1)
    roofs = sorted((float(draw.uniform(3, 20)), *draw.uniform(-50, 40, 2).tolist()) for _ in range(25))
    return [(texture(200, draw), -100.0, -100.0, 0.0), *((texture(12, draw), x, y, height) for height, x, y in roofs)]


@pytest.fixture(scope="module")
def flight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Camera]]:
    """Images with GPS positions, one of them far off, and an image of something else; a folder's name has a space."""
    layers = layers_of_the_city()
    photos = tmp_path_factory.mktemp("flight") / "photos"
    cameras = cameras_of_the_flight()
    for i, camera in enumerate(cameras):
        path = photos / "first flight" / camera.name
        write_image(path, target(camera, layers))
        east, north, up = camera.center.tolist()
        east += 5000 if i == 3 else 0
        data = path.read_bytes()
        path.write_bytes(data[:2] + exif(ORIGIN[0] + north / NORTH, ORIGIN[1] + east / EAST, ORIGIN[2] + up) + data[2:])
    write_image(photos / "elsewhere.jpg", random_image("elsewhere", WIDTH, HEIGHT))
    return photos, {f"first_flight/{camera.name}": camera for camera in cameras}


def angle_between(a: Tensor, b: Tensor) -> float:
    """Angle between two rotations, in degrees."""
    return float(torch.rad2deg(torch.arccos((((a @ b.T).trace() - 1) / 2).clamp(-1, 1))))


@pytest.mark.slow
@needs_pycolmap
def test_images_become_an_upright_scene_in_metres(
    tmp_path: Path, flight: tuple[Path, dict[str, Camera]], capsys: pytest.CaptureFixture[str]
) -> None:
    photos, truth = flight
    out = tmp_path / "scene"
    argv = ["prepare", str(photos), str(out), "--features", "2000", "--camera-model", "SIMPLE_RADIAL"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert f"registered: {len(truth)} of {len(truth) + 1}" in printed
    assert "no other image enough: elsewhere.jpg" in printed
    # The image with the wrong GPS position is matched by its name.
    assert "matching: spatial" in printed

    scene = load_scene(SceneConfig(path=str(out), resolution=1.0))
    views = {camera.name: camera for camera in [*scene.train, *scene.test]}
    assert views.keys() == truth.keys()
    record = json.loads((out / "scene.json").read_text())
    earth = record["georeference"]
    # GPS is exact but for one position, so all others are used. A pixel is 0.16 m of the ground; 16 small images of a
    # lens with unknown parameters determine positions to about three pixels.
    assert (earth["fixes"], earth["used"]) == (16, 15) and record["unit_metres"] == 1
    origin = torch.tensor([(earth["longitude"] - ORIGIN[1]) * EAST, (earth["latitude"] - ORIGIN[0]) * NORTH,
                           earth["height"] - ORIGIN[2]], dtype=torch.float64)  # fmt: skip
    for name, camera in truth.items():
        assert (views[name].center + origin - camera.center).norm() < 0.5, name
        assert angle_between(views[name].rotation, camera.rotation) < 0.5, name
    found = torch.stack([views[name].center for name in truth])
    scale = fit_similarity(found, torch.stack([camera.center for camera in truth.values()])).scale
    assert scale == pytest.approx(1, abs=0.01)

    # Complete stages are not repeated, nor does another image size repeat the earlier ones.
    before = {path: path.stat().st_mtime_ns for path in (out / "sfm" / "models").rglob("*.bin")}
    (out / "sparse" / "0" / "test.txt").write_text(min(truth))
    assert main([*argv, "-r", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("already done") == 4
    assert before == {path: path.stat().st_mtime_ns for path in (out / "sfm" / "models").rglob("*.bin")}
    halved = load_scene(SceneConfig(path=str(out), resolution=1.0))
    assert [len(halved.train), len(halved.test)] == [15, 1]  # The list is the user's and stays.
    for camera in [*halved.train, *halved.test]:
        assert camera.width == pytest.approx(views[camera.name].width / 2, abs=1)
        assert (camera.center - views[camera.name].center).norm() < 1e-9


@pytest.mark.slow
@needs_pycolmap
def test_without_gps_the_ground_is_level(tmp_path: Path, flight: tuple[Path, dict[str, Camera]]) -> None:
    photos, truth = flight
    plain = tmp_path / "photos"
    plain.mkdir()
    for name in truth:
        (plain / Path(name).name).write_bytes(
            (photos / "first flight" / Path(name).name).read_bytes().replace(b"Exif\0\0", b"None\0\0")
        )
    out = tmp_path / "scene"
    assert main(["prepare", str(plain), str(out), "--features", "2000", "--camera-model", "PINHOLE"]) == 0
    record = json.loads((out / "scene.json").read_text())
    assert record["georeference"] is None and record["unit_metres"] is None
    cameras = {f"first_flight/{camera.name}": camera for camera in read_cameras(out / "sparse" / "0")}
    shared = sorted(cameras.keys() & truth.keys())
    assert len(shared) == len(truth)
    fit = fit_similarity(
        torch.stack([cameras[n].center for n in shared]), torch.stack([truth[n].center for n in shared])
    )
    # The ground is level; the roofs tilt the plane through the points a little.
    up = fit.rotation @ torch.tensor([0.0, 0, 1], dtype=torch.float64)
    assert float(torch.rad2deg(torch.arccos(up[2]))) < 3
    # Images of a PINHOLE camera need no undistortion and are taken as they are.
    assert all((out / "images" / path.name).read_bytes() == path.read_bytes() for path in plain.iterdir())


@pytest.mark.slow
@needs_pycolmap
def test_points_are_triangulated_from_known_poses(tmp_path: Path) -> None:
    """Points lie on the ground or on a roof, and the poses are bit for bit what they were."""
    layers, cameras = layers_of_the_city(), cameras_of_the_flight()[4:12]
    for camera in cameras:
        write_image(tmp_path / "images" / camera.name, target(camera, layers))
    place_model(tmp_path / "sparse" / "0", cameras)
    before = [(tmp_path / "sparse/0" / name).read_bytes() for name in ("cameras.bin", "images.bin")]
    count = triangulate(tmp_path, 1000)
    points = read_points(tmp_path / "sparse" / "0")
    assert count == len(points) > 400
    assert before == [(tmp_path / "sparse/0" / name).read_bytes() for name in ("cameras.bin", "images.bin")]
    heights = torch.tensor([height for *_, height in layers], dtype=torch.float64)
    away = (points.xyz[:, 2:] - heights).abs().amin(dim=1)
    # A pixel is 0.16 m of the ground; with a baseline of a third of the height, heights are about three times less
    # accurate than positions on the ground.
    assert float(away.quantile(0.9)) < 0.5
    assert triangulate(tmp_path, 1000) == count  # A second call uses the results of the first.


@needs_pycolmap
def test_images_of_the_user_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        write_image(tmp_path / "images" / f"{i}.png", random_image(str(i), 40, 30))
    assert main(["prepare", str(tmp_path / "images"), str(tmp_path)]) == 2
    assert "not from an earlier 'prepare'" in capsys.readouterr().err
    assert len(list((tmp_path / "images").iterdir())) == 3


@pytest.mark.parametrize("module", [None, SimpleNamespace(__version__="3.11.1")], ids=["missing", "old"])
def test_an_unusable_pycolmap_is_one_line_with_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", module)
    write_image(tmp_path / "photos" / "a.png", random_image("a", 40, 30))
    assert main(["prepare", str(tmp_path / "photos"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install pycolmap==4.2.1" in error
    assert not (tmp_path / "out").exists()


def test_every_way_of_matching_lists_a_pair_once() -> None:
    names = [f"{i:04d}" for i in range(400)]
    assert choose_pairs(names[:9], "exhaustive", {}) == list(combinations(names[:9], 2))
    sequential = choose_pairs(names, "sequential", {})
    grid = {name: (30 + (i // 20) * 1e-4, -98 + (i % 20) * 1e-4, 100.0) for i, name in enumerate(names)}
    del grid["0007"]
    spatial = choose_pairs(names, "spatial", grid)
    retrieval = choose_pairs(names, "retrieval", {}, [("0003", "0333"), ("0003", "0004")])
    assert set(retrieval) >= {("0003", "0333"), ("0003", "0007")} and ("0003", "0008") not in retrieval
    for pairs in (sequential, spatial, retrieval):
        assert len(set(pairs)) == len(pairs) and all(a < b for a, b in pairs)
    assert {b for a, b in sequential if a == "0100"} >= {f"{i:04d}" for i in range(101, 101 + OVERLAP)}
    # Neighbours on the next line of the flight are 20 names and about 11 m away.
    assert ("0210", "0230") in spatial and ("0210", "0211") in spatial and ("0000", "0399") not in spatial
    # An image without a GPS position is paired with the images before and after it by name.
    assert ("0006", "0007") in spatial and ("0007", "0027") in spatial
    with pytest.raises(UserError, match="GPS"):
        choose_pairs(names, "spatial", {})


def test_images_of_one_folder_and_size_share_a_camera(tmp_path: Path) -> None:
    sizes = {"a/1.png": (40, 30), "a/2.png": (30, 40), "a/3.png": (40, 30), "b/1.png": (40, 30)}
    for name, size in sizes.items():
        write_image(tmp_path / name, random_image(name, *size))
    names = sorted(sizes)
    assert sorted(camera_groups(tmp_path, names, "folder")) == [["a/1.png", "a/3.png"], ["a/2.png"], ["b/1.png"]]
    assert camera_groups(tmp_path, names, "image") == [[name] for name in names]


def test_auto_matches_by_gps_where_there_is_any() -> None:
    names = [f"{i:04d}" for i in range(200)]
    everywhere = dict.fromkeys(names, (30.0, -98.0, 0.0))
    assert resolve("auto", names, everywhere) == "spatial"
    assert resolve("auto", names, {}) == "retrieval"
    assert resolve("auto", names[:150], {}) == resolve("auto", names[:9], everywhere) == "exhaustive"
    assert resolve("sequential", names, everywhere) == "sequential"


@pytest.mark.slow
@needs_pycolmap
def test_retrieval_finds_the_images_of_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four images each of twelve places, whose names alternate: the three most similar ones are of the same place.

    With two places in place of twelve most words are in both, and what is found depends on how the CPU rounds.
    """
    draw, names = np.random.default_rng(3), [f"{i:02d}.png" for i in range(48)]
    for place in range(12):
        ground = texture(100, draw)
        for i, name in enumerate(names[place::12]):
            write_image(tmp_path / "photos" / name, ground[20 * i : 20 * i + 300, :400])
    shop = Workshop(tmp_path / "photos", names, tmp_path / "sfm")
    shop.extract([(names, {"camera_model": "PINHOLE"})], 500)
    monkeypatch.setattr("momentum_gs.data.prepare.retrieval.SIMILAR", 3)
    assert similar_pairs(shop) == {pair for place in range(12) for pair in combinations(names[place::12], 2)}


@needs_pycolmap
def test_all_images_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    """Also a JPEG that ends early, of which decoders make an image with a grey rest."""
    photos = tmp_path / "photos"
    names = [f"{i}.jpg" for i in range(4)]
    ground = texture(100, np.random.default_rng(0))
    for name in names:
        write_image(photos / name, ground[:300, :400])
    whole = (photos / "1.jpg").read_bytes()
    for name in names[1:3]:
        (photos / name).write_bytes(whole[: len(whole) // 2])
    shop = Workshop(photos, names, tmp_path / "sfm")
    with pytest.raises(UserError, match=r"2 of 4 .*photos/1\.jpg, .*photos/2\.jpg \(.*1\.jpg.*truncated"):
        shop.extract([(names, {"camera_model": "PINHOLE"})], 500)
    (photos / "2.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"photos/2\.jpg \(0 bytes\)"):
        camera_groups(photos, names, "folder")


def test_lines_are_joined_however_dense_they_are() -> None:
    """Two lines 20 m apart, an image every 0.2 m: the 40 nearest images of each are all on its own line."""
    names = [f"{i:04d}" for i in range(400)]
    places = torch.tensor([(20.0 * (i // 200), 0.2 * (i % 200)) for i in range(400)], dtype=torch.float64)
    assert [len(group) for group in linked_groups(names, nearest_pairs(names, places))] == [200, 200]
    pairs = pairs_around(names, places)
    assert [len(group) for group in linked_groups(names, pairs)] == [400]
    assert all(a < b for a, b in pairs) and len(pairs) <= 16 * len(names)


def test_images_of_a_rig_count_as_one_neighbour() -> None:
    """Four images at each of nine places: each is still matched with all images of the places beside it."""
    names = [f"{i:02d}" for i in range(36)]
    places = torch.tensor([(10.0 * (i // 4 % 3), 10.0 * (i // 12)) for i in range(36)], dtype=torch.float64)
    pairs = pairs_around(names, places)
    middle, east = names[16:20], names[20:24]
    assert {(a, b) for a in middle for b in east} <= pairs
    assert set(combinations(middle, 2)) <= pairs


def test_groups_are_the_connected_components_of_the_pairs() -> None:
    assert linked_groups("abcdef", [("a", "c"), ("e", "f"), ("c", "e"), ("b", "d")]) == [list("acef"), list("bd")]
    assert linked_groups("ba", []) == [["a"], ["b"]]


def test_features_of_a_reduced_image_are_in_pixels_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Discs with known centres are found in the whole image and in one of half the size."""
    centers = np.array([(101.0, 83.0), (300.0, 80.0), (297.0, 215.0)])
    pixels = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    for x, y in centers.astype(int):
        cv2.circle(pixels, (x, y), 12, (220, 220, 220), -1, cv2.LINE_AA)
    write_image(tmp_path / "discs.png", pixels)
    for side in (1600, WIDTH // 2):
        monkeypatch.setattr("momentum_gs.data.prepare.sift.MAX_SIDE", side)
        places, descriptors = sift(tmp_path / "discs.png", 100)
        assert len(places) == len(descriptors)
        away = np.linalg.norm(places[None] - centers[:, None] - 0.5, axis=2)  # Pixel centres are at .5.
        assert away.min(axis=1).max() < 0.2
    # RootSIFT has unit length, 512 in bytes.
    assert np.linalg.norm(descriptors.astype(float), axis=1) == pytest.approx(512, rel=0.02)
    assert len(sift(tmp_path / "discs.png", 2)[0]) == 2


@pytest.mark.slow
@needs_pycolmap
def test_images_of_a_second_scene_are_left_out_and_named(
    tmp_path: Path, flight: tuple[Path, dict[str, Camera]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Twelve images of one flight and four of another place: 'prepare' registers the twelve and names the others."""
    photos, truth = flight
    mixed = tmp_path / "photos"
    mixed.mkdir()
    for name in sorted(truth)[:12]:
        (mixed / Path(name).name).write_bytes((photos / "first flight" / Path(name).name).read_bytes())
    draw = np.random.default_rng(7)
    roofs = [(texture(12, draw), x, 0.0, 9.0) for x in (-30.0, 0.0, 20.0)]
    ground = [(texture(200, draw), -100.0, -100.0, 0.0), *roofs]
    for camera in cameras_of_the_flight()[:4]:
        write_image(mixed / f"other_{camera.name}", target(camera, ground))
    argv = ["--features", "2000", "--camera-model", "SIMPLE_RADIAL", "--matching", "exhaustive"]
    assert main(["prepare", str(mixed), str(tmp_path / "scene"), *argv]) == 0
    printed = capsys.readouterr().out
    others = ", ".join(f"other_{i:02d}.jpg" for i in range(4))
    assert "registered: 12 of 16 images" in printed
    assert f"4 images that overlap each other but not the scene enough: {others}" in printed
    record = json.loads((tmp_path / "scene" / "scene.json").read_text())
    assert record["not_registered"] == others.split(", ")


@pytest.mark.slow
@needs_pycolmap
def test_three_images_make_a_scene_and_unrelated_ones_none(
    tmp_path: Path, flight: tuple[Path, dict[str, Camera]], capsys: pytest.CaptureFixture[str]
) -> None:
    photos, truth = flight
    for name in ("05.jpg", "06.jpg", "09.jpg"):
        write_image(tmp_path / "unrelated" / name, random_image(name, WIDTH, HEIGHT))
        (tmp_path / "three").mkdir(exist_ok=True)
        (tmp_path / "three" / name).write_bytes((photos / "first flight" / name).read_bytes())
    flags = ["--features", "2000", "--camera-model", "PINHOLE"]
    assert main(["prepare", str(tmp_path / "three"), str(tmp_path / "scene"), *flags]) == 0
    assert "registered: 3 of 3 images" in capsys.readouterr().out
    assert main(["prepare", str(tmp_path / "unrelated"), str(tmp_path / "none"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no two of 3 images show the same place" in error


@pytest.mark.slow
@needs_pycolmap
def test_an_interrupted_stage_goes_on(
    tmp_path: Path, flight: tuple[Path, dict[str, Camera]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during the features and during mapping: finished work is not repeated."""
    import pycolmap

    photos, truth = flight
    names, asked = {*truth, "elsewhere.jpg"}, []

    def interrupted(path: Path, count: int) -> object:
        if len(asked) == 9:
            raise KeyboardInterrupt
        asked.append(path.name)
        return sift(path, count)

    def counted(path: Path, count: int) -> object:
        asked.append(path.name)
        return sift(path, count)

    def features() -> dict[str, Tensor]:
        with pycolmap.Database.open(tmp_path / "sfm" / "database.db") as database:
            assert database.num_cameras() == 2  # One for each folder.
            images = database.read_all_images()
            has = [image for image in images if database.exists_descriptors(image.image_id)]
            return {image.name: torch.tensor(database.read_keypoints(image.image_id)) for image in has}

    settings = SfmSettings(max_features=500, camera_model="SIMPLE_RADIAL")
    monkeypatch.setattr("momentum_gs.data.prepare.features.workers", lambda: 1)  # Four images at once.
    monkeypatch.setattr("momentum_gs.data.prepare.sfm.SNAPSHOT", 4)
    monkeypatch.setattr("momentum_gs.data.prepare.features.sift", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Sfm(photos, tmp_path, settings).reconstruct()
    before = features()
    assert 0 < len(before) < len(names)

    map_incrementally, begun = pycolmap.incremental_mapping, []

    def killed(*args: object, next_image_callback: object, **options: object) -> object:
        def count() -> None:
            begun.append(options["input_path"])
            if len(begun) == 10:
                raise KeyboardInterrupt

        return map_incrementally(*args, next_image_callback=count, **options)

    asked.clear()
    monkeypatch.setattr("momentum_gs.data.prepare.features.sift", counted)
    monkeypatch.setattr(pycolmap, "incremental_mapping", killed)
    with pytest.raises(KeyboardInterrupt):
        Sfm(photos, tmp_path, settings).reconstruct()
    after = features()
    assert after.keys() == names and len(asked) == len(names) - len(before)
    assert all(torch.equal(after[name], kept) for name, kept in before.items())
    # An unfinished snapshot, which is newer than the complete ones.
    (tmp_path / "sfm" / "snapshots" / "9999999999999999999").mkdir()
    begun[:] = [None] * 10
    assert len(Sfm(photos, tmp_path, settings).reconstruct().registered) == len(truth)
    assert 0 < len(begun) - 10 < len(truth) - 4 and all("snapshots" in str(path) for path in begun[10:])
