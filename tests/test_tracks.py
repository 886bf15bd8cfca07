"""Which images observe which points."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from scene_files import REAL_SCENES, points, write_scene

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import project
from momentum_gs.data.colmap.model import read_cameras
from momentum_gs.data.tracks import read_tracks

NAMES = ["a.png", "b.png", "c/d e.png"]
# Image ids are those of the written scene, from 1. One image may observe a point twice; one observes nothing.
TRACKS = [[1, 2], [], [3, 1, 1]]
ERRORS = [0.5, -1.0, 2.25]


def write_tracks(scene: Path, tracks: list[list[int]] = TRACKS) -> Path:
    """Replaces the points of a scene by its first ones, with these tracks."""
    model, cloud = scene / "sparse" / "0", points(len(tracks))
    data = struct.pack("<Q", len(tracks))
    for i, (track, error) in enumerate(zip(tracks, ERRORS, strict=True)):
        data += struct.pack("<Q3d3Bd", 7 * i, *cloud.xyz[i].tolist(), *cloud.rgb[i].tolist(), error)
        data += struct.pack("<Q", len(track)) + b"".join(struct.pack("<ii", image, 5) for image in track)
    (model / "points3D.bin").write_bytes(data)
    return model


def write_as_text(model: Path) -> None:
    images = ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"]
    for i, name in enumerate(NAMES, start=1):
        images += [f"{i} 1 0 0 0 0 0 0 1 {name}", "1.5 2.5 -1" if i == 1 else ""]
    (model / "images.txt").write_text("\n".join(images) + "\n")
    cloud = points(len(TRACKS))
    rows = []
    for i, track in enumerate(TRACKS):
        words = [7 * i, *cloud.xyz[i].tolist(), *cloud.rgb[i].tolist(), ERRORS[i]]
        rows.append(" ".join(map(str, words + [word for image in track for word in (image, 5)])))
    (model / "points3D.txt").write_text("# POINTS\n" + "\n".join(rows) + "\n")
    for name in ("images.bin", "points3D.bin"):
        (model / name).unlink()


@pytest.mark.parametrize("text", [False, True])
def test_an_image_observes_the_points_whose_tracks_name_it(tmp_path, text):
    model = write_tracks(write_scene(tmp_path, NAMES))
    if text:
        write_as_text(model)
    tracks = read_tracks(model)
    assert {name: rows.tolist() for name, rows in tracks.seen.items()} == {
        "a.png": [0, 2], "b.png": [0], "c/d e.png": [2],
    }  # fmt: skip
    assert tracks.length.tolist() == [2, 0, 3]
    assert tracks.error.tolist() == ERRORS
    assert torch.equal(tracks.points.xyz, points(3).xyz)


def test_a_model_without_tracks_observes_nothing(tmp_path):
    assert read_tracks(write_scene(tmp_path, NAMES) / "sparse" / "0").seen == {}


def test_a_track_of_an_image_that_is_not_there_is_refused(tmp_path):
    model = write_tracks(write_scene(tmp_path, NAMES), [[1], [9], [2]])
    with pytest.raises(UserError, match="does not list image 9"):
        read_tracks(model)


def test_a_damaged_track_is_refused(tmp_path):
    model = write_tracks(write_scene(tmp_path, NAMES))
    data = (model / "points3D.bin").read_bytes()
    (model / "points3D.bin").write_bytes(data[:-1])
    with pytest.raises(UserError, match="truncated"):
        read_tracks(model)


@pytest.mark.parametrize("line", ["1 0 0 0 9 9 9 0.5 1", "1 0 0 0 9 9 9", "1 0 0 0 9 9 9 0.5 x 1"])
def test_a_line_that_is_no_track_is_refused(tmp_path, line):
    model = write_tracks(write_scene(tmp_path, NAMES))
    write_as_text(model)
    (model / "points3D.txt").write_text(line + "\n")
    with pytest.raises(UserError, match="line 1"):
        read_tracks(model)


@pytest.mark.skipif(not (REAL_SCENES / "caliterra").is_dir(), reason=f"no {REAL_SCENES}; set MOMENTUM_GS_SHARED")
def test_points_lie_in_the_images_that_observe_them():
    model = REAL_SCENES / "caliterra" / "sparse" / "0"
    tracks = read_tracks(model)
    cameras = {camera.name: camera for camera in read_cameras(model)}
    assert tracks.seen.keys() == cameras.keys()
    outside, observations = 0, 0
    for name, rows in tracks.seen.items():
        camera = cameras[name]
        pixels, depth = project(tracks.points.xyz[rows], camera)
        assert (depth > 0).all()
        # A projection is off its observation by the reprojection error, which is rarely more than these 8 pixels.
        inside = (pixels > -8) & (pixels < torch.tensor([camera.width + 8, camera.height + 8]))
        outside, observations = outside + int((~inside.all(dim=1)).sum()), observations + len(rows)
    assert outside < 1e-3 * observations
    assert sum(map(len, tracks.seen.values())) <= int(tracks.length.sum())
    assert np.isfinite(tracks.error.numpy()).all()
