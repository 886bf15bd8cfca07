"""Damaged files with every reader: whatever they contain, they are read or refused, in bounded memory.

Here with a few examples of each kind, the same every time. ``scripts/fuzz_readers.py`` runs many more, new ones each
time: FUZZ_EXAMPLES sets their number, and with FUZZ_SEED they are not the same every time.
"""

import json
import math
import os
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from plyfile import PlyData, PlyElement
from scene_files import camera, points
from splat_scene import random_splats

from momentum_gs.core.errors import UserError
from momentum_gs.core.types import PointCloud
from momentum_gs.data.colmap.model import read_points, read_views, write_model
from momentum_gs.data.lens import MODELS, Lens, parameter_count
from momentum_gs.data.point_files import read_point_file
from momentum_gs.data.transforms import read_transforms
from momentum_gs.data.undistort import pinhole_window
from momentum_gs.formats.read import read_splats
from momentum_gs.formats.torchscript import read_torchscript
from momentum_gs.formats.write import write_splats
from momentum_gs.model.splats import Splats

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "50"))
FUZZ = settings(
    max_examples=EXAMPLES, derandomize="FUZZ_SEED" not in os.environ, database=None, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
# The files have a few kilobytes, of which readers keep some hundred bytes a record; forged counts may mean gigabytes.
MEMORY = 32 * 2**20


def ply(text: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        cloud = points(12)
        rows = np.empty(12, [*((name, "<f4") for name in "xyz"), *((name, "u1") for name in ("red", "green", "blue"))])
        for i, name in enumerate("xyz"):
            rows[name] = cloud.xyz[:, i]
        for i, name in enumerate(("red", "green", "blue")):
            rows[name] = cloud.rgb[:, i]
        PlyData([PlyElement.describe(rows, "vertex")], text=text, byte_order="<").write(str(path))

    return write


def las(path: Path) -> None:
    laspy = pytest.importorskip("laspy", reason="laspy (the extra las) is not installed")
    if path.suffix == ".laz":
        pytest.importorskip("lazrs", reason="lazrs (the extra las) is not installed")
    file = laspy.LasData(laspy.LasHeader(point_format=2, version="1.2"))
    file.x, file.y, file.z = points(40).xyz.numpy().T
    file.write(str(path))


def model(binary: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_model(path.parent, [camera("a/1.png"), camera("b.jpg", width=41)], points(6), binary)

    return write


def transforms(path: Path) -> None:
    pose = [[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.0, 3.0], [0.0, 0.0, 0.0, 1.0]]
    frames = [{"file_path": f"images/{i}.png", "transform_matrix": pose, "k1": 0.1 * i} for i in range(2)]
    record = {"fl_x": 50.0, "w": 40, "h": 30, "k2": 0.01, "ply_file_path": "a.ply", "frames": frames}
    path.write_text(json.dumps(record))


def splats(path: Path) -> None:
    write_splats(path, random_splats(40))


def decoder(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())).save(path)


def read_model_views(path: Path) -> object:
    return read_views(path.parent, distorted=True)


def read_model_points(path: Path) -> object:
    return read_points(path.parent)


def read_poses(path: Path) -> object:
    return read_transforms(path.parent)


TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "cameras.bin": (model(True), read_model_views), "images.bin": (model(True), read_model_views),
    "points3D.bin": (model(True), read_model_points), "cameras.txt": (model(False), read_model_views),
    "images.txt": (model(False), read_model_views), "points3D.txt": (model(False), read_model_points),
    "transforms.json": (transforms, read_poses), "binary.ply": (ply(False), read_point_file),
    "text.ply": (ply(True), read_point_file), "points.las": (las, read_point_file),
    "points.laz": (las, read_point_file), "splats.ply": (splats, read_splats),
    "splats.compressed.ply": (splats, read_splats), "splats.splat": (splats, read_splats),
    "splats.spz": (splats, read_splats), "decoder.pt": (decoder, read_torchscript),
}  # fmt: skip

FORGED = st.one_of(
    st.sampled_from([0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]), st.integers(0, 2**64 - 1)
)
WORDS = st.sampled_from(
    [b"nan", b"-inf", b"1e999", b"9" * 30, b"-1", b"\0", b"\xff\xfe", b"\n", b"[", b'"', b"../x", b"null", b"OPENCV 1"]
)
PLACE = st.integers(0, 2**20)
DAMAGE = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), PLACE, st.just(b"")),
        st.tuples(st.just("flip"), PLACE, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("put"), PLACE, st.tuples(FORGED, st.sampled_from([4, 8])).map(
            lambda pair: (pair[0] % 256 ** pair[1]).to_bytes(pair[1], "little"))),
        st.tuples(st.just("put"), PLACE, st.floats().map(lambda v: np.float64(v).tobytes())),
        st.tuples(st.just("insert"), PLACE, st.one_of(WORDS, st.binary(max_size=40))),
        st.tuples(st.just("drop"), PLACE, st.binary(min_size=1, max_size=64)),
        st.tuples(st.just("again"), PLACE, st.just(b"")),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


def damaged(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    for kind, place, what in changes:
        at = place % (len(data) + 1)
        if kind == "cut":
            data = data[:at]
        elif kind == "flip":
            data = data[:at] + bytes(a ^ b for a, b in zip(data[at:], what, strict=False)) + data[at + len(what) :]
        elif kind == "put":
            data = data[:at] + what + data[at + len(what) :]
        elif kind == "insert":
            data = data[:at] + what + data[at:]
        elif kind == "drop":
            data = data[:at] + data[at + len(what) :]
        else:
            data = data + data[at:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, name: str) -> None:
    write, read = TARGETS[name]
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    read(path)  # So that memory of modules that are imported here is not counted.

    # An earlier finding: a record length of 7,517 bytes in a compressed file, with which 7 GB were allocated.
    @example([("put", 104, b"\xc0]\x1d\xe7\xd1\xea\xce4")])
    @FUZZ
    @given(DAMAGE)
    def check(changes: list[tuple[str, int, bytes]]) -> None:
        path.write_bytes(damaged(whole, changes))
        tracemalloc.start()
        try:
            found = read(path)
        except UserError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
        else:
            if isinstance(found, PointCloud):
                assert found.xyz.isfinite().all()
            if isinstance(found, Splats) and path.suffix != ".ply":  # Of a PLY, 'import' checks it.
                assert found.position.isfinite().all() and found.log_scale.isfinite().all()
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < MEMORY

    check()


@pytest.mark.slow
@FUZZ
@given(st.sampled_from(MODELS), st.data())
def test_any_lens_has_a_window_or_is_refused(name: str, data: st.DataObject) -> None:
    number = st.one_of(st.floats(-1, 1), st.floats(allow_nan=False, allow_infinity=False))
    extra = parameter_count(name) - 2
    width, height = data.draw(st.integers(1, 5000)), data.draw(st.integers(1, 5000))
    focal = data.draw(st.floats(1e-3, 1e6))
    center = [data.draw(st.floats(-1, 2)) * width, data.draw(st.floats(-1, 2)) * height]
    rest = data.draw(st.lists(number, min_size=extra, max_size=extra))
    focals = len(Lens.from_parameters(name, 1, 1, [1.0] * (extra + 2)).extra)
    parameters = [focal] * (extra - focals) + center + rest[:focals]
    lens = Lens.from_parameters(name, width, height, parameters)
    try:
        window = pinhole_window(lens)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert 1 <= window.width <= 2 * width + 1 and 1 <= window.height <= 2 * height + 1
        assert all(math.isfinite(v) for v in (window.cx, window.cy))
