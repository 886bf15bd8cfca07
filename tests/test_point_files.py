"""Facts about point files: positions, colours, thinning, errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement, PlyListProperty
from scene_files import write_scene

from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.data import point_files
from momentum_gs.data.point_files import read_point_file
from momentum_gs.data.scene import load_scene

XYZ = np.array([[0.5, -1, 1e6], [2, 3, 4], [-7, 8, 9]])
RGB = np.array([[1, 2, 3], [255, 0, 9], [40, 50, 60]])


def write_ply(path: Path, xyz: np.ndarray = XYZ, colours: dict[str, np.ndarray] | None = None, **how: Any) -> Path:
    columns = {name: xyz[:, i] for i, name in enumerate("xyz")} | (colours or {})
    rows = np.empty(len(xyz), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        rows[name] = column
    PlyData([PlyElement.describe(rows, "vertex")], **how).write(str(path))
    return path


def channels(dtype: type, scale: float = 1, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: (RGB[:, i] * scale).astype(dtype) for i, name in enumerate(("red", "green", "blue"))}


def write_las(path: Path, colours: int | None = 257, xyz: np.ndarray = XYZ) -> Path:
    laspy = pytest.importorskip("laspy", reason="laspy (the extra las) is not installed")
    header = laspy.LasHeader(point_format=6 if colours is None else 7, version="1.4")
    header.scales, header.offsets = [0.001] * 3, [0, 0, 1e6]
    file = laspy.LasData(header)
    file.x, file.y, file.z = xyz.T
    if colours is not None:
        file.red, file.green, file.blue = (RGB * colours).astype(np.uint16).T
    file.write(str(path))
    return path


@pytest.mark.parametrize("how", [{"byte_order": "<"}, {"byte_order": ">"}, {"text": True}])
def test_plys_of_all_forms(tmp_path: Path, how: dict) -> None:
    cloud = read_point_file(write_ply(tmp_path / "a.ply", XYZ, channels(np.uint8), **how))
    assert torch.equal(cloud.xyz, torch.from_numpy(XYZ)) and torch.equal(cloud.rgb, torch.from_numpy(RGB).byte())


@pytest.mark.parametrize(
    "colours",
    [
        channels(np.uint8, prefix="diffuse_"), channels(np.uint16, 257), channels(np.float32, 1 / 255),
        channels(np.float32),
    ],
    ids=["diffuse", "16 bits", "up to 1", "up to 255"],
)  # fmt: skip
def test_colours_of_all_ranges(tmp_path: Path, colours: dict) -> None:
    assert read_point_file(write_ply(tmp_path / "a.ply", XYZ, colours)).rgb.tolist() == RGB.tolist()


def test_points_without_colour_are_grey(tmp_path: Path) -> None:
    assert (read_point_file(write_ply(tmp_path / "a.ply")).rgb == 128).all()


def test_faces_are_skipped(tmp_path: Path) -> None:
    vertex = np.array([(1, 2, 3)], [(name, "<f4") for name in "xyz"])
    faces = np.empty(1, [("corners", object)])
    faces["corners"][0] = np.array([0, 0, 0], np.int32)
    elements = [PlyElement.describe(faces, "face"), PlyElement.describe(vertex, "vertex")]
    assert isinstance(elements[0].properties[0], PlyListProperty)
    PlyData(elements).write(str(tmp_path / "mesh.PLY"))
    assert read_point_file(tmp_path / "mesh.PLY").xyz.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(("suffix", "colours"), [(".las", 257), (".las", 1), (".las", None), (".laz", 257)])
def test_las_keeps_scaled_coordinates_and_colours(tmp_path: Path, suffix: str, colours: int | None) -> None:
    if suffix == ".laz":
        pytest.importorskip("lazrs", reason="lazrs (the extra las) is not installed")
    cloud = read_point_file(write_las(tmp_path / f"a{suffix}", colours))
    # Stored in whole millimetres.
    torch.testing.assert_close(cloud.xyz, torch.from_numpy(XYZ), rtol=0, atol=0.0005 + 1e-9)
    assert cloud.rgb.tolist() == (RGB.tolist() if colours else [[128] * 3] * 3)


def test_without_laspy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "laspy", None)
    with pytest.raises(UserError, match=r"a\.las needs laspy, .*pip install 'momentum-gs\[las\]'"):
        read_point_file(tmp_path / "a.las")


@pytest.mark.parametrize("piece", [300, 100_000])
@pytest.mark.parametrize("shape", ["plane", "volume", "one place", "far"])
def test_a_huge_cloud_is_thinned_evenly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, piece: int
) -> None:
    monkeypatch.setattr(point_files, "_PIECE", piece)
    draw = np.random.default_rng(0)
    xyz = draw.uniform(size=(10_000, 3))
    if shape == "plane":
        xyz[:, 2] = 0
    elif shape == "one place":
        xyz[:] = 1
    elif shape == "far":
        xyz += [5e5, 5e6, 0]
    cloud = read_point_file(write_ply(tmp_path / "a.ply", xyz), limit=1000)
    assert len(cloud) == 1 if shape == "one place" else 400 < len(cloud) <= 1000
    kept = cloud.xyz.numpy()
    rows = {tuple(row) for row in xyz.tolist()}
    assert all(tuple(row) in rows for row in kept.tolist()), "points of the file, not means"
    if shape != "one place":
        # Every point has a kept one within a few voxels, whose volume (or area) is about a thousandth of the cloud's.
        middle = xyz.mean(axis=0)
        distance = torch.cdist(torch.from_numpy(xyz - middle), torch.from_numpy(kept - middle)).min(dim=1).values
        assert distance.max() < (0.15 if shape == "plane" else 0.35)


def test_a_cloud_within_the_limit_stays_whole_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_files, "_PIECE", 7)
    xyz = np.random.default_rng(0).normal(size=(100, 3))
    assert torch.equal(read_point_file(write_ply(tmp_path / "a.ply", xyz), limit=100).xyz, torch.from_numpy(xyz))


def head(*lines: str) -> bytes:
    return "\n".join(["ply", "format binary_little_endian 1.0", *lines, "end_header", ""]).encode()


FLOATS = [f"property float {name}" for name in "xyz"]
BROKEN = {
    "empty.ply": b"", "text.ply": b"not a ply", "header.ply": b"ply\nformat ascii 1.0\nelement vertex 1\n",
    "forged.ply": head("element vertex 99999999999999", *FLOATS) + bytes(12),
    "forged_less.ply": head("element vertex 100", *FLOATS) + bytes(12),
    "forged_face.ply": head("element face 99999999", "property list uchar int v", "element vertex 1", *FLOATS)
    + bytes(12),
    "digits.ply": head(f"element vertex {'9' * 5000}", *FLOATS),
    "negative.ply": head("element vertex -1", *FLOATS), "nothing.ply": head("element vertex 0", *FLOATS),
    "no_z.ply": head("element vertex 1", *FLOATS[:2]) + bytes(8),
    "lists.ply": head("element vertex 1", *(f"property list uchar float {n}" for n in "xyz")) + b"\0\0\0",
    "nan.ply": head("element vertex 1", *FLOATS) + np.full(3, np.nan, "<f4").tobytes(),
    "twice.ply": head("element vertex 1", *FLOATS, "property float x") + bytes(16),
    "points.xyz": b"1 2 3\n",
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(UserError, match=name) as error:
        read_point_file(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "count", "text"])
def test_broken_las_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = write_las(tmp_path / "a.las")
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        # The count of points of version 1.4 stands at byte 247.
        forged = data[:247] + (2**40).to_bytes(8, "little") + data[255:]
        path.write_bytes({"empty": b"", "cut": data[:-40], "count": forged, "text": b"no points" * 99}[damage])
    with pytest.raises(UserError, match=r"a\.las cannot be read"):
        read_point_file(path)


def test_a_missing_ply_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.ply cannot be read .*scene.points"):
        read_point_file(tmp_path / "none.ply")


# In a scene.


def test_a_scene_takes_its_points_from_the_given_file(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene", ["1.png"])
    write_ply(tmp_path / "scene" / "below.ply")
    write_ply(tmp_path / "beside.ply", XYZ[:2])
    config = {"path": str(tmp_path / "scene"), "test_every": 0}
    for given, count in (("below.ply", 3), (str(tmp_path / "beside.ply"), 2), ("random", 100_000)):
        assert len(load_scene(SceneConfig(**config, points=given)).points) == count
    (tmp_path / "scene" / "sparse" / "0" / "points3D.bin").unlink()
    assert len(load_scene(SceneConfig(**config, points="below.ply")).points) == 3, "a model needs no points then"
