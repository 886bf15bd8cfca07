"""File formats of explicit Gaussians: what is written is read back, by other programs as well."""

import json
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import gsply
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from splat_scene import random_splats
from torch.nn.functional import normalize

from momentum_gs.core.errors import UserError
from momentum_gs.core.voxels import morton
from momentum_gs.formats import converter, read
from momentum_gs.formats.converter import find_converter
from momentum_gs.formats.kinds import FORMATS, format_of
from momentum_gs.formats.read import read_splats
from momentum_gs.formats.sog import reads_sog
from momentum_gs.formats.write import with_degree, write_splats
from momentum_gs.model.splat_io import load_splats, save_splats
from momentum_gs.model.splats import SH_CONSTANT, Splats

NEEDS_CONVERTER = pytest.mark.skipif(find_converter() is None, reason="splat-transform is not installed")


def plausible(n: int, degree: int = 3, seed: int = 0, extent: float = 5.0) -> Splats:
    """Random Gaussians whose numbers are within what all formats hold."""
    splats = random_splats(n, degree, seed=seed)
    with torch.no_grad():
        splats.position *= extent
        splats.sh_dc.clamp_(-0.4 / SH_CONSTANT, 0.4 / SH_CONSTANT)
        splats.sh_rest.mul_(0.2).clamp_(-0.9, 0.9)
        splats.opacity.clamp_(-5, 5)
    return splats


def errors(found: Splats, expected: Splats) -> dict[str, float]:
    """Largest difference of each attribute; of scales relative, of rotations 1 - |cos|, of opacities as shares."""
    with torch.no_grad():
        turned = (normalize(found.rotation, dim=1) * normalize(expected.rotation, dim=1)).sum(dim=1).abs()
        return {
            "position": float((found.position - expected.position).abs().max()),
            "color": float((found.sh_dc - expected.sh_dc).abs().max()) * SH_CONSTANT,
            "rest": float((found.sh_rest - expected.sh_rest).abs().max()) if found.sh_rest.numel() else 0.0,
            "scale": float((found.log_scale - expected.log_scale).abs().max()),
            "rotation": float(1 - turned.min()),
            "opacity": float((found.opacity.sigmoid() - expected.opacity.sigmoid()).abs().max()),
        }


# Largest errors: the steps of each format's quantization, for Gaussians within 20 units of the origin.
STEPS = {
    ".ply": dict(position=0.0, color=0.0, rest=0.0, scale=0.0, rotation=1e-6, opacity=0.0),
    ".splat": dict(position=0.0, color=0.0021, rest=0.0, scale=1e-5, rotation=2e-4, opacity=0.0021),
    ".spz": dict(position=1e-5, color=0.004, rest=0.0040, scale=0.032, rotation=5e-6, opacity=0.0021),
    ".compressed.ply": dict(position=0.02, color=0.0041, rest=0.0323, scale=0.004, rotation=3e-6, opacity=0.0041),
    # All values share a codebook of 256, and the harmonics of few Gaussians a palette of few rows.
    ".sog": dict(position=2e-3, color=0.05, rest=2.0, scale=0.05, rotation=2e-4, opacity=0.0041),
}  # fmt: skip


def paired(found: Splats, expected: Splats) -> Splats:
    """The rows of ``found`` in the order of ``expected``, by the nearest position."""
    nearest = torch.cdist(expected.position.detach(), found.position.detach()).argmin(dim=1)
    assert len(nearest.unique()) == len(expected) == len(found)
    return found.subset(nearest)


def check(kind: str, found: Splats, expected: Splats, **steps: float) -> None:
    if kind in (".compressed.ply", ".sog"):
        found = paired(found, expected)
    if kind == ".splat":
        expected = with_degree(expected, 0)
    assert found.sh_rest.shape == expected.sh_rest.shape
    worst = errors(found, expected)
    steps = STEPS[kind] | steps
    assert all(worst[name] <= steps[name] + 1e-6 for name in worst), worst


@pytest.mark.parametrize("degree", [0, 3])
@pytest.mark.parametrize("kind", [".ply", ".splat", ".spz", ".compressed.ply"])
def test_a_file_gives_back_what_was_written(tmp_path: Path, kind: str, degree: int) -> None:
    splats = plausible(700, degree)
    path = tmp_path / f"model{kind}"
    write_splats(path, splats)
    check(kind, read_splats(path), splats)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", [".spz", ".compressed.ply"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 600), st.integers(0, 3), st.integers(0, 1000), st.floats(0.01, 4.0))
def test_any_number_of_gaussians_of_any_degree(
    tmp_path: Path, kind: str, n: int, degree: int, seed: int, extent: float
) -> None:
    splats = plausible(n, degree, seed, extent)
    write_splats(tmp_path / f"a{kind}", splats)
    found = read_splats(tmp_path / f"a{kind}")
    assert len(found) == n and found.sh_degree == degree
    if kind == ".spz":  # A compressed PLY has another order.
        check(kind, found, splats)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 50), st.integers(0, 3), st.integers(0, 1000))
def test_ordinary_files_are_exact(tmp_path: Path, n: int, degree: int, seed: int) -> None:
    splats = random_splats(n, degree, seed=seed)
    write_splats(tmp_path / "a.ply", splats)
    found = read_splats(tmp_path / "a.ply")
    # Viewers read degree 0 or 3 only.
    for name, rows in with_degree(splats, 3 if degree else 0).rows().items():
        assert torch.equal(rows, found.rows()[name])
    write_splats(tmp_path / "a.splat", splats)
    again = read_splats(tmp_path / "a.splat")
    write_splats(tmp_path / "b.splat", again)
    assert (tmp_path / "a.splat").read_bytes()[:12] == (tmp_path / "b.splat").read_bytes()[:12]
    assert torch.equal(again.position, splats.position)


def test_the_layout_that_viewers_read(tmp_path: Path) -> None:
    splats = plausible(3)
    write_splats(tmp_path / "a.ply", splats)
    header, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", "element vertex 3"]
    names = [line.split()[2] for line in lines[3:]]
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:54] == [f"f_rest_{i}" for i in range(45)] and all(line.startswith("property float ")
                                                                    for line in lines[3:])  # fmt: skip
    table = np.frombuffer(body, "<f4").reshape(3, 62)
    np.testing.assert_array_equal(table[:, 9:24], splats.sh_rest[:, :, 0].detach())  # First red.


def test_a_splat_file_of_one_known_gaussian(tmp_path: Path) -> None:
    one = Splats(
        position=torch.tensor([[1.0, 2.0, 3.0]]), sh_dc=torch.tensor([[[0.5, -0.5, 0.0]]]) / SH_CONSTANT,
        sh_rest=torch.zeros(1, 0, 3), log_scale=torch.zeros(1, 3),
        rotation=torch.tensor([[0.0, 2.0, 0.0, 0.0]]), opacity=torch.zeros(1, 1),
    )  # fmt: skip
    write_splats(tmp_path / "a.splat", one)
    expected = struct.pack("<6f8B", 1, 2, 3, 1, 1, 1, 255, 0, 128, 128, 128, 255, 128, 128)
    assert (tmp_path / "a.splat").read_bytes() == expected


def test_other_readers_find_the_same_in_our_files(tmp_path: Path) -> None:
    splats = plausible(300)
    write_splats(tmp_path / "a.ply", splats)
    data = gsply.plyread(tmp_path / "a.ply")
    np.testing.assert_array_equal(data.shN, splats.sh_rest.detach())
    np.testing.assert_array_equal(data.quats, splats.rotation.detach())


@NEEDS_CONVERTER
@pytest.mark.parametrize("kind", FORMATS)
def test_the_converter_of_viewers_finds_the_same_in_our_files(tmp_path: Path, kind: str) -> None:
    splats = plausible(400, seed=2)
    path = tmp_path / f"a{kind}"
    write_splats(path, splats)
    converter.convert(path, tmp_path / "again.ply", path)
    check(kind, load_splats(tmp_path / "again.ply"), splats)


@NEEDS_CONVERTER
@pytest.mark.parametrize("kind", [".compressed.ply", ".spz", ".sog"])
def test_files_of_the_converter_of_viewers_are_read(tmp_path: Path, kind: str) -> None:
    splats = plausible(400, seed=3)
    save_splats(tmp_path / "a.ply", splats)
    converter.convert(tmp_path / "a.ply", tmp_path / f"a{kind}", tmp_path)
    # Its SPZ has 12 fraction bits and harmonics of four or five bits.
    steps = {"position": 2e-4, "rest": 0.07} if kind == ".spz" else {}
    check(kind, read_splats(tmp_path / f"a{kind}"), splats, **steps)


def test_spz_keeps_as_many_bits_of_a_position_as_fit(tmp_path: Path) -> None:
    near, far = plausible(50, 0, extent=0.01), plausible(50, 0, extent=10_000.0)
    for splats, step in ((near, 1e-6), (far, 1 / 64)):
        write_splats(tmp_path / "a.spz", splats)
        assert errors(read_splats(tmp_path / "a.spz"), splats)["position"] <= step
    with pytest.raises(UserError, match="units from the origin"):
        write_splats(tmp_path / "a.spz", plausible(50, 0, extent=1e6))


def test_no_harmonics_stay_none_in_the_mean(tmp_path: Path) -> None:
    """A compressed PLY has steps of 1/32 around zero, and no zero: one sign for all would colour a whole scene."""
    splats = random_splats(500, 3)
    splats.sh_rest.data.zero_()
    write_splats(tmp_path / "a.compressed.ply", splats)
    found = read_splats(tmp_path / "a.compressed.ply").sh_rest.detach()
    assert float(found.abs().max()) <= 1 / 64 + 1e-6
    assert float(found.mean(dim=0).abs().max()) < 5 / 64 / 500**0.5


def test_neighbours_in_space_share_the_bounds_of_a_compressed_file(tmp_path: Path) -> None:
    splats = plausible(20_000, 0, extent=100.0)
    write_splats(tmp_path / "a.compressed.ply", splats)
    found = read_splats(tmp_path / "a.compressed.ply")
    expected = splats.subset(morton(splats.position.detach(), torch.zeros(3)).argsort())
    # Over all of the scene, a step of 10 bits is almost a unit; over 256 neighbours it is a fraction of that.
    assert (found.position - expected.position).abs().mean() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".ply", ".splat"])
def test_writing_needs_no_memory_per_gaussian(tmp_path: Path, kind: str) -> None:
    splats = random_splats(400_000, 0)
    tracemalloc.start()
    try:
        write_splats(tmp_path / f"a{kind}", splats)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20  # The file has 27 or 13 MB.


RSS = """
import resource, sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from splat_scene import random_splats
from momentum_gs.formats.write import write_splats
write_splats(Path(sys.argv[2]), random_splats(1000, 0))
splats = random_splats(int(sys.argv[1]), 0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_splats(Path(sys.argv[2]), splats)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".ply", ".splat"])
def test_writing_two_million_gaussians_adds_little_memory(tmp_path: Path, kind: str) -> None:
    """In the whole process, with what torch allocates."""
    command = [sys.executable, "-c", RSS, "2000000", str(tmp_path / f"a{kind}"), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # KiB; the file has 136 or 64 MB.


def test_degrees_are_filled_and_cut() -> None:
    splats = random_splats(5, 1)
    more = with_degree(splats, 3)
    assert more.sh_degree == 3 and not more.sh_rest[:, 3:].any()
    assert torch.equal(with_degree(more, 1).sh_rest, splats.sh_rest)


def test_the_suffix_chooses_the_format() -> None:
    assert format_of(Path("A.Compressed.PLY")) == ".compressed.ply"
    assert format_of(Path("x/point_cloud.ply")) == ".ply"
    with pytest.raises(UserError, match="none of the known suffixes, expected one of .compressed.ply, .ply, .sog"):
        format_of(Path("model.ksplat"))


WRONG = {
    "a.ply": [b"", b"PK\x03\x04", b"ply\nformat binary_little_endian 1.0\nelement vertex 2\nend_header\n"],
    "a.compressed.ply": [b"", b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\n"
                         b"end_header\n\0\0\0\0"],
    "a.splat": [b"", b"\0" * 33, b"\xff" * 64, b"PK\x03\x04" + b"\0" * 28],
    "a.spz": [b"", b"\x1f\x8b", b"ply\n", b"NGSP", b"NGSP" + b"\xff" * 40],
    "a.sog": [b"", b"PK\x03\x04", b"\x1f\x8b\0\0"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(name, content) for name in WRONG for content in WRONG[name]])
def test_foreign_files_are_refused_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_splats(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [".ply", ".splat", ".spz", ".compressed.ply"])
def test_truncated_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a{kind}"
    write_splats(path, plausible(300))
    whole = path.read_bytes()
    for share in (0.001, 0.1, 0.5, 0.999):
        path.write_bytes(whole[: int(len(whole) * share) // 32 * 32 + 5])
        with pytest.raises(UserError, match="expected"):
            read_splats(path)


def test_a_wrong_suffix_is_named(tmp_path: Path) -> None:
    write_splats(tmp_path / "a.compressed.ply", plausible(10))
    (tmp_path / "a.compressed.ply").rename(tmp_path / "a.ply")
    with pytest.raises(UserError, match="a compressed PLY, expected .* rename it so that it ends in .compressed.ply"):
        read_splats(tmp_path / "a.ply")
    write_splats(tmp_path / "b.ply", plausible(10))
    (tmp_path / "b.ply").rename(tmp_path / "b.compressed.ply")
    with pytest.raises(UserError, match="no chunks, expected a compressed PLY .* rename it to .ply"):
        read_splats(tmp_path / "b.compressed.ply")
    write_splats(tmp_path / "c.spz", plausible(10))
    (tmp_path / "c.spz").rename(tmp_path / "c.sog")
    with pytest.raises(UserError, match=r"a gzip file, such as .spz, expected a SOG of PlayCanvas \(.sog\)"):
        read_splats(tmp_path / "c.sog")
    with pytest.raises(UserError, match="no such file, expected a SPZ of Niantic"):
        read_splats(tmp_path / "none.spz")


def test_nothing_and_numbers_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 Gaussians to write"):
        write_splats(tmp_path / "a.ply", random_splats(0))
    splats = random_splats(5)
    with torch.no_grad():
        splats.log_scale[2, 1] = torch.nan
    with pytest.raises(UserError, match="log_scale holds numbers that are not finite"):
        write_splats(tmp_path / "a.ply", splats)
    assert not any(tmp_path.iterdir())


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="splat-transform is not on PATH, .*; npm install -g @playcanvas/splat-tr"):
        write_splats(tmp_path / "a.sog", plausible(5))
    monkeypatch.setitem(sys.modules, "gsply", None)
    for kind in (".spz", ".compressed.ply"):
        with pytest.raises(UserError, match=r"gsply is not installed, .* pip install 'momentum-gs\[export\]'"):
            write_splats(tmp_path / f"a{kind}", plausible(5))
    assert not any(tmp_path.iterdir())


def test_a_converter_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "splat-transform"
    program.write_text("#!/bin/sh\necho 'Warning: slow' >&2\necho '\x1b[31m✗\x1b[0m Error: no room' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match=r"a.sog: splat-transform failed \(Error: no room\)"):
        write_splats(tmp_path / "a.sog", plausible(5))
    assert [path.name for path in tmp_path.iterdir()] == ["splat-transform"]


# SOG archives. The texture below is the start of a lossless WebP image of 4 x 4 pixels; checks look no further.


def texture(width: int = 4, height: int = 4) -> bytes:
    size = (width - 1) | (height - 1) << 14
    return b"RIFF\x24\0\0\0WEBPVP8L\x18\0\0\0\x2f" + size.to_bytes(4, "little") + b"\0" * 8


def meta(**changes: object) -> dict[str, object]:
    book = [0.0] * 256
    return {
        "version": 2, "count": 16, "means": {"mins": [0, 0, 0], "maxs": [1, 1, 1], "files": ["l.webp", "u.webp"]},
        "scales": {"codebook": book, "files": ["s.webp"]}, "quats": {"files": ["q.webp"]},
        "sh0": {"codebook": book, "files": ["c.webp"]},
    } | changes  # fmt: skip


def archive(path: Path, about: object, size: tuple[int, int] = (4, 4), **extra: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("meta.json", json.dumps(about))
        for name in "lusqc":
            file.writestr(f"{name}.webp", texture(*size))
        for name, content in extra.items():
            file.writestr(name.replace("__", "/"), content)
    return path


@pytest.mark.parametrize(
    ("about", "why"),
    [
        (meta(version=3), "version 3"), (meta(count=-1), "count -1"), (meta(count="x"), "count 'x'"), ([1], "expected"),
        (meta(scales={"codebook": [1.0], "files": ["s.webp"]}), "a codebook of 1 numbers for scales"),
        (meta(quats={"files": ["../../etc/passwd"]}), "not in the archive"), (meta(sh0=None), "expected"),
        (meta(shN={"codebook": [0] * 256, "bands": 7, "files": ["s.webp", "q.webp"]}), "7 bands"),
    ],
)  # fmt: skip
def test_descriptions_of_sog_archives_are_checked(tmp_path: Path, about: object, why: str) -> None:
    with pytest.raises(UserError, match=why):
        read_splats(archive(tmp_path / "a.sog", about))


def test_entries_of_sog_archives_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the entry '../x.webp' is in a folder"):
        read_splats(archive(tmp_path / "a.sog", meta(), **{"..__x.webp": b""}))
    with pytest.raises(UserError, match="l.webp of 16384 x 16384 pixels for 16 Gaussians"):
        read_splats(archive(tmp_path / "a.sog", meta(), (16384, 16384)))
    with zipfile.ZipFile(tmp_path / "a.sog", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("meta.json", "{}")
        file.writestr("l.webp", b"\0" * 50_000_000)
    with pytest.raises(UserError, match="unpack to more than four times the archive"):
        read_splats(tmp_path / "a.sog")


@pytest.mark.skipif(reads_sog(), reason="gsply can read SOG here")
def test_without_a_reader_of_sog_the_ways_to_get_one_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "find_converter", lambda: None)
    with pytest.raises(UserError, match=r"pip install 'gsply\[sogs,spz\]==0.4.6', or npm install -g"):
        read_splats(archive(tmp_path / "a.sog", meta()))
