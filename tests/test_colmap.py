"""Facts about reading and writing COLMAP models."""

import math
import struct
import sys
import tracemalloc
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_files import REAL_SCENES, camera, points

from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import project, quat_to_matrix
from momentum_gs.data.colmap.model import find_model, read_cameras, read_model, read_points, write_model

FILES = ("cameras", "images", "points3D")
IDENTITY = (1.0, 0.0, 0.0, 0.0)


def pack_camera(number: int = 1, model: int = 1, size: tuple[int, int] = (40, 30), params: tuple = (35, 36, 20, 15)):
    return struct.pack("<iiQQ", number, model, *size) + struct.pack(f"<{len(params)}d", *params)


def pack_image(
    name: bytes = b"a.png", quat: tuple = IDENTITY, t: tuple = (0, 0, 4), cam: int = 1, observations: int = 0
):
    head = struct.pack("<i4d3di", 7, *quat, *t, cam) + name + b"\0" + struct.pack("<Q", observations)
    return head + struct.pack("<ddq", 1.5, 2.5, -1) * observations


def pack_point(xyz: tuple = (1, 2, 3), rgb: tuple = (10, 20, 30), track: int = 0) -> bytes:
    return struct.pack("<Q3d3BdQ", 5, *xyz, *rgb, 0.5, track) + struct.pack("<ii", 7, 0) * track


def pack(*records: bytes, count: int | None = None) -> bytes:
    return struct.pack("<Q", len(records) if count is None else count) + b"".join(records)


def write_files(folder: Path, **files: bytes | str) -> Path:
    """A valid binary model, except for the files given; a text is written in place of the binary file."""
    content = {"cameras": pack(pack_camera()), "images": pack(pack_image()), "points3D": pack(pack_point())} | files
    for stem, data in content.items():
        if isinstance(data, str):
            (folder / f"{stem}.txt").write_text(data)
        else:
            (folder / f"{stem}.bin").write_bytes(data)
    return folder


@pytest.mark.parametrize("binary", [True, False])
def test_what_is_written_is_read(tmp_path: Path, binary: bool) -> None:
    cameras = [camera("b/2.png", angle=2.0), camera("a b/1.png", x=3.0), camera("ö.png", width=41)]
    cloud = points()
    write_model(tmp_path, cameras, cloud, binary)
    assert {p.suffix for p in tmp_path.iterdir()} == {".bin" if binary else ".txt"}
    model = read_model(tmp_path)
    assert [c.name for c in model.cameras] == ["a b/1.png", "b/2.png", "ö.png"]
    assert torch.equal(model.points.xyz, cloud.xyz) and torch.equal(model.points.rgb, cloud.rgb)
    for found, wanted in zip(model.cameras, sorted(cameras, key=lambda c: c.name), strict=True):
        for field in ("width", "height", "fx", "fy", "cx", "cy"):
            assert getattr(found, field) == getattr(wanted, field)
        assert torch.equal(found.translation, wanted.translation)
        # The rotation went through a quaternion: a few units of float64 round-off.
        torch.testing.assert_close(found.rotation, wanted.rotation, rtol=0, atol=1e-14)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: math.hypot(*q) > 0.1))
def test_any_rotation_survives_the_quaternion(tmp_path_factory: pytest.TempPathFactory, quat: list[float]) -> None:
    rotation = quat_to_matrix(torch.tensor(quat, dtype=torch.float64))
    folder = tmp_path_factory.mktemp("model")
    view = camera("a.png")
    write_model(folder, [type(view)(**{**vars(view), "rotation": rotation})], points(1))
    # Also for rotations by 180 degrees, where formulas with a division lose precision.
    torch.testing.assert_close(read_cameras(folder)[0].rotation, rotation, rtol=0, atol=1e-14)


def test_observations_and_tracks_of_any_length_are_skipped(tmp_path: Path) -> None:
    images = pack(pack_image(b"b.png", observations=3), pack_image(b"a.png", t=(1, 2, 3), observations=1))
    tracks = [0, 5, 1, 0, 2]
    cloud = pack(*(pack_point((i, -i, 0.5), (i, 2 * i, 255), track) for i, track in enumerate(tracks)))
    model = read_model(write_files(tmp_path, images=images, points3D=cloud))
    assert [c.name for c in model.cameras] == ["a.png", "b.png"]
    assert model.cameras[0].translation.tolist() == [1, 2, 3]
    assert model.points.xyz.tolist() == [[i, -i, 0.5] for i in range(5)]
    assert model.points.rgb.tolist() == [[i, 2 * i, 255] for i in range(5)]


def test_a_simple_pinhole_has_one_focal_length(tmp_path: Path) -> None:
    binary, text = tmp_path / "binary", tmp_path / "text"
    binary.mkdir(), text.mkdir()
    write_files(binary, cameras=pack(pack_camera(model=0, params=(35, 20, 15))))
    write_files(text, cameras="1 SIMPLE_PINHOLE 40 30 35 20 15\n")
    for folder in (binary, text):
        found = read_cameras(folder)[0]
        assert (found.fx, found.fy, found.cx, found.cy) == (35, 35, 20, 15)


def test_a_quaternion_need_not_be_normalized(tmp_path: Path) -> None:
    found = read_cameras(write_files(tmp_path, images=pack(pack_image(quat=(2, 0, 0, 2)))))[0]
    quarter_turn = torch.tensor([[0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(
        found.rotation, quarter_turn, rtol=0, atol=1e-15
    )  # round-off of the division by 8 ** 0.5


def test_text_with_comments_blank_lines_and_observations(tmp_path: Path) -> None:
    images = (
        "# a comment\n\n1 1 0 0 0 0 0 4 1 b c.png\n1.5 2.5 -1 3.5 4.5 12\n"
        "2 1 0 0 0 0 0 5 1 a.png\n\n# another\n3 1 0 0 0 0 0 6 1 d.png"
    )
    cloud = "# header\n1 0.5 -1 2e1 1 2 3 0.1 1 2 3 4\n\n2 7 8 9 255 0 0 0.1\n"
    model = read_model(
        write_files(tmp_path, cameras="# c\n1 PINHOLE 40 30 35 36 20 15\n", images=images, points3D=cloud)
    )
    assert [(c.name, float(c.translation[2])) for c in model.cameras] == [("a.png", 5), ("b c.png", 4), ("d.png", 6)]
    assert model.points.xyz.tolist() == [[0.5, -1, 20], [7, 8, 9]]
    assert model.points.rgb.tolist() == [[1, 2, 3], [255, 0, 0]]


def test_binary_files_are_preferred(tmp_path: Path) -> None:
    write_model(tmp_path, [camera("old.png")], points(1), binary=False)
    write_model(tmp_path, [camera("new.png")], points(2), binary=True)
    model = read_model(tmp_path)
    assert [c.name for c in model.cameras] == ["new.png"] and len(model.points) == 2


def test_companions_of_newer_models_are_ignored(tmp_path: Path) -> None:
    write_files(tmp_path)
    for name in ("frames.bin", "rigs.bin"):
        (tmp_path / name).write_bytes(b"\xff" * 9)
    assert len(read_model(tmp_path).cameras) == 1


def test_a_model_may_hold_no_points(tmp_path: Path) -> None:
    assert len(read_points(write_files(tmp_path, points3D=pack()))) == 0
    (tmp_path / "points3D.bin").unlink()
    assert len(read_points(write_files(tmp_path, points3D="# nothing\n"))) == 0


@pytest.mark.parametrize("sparse", ["sparse/0", "sparse"])
def test_both_places_of_a_model_are_found(tmp_path: Path, sparse: str) -> None:
    (tmp_path / sparse).mkdir(parents=True)
    write_files(tmp_path / sparse)
    assert find_model(tmp_path) == tmp_path / sparse


def test_a_scene_without_a_model_names_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sparse/0/cameras\.bin"):
        find_model(tmp_path)


@pytest.mark.parametrize("stem", FILES)
def test_a_missing_file_is_named(tmp_path: Path, stem: str) -> None:
    (write_files(tmp_path) / f"{stem}.bin").unlink()
    with pytest.raises(UserError, match=f"no {stem}.bin and no {stem}.txt"):
        read_model(tmp_path)


@pytest.mark.parametrize("stem", FILES)
def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path, stem: str) -> None:
    records = {
        "cameras": pack(pack_camera(1), pack_camera(2)),
        "images": pack(pack_image(b"a.png", observations=2), pack_image(b"b.png", observations=1)),
        "points3D": pack(pack_point(track=2), pack_point(track=1)),
    }
    write_files(tmp_path, **records)
    read_model(tmp_path)
    path, whole = tmp_path / f"{stem}.bin", records[stem]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        # A name whose end is cut off has no zero byte; all else reports the two sizes.
        sizes = f"{stem}.bin: truncated or damaged, found {size} bytes, expected at least |{stem}.bin: the image name"
        with pytest.raises(UserError, match=sizes):
            read_model(tmp_path)


@pytest.mark.parametrize("stem", FILES)
def test_a_file_longer_than_its_count_is_refused(tmp_path: Path, stem: str) -> None:
    path = write_files(tmp_path) / f"{stem}.bin"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=f"{stem}.bin: damaged, found {size + 1} bytes, expected {size}"):
        read_model(tmp_path)


# One record too many, counts that would fill a machine's memory, and the largest that fits the field.
FORGED = (2, 2**32, 2**40, 2**64 - 1)


@pytest.mark.parametrize("count", FORGED)
@pytest.mark.parametrize("stem", FILES)
def test_a_forged_count_takes_no_memory(tmp_path: Path, stem: str, count: int) -> None:
    record = {"cameras": pack_camera(), "images": pack_image(), "points3D": pack_point()}[stem]
    check_refused_in_little_memory(write_files(tmp_path, **{stem: pack(record, count=count)}), f"{stem}.bin")


@pytest.mark.parametrize("count", FORGED)
def test_a_forged_length_of_a_record_takes_no_memory(tmp_path: Path, count: int) -> None:
    track = pack_point()[:-8] + struct.pack("<Q", count)
    check_refused_in_little_memory(write_files(tmp_path, points3D=pack(track)), "points3D.bin")
    observations = pack_image()[:-8] + struct.pack("<Q", count)
    check_refused_in_little_memory(write_files(tmp_path, images=pack(observations)), "images.bin")


def check_refused_in_little_memory(folder: Path, file: str) -> None:
    tracemalloc.start()
    with pytest.raises(UserError, match=f"{file}: truncated or damaged, found"):
        read_model(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20  # The files have under 200 bytes; a megabyte covers the imports' and pytest's own objects.


NAN, INF = math.nan, math.inf
BROKEN: list[tuple[dict, str]] = [
    # Cameras.
    ({"cameras": pack(pack_camera(params=(0, 36, 20, 15)))}, "camera 1 is 40x30 with fx=0.0"),
    ({"cameras": pack(pack_camera(params=(35, -1, 20, 15)))}, "fy=-1.0"),
    ({"cameras": pack(pack_camera(params=(NAN, 36, 20, 15)))}, "fx=nan"),
    ({"cameras": pack(pack_camera(params=(35, 36, INF, 15)))}, "cx=inf"),
    ({"cameras": pack(pack_camera(size=(0, 30)))}, "camera 1 is 0x30"),
    ({"cameras": pack(pack_camera(size=(40, 2**63)))}, "camera 1 is 40x9223372036854775808"),
    ({"cameras": pack(pack_camera(), pack_camera())}, "camera 1 is listed twice"),
    ({"cameras": pack(pack_camera(number=2))}, "'a.png' uses camera 1, which cameras.bin does not list"),
    ({"cameras": pack(pack_camera(model=99))}, "camera 1 has model number 99"),
    ({"cameras": pack(pack_camera(model=-1))}, "camera 1 has model number -1"),
    ({"cameras": "1 PINHOLE 40 30 35 36 20\n"}, "line 1 is '1 PINHOLE 40 30 35 36 20', expected CAMERA_ID"),
    ({"cameras": "1 PINHOLE 40 30 35 36 20 x\n"}, "line 1 is .*, expected CAMERA_ID"),
    ({"cameras": "# only\n1\n"}, "line 2 is '1', expected CAMERA_ID"),
    # Poses.
    ({"images": pack(pack_image(quat=(NAN, 0, 0, 0)))}, r"'a.png' has quaternion \[nan"),
    ({"images": pack(pack_image(quat=(INF, 0, 0, 0)))}, r"'a.png' has quaternion \[inf"),
    ({"images": pack(pack_image(quat=(0, 0, 0, 0)))}, r"'a.png' has quaternion \[0.0"),
    ({"images": pack(pack_image(t=(0, NAN, 0)))}, r"translation \[0.0, nan"),
    ({"images": pack(pack_image(), pack_image())}, "'a.png' is listed twice"),
    ({"images": pack()}, "holds no images"),
    ({"images": pack(pack_image(b"\xff.png"))}, "is not UTF-8"),
    ({"images": pack(pack_image(b"a" * 5000))}, "does not end within 4096 bytes"),
    ({"images": "1 1 0 0 0 0 0 4 1\n\n"}, "images.txt: line 1 is .*, expected IMAGE_ID"),
    ({"images": "1 1 0 0 0 0 0 x 1 a.png\n\n"}, "images.txt: line 1 is .*, expected IMAGE_ID"),
    ({"images": "1 1 0 0 0 0 0 4 1 a.png\n2 1 0 0 0 0 0 4 1 b.png\n"}, "line 2 is .*, expected the 2D points of image"),
    # Names that would leave the image folder, on this system or another.
    *(
        ({"images": pack(pack_image(name))}, "is not a plain path below the image folder")
        for name in (
            b"", b"..", b"../a.png", b"a/../../b.png", b"/etc/passwd", b"./a.png", b"a//b.png", b"a/", b"..\\a.png",
            b"\\\\server\\a.png", b"C:\\a.png", b"C:a.png", b"a\nb.png",
        )
    ),
    # Points.
    ({"points3D": pack(pack_point(), pack_point(xyz=(0, NAN, 0)))}, "1 of 2 points have NaN or infinite coordinates"),
    ({"points3D": pack(pack_point(xyz=(-INF, 0, 0)))}, "1 of 1 points have NaN"),
    ({"points3D": "1 0 0 0 1 2 3 0\n2 0 0 nan 1 2 3 0\n"}, "points3D.txt: 1 of 2 points have NaN"),
    ({"points3D": "1 0 0 0 1 2 256 0\n"}, "points3D.txt: line 1 .* in 0..255"),
    ({"points3D": "1 0 0 0 1 2 -3 0\n"}, "points3D.txt: line 1 .* in 0..255"),
    ({"points3D": "1 0 0 0 1\n"}, "points3D.txt: line 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "message"), BROKEN, ids=[message[:40] + f"-{i}" for i, (_, message) in enumerate(BROKEN)]
)
def test_broken_models_are_refused_in_one_line(tmp_path: Path, files: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_model(write_files(tmp_path, **files))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("number", "name", "count"), [(2, "SIMPLE_RADIAL", 4), (4, "OPENCV", 8), (5, "OPENCV_FISHEYE", 8)]
)
def test_distortion_is_refused_with_the_way_out(tmp_path: Path, number: int, name: str, count: int) -> None:
    binary, text = tmp_path / "binary", tmp_path / "text"
    binary.mkdir(), text.mkdir()
    write_files(binary, cameras=pack(pack_camera(model=number, params=(0.1,) * count)))
    write_files(text, cameras=f"1 {name} 40 30 {' 0.1' * count}\n")
    for folder in (binary, text):
        with pytest.raises(UserError, match=f"camera 1 has model {name}, .*colmap image_undistorter .*{folder}"):
            read_model(folder)


@pytest.mark.parametrize("stem", FILES)
@pytest.mark.parametrize("binary", [True, False])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, stem: str, binary: bool) -> None:
    write_model(tmp_path, [camera("a.png")], points(2), binary)
    draw = np.random.default_rng(1)
    for _ in range(20):
        (tmp_path / f"{stem}.{'bin' if binary else 'txt'}").write_bytes(draw.bytes(200))
        with pytest.raises(UserError, match=stem):
            read_model(tmp_path)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FILES), st.integers(0, 10**6), st.integers(1, 255))
def test_a_flipped_byte_is_read_or_refused_but_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, stem: str, place: int, mask: int
) -> None:
    folder = tmp_path_factory.mktemp("model")
    path = write_files(folder, images=pack(pack_image(observations=1), pack_image(b"b.png"))) / f"{stem}.bin"
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= mask
    path.write_bytes(bytes(data))
    try:
        model = read_model(folder)
    except UserError as error:
        assert str(folder) in str(error)
    else:
        assert all(c.rotation.isfinite().all() and c.fx > 0 for c in model.cameras)
        assert model.points.xyz.isfinite().all()


def test_names_that_leave_the_folder_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a plain path"):
        write_model(tmp_path, [camera("../a.png")], points(1))


# A real scene. Figures of its README.

CALITERRA = REAL_SCENES / "caliterra" / "sparse" / "0"
needs_caliterra = pytest.mark.skipif(not CALITERRA.is_dir(), reason=f"no {CALITERRA}; set MOMENTUM_GS_SHARED")


@needs_caliterra
def test_the_real_model_has_its_figures() -> None:
    model = read_model(CALITERRA)
    assert (len(model.cameras), len(model.points)) == (75, 42_506)
    first = model.cameras[0]
    assert (first.width, first.height, first.cx, first.cy) == (1000, 751, 500, 375.5)
    assert (round(first.fx, 2), round(first.fy, 2)) == (761.15, 761.91)


@pytest.mark.slow
@needs_caliterra
def test_real_points_project_onto_their_observations() -> None:
    """The fast reader against a plain one, and projections against the observations that COLMAP recorded."""
    model = read_model(CALITERRA)
    ids, tracks = plain_points(CALITERRA / "points3D.bin")
    assert sum(tracks) == 284_337
    row_of = {number: row for row, number in enumerate(ids)}
    observed = plain_observations(CALITERRA / "images.bin")
    errors = []
    for view in model.cameras:
        rows = [row_of[number] for _, number in observed[view.name]]
        pixels, depth = project(model.points.xyz[rows], view)
        assert (depth > 0).all()
        errors.append((pixels - torch.tensor([xy for xy, _ in observed[view.name]], dtype=torch.float64)).norm(dim=1))
    # The mean reprojection error at the stored resolution in the README of the scene, to its three digits.
    assert float(torch.cat(errors).mean()) == pytest.approx(0.350, abs=5e-4)


def plain_points(path: Path) -> tuple[list[int], list[int]]:
    data, at, ids, tracks = path.read_bytes(), 8, [], []
    while at < len(data):
        ids.append(struct.unpack_from("<Q", data, at)[0])
        tracks.append(struct.unpack_from("<Q", data, at + 43)[0])
        at += 51 + 8 * tracks[-1]
    return ids, tracks


def plain_observations(path: Path) -> dict[str, list[tuple[tuple[float, float], int]]]:
    """Pixel and point of each observation that has a point, by image name."""
    data, at, found = path.read_bytes(), 8, {}
    while at < len(data):
        end = data.index(b"\0", at + 64)
        (count,) = struct.unpack_from("<Q", data, end + 1)
        rows = struct.iter_unpack("<ddq", data[end + 9 : end + 9 + 24 * count])
        found[data[at + 64 : end].decode()] = [((x, y), number) for x, y, number in rows if number != -1]
        at = end + 9 + 24 * count
    return found


def test_a_large_cloud_is_read_in_bulk(tmp_path: Path) -> None:
    """Two calls for each record, which read its length; the values are read from all records at once."""

    def calls(count: int) -> int:
        rows = np.tile(np.frombuffer(pack_point(track=3), np.uint8), (count, 1))
        rows[:, 8:16] = np.arange(count, dtype="<f8")[:, None].view(np.uint8)
        write_files(tmp_path, points3D=struct.pack("<Q", count) + rows.tobytes())
        seen = 0

        def note(frame: FrameType, event: str, argument: object) -> None:
            nonlocal seen
            seen += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            cloud = read_points(tmp_path)
        finally:
            sys.setprofile(None)
        assert torch.equal(cloud.xyz[:, 0], torch.arange(count, dtype=torch.float64))
        return seen

    calls(1)  # Warm-up.
    assert calls(3000) - calls(1000) <= 2 * 2000
