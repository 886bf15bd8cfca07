"""Corrections that are smooth in time: capture times, neighbours, the term, and that ranks and resume change no bit."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch
from scene_files import camera, random_image, write_image
from tiny_run import (
    CPU,
    assert_same_bits,
    interrupt,
    make_config,
    model_of,
    run_ranks,
    train,
)
from tiny_scene import write_tiny_scene

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.data.capture_times import capture_times
from momentum_gs.data.exif import capture_time, with_exif
from momentum_gs.data.lens import Lens
from momentum_gs.data.prepare.files import SourceView, write_images
from momentum_gs.data.scene import load_scene
from momentum_gs.data.undistort import Job, pinhole_window, undistort_files
from momentum_gs.model.appearance import AppearanceTable, load_appearance
from momentum_gs.train.corrections.appearance import SharedAppearance
from momentum_gs.train.corrections.appearance_smooth import neighbours_in_time
from momentum_gs.train.loop import Training

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

SMOOTH = ("appearance.model=affine", "appearance.smooth=10")
HERE = Path("scene")


def exif(taken: str, digits: str = "", order: str = "<") -> bytes:
    """An EXIF segment with a capture time and, if given, up to three ``digits`` of its fraction of a second."""
    text = taken.encode() + b"\0"
    end = 26 + 2 + 2 * 12 + 4  # After the header, a directory of one entry, and one of two.
    fraction = digits.encode().ljust(4, b"\0")
    tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    tiff += struct.pack(order + "HHHIII", 1, 0x8769, 4, 1, 26, 0)
    tiff += struct.pack(order + "HHHII", 2, 0x9003, 2, len(text), end)
    tiff += struct.pack(order + "HHI", 0x9291, 2, len(digits) + 1) + fraction + struct.pack(order + "I", 0) + text
    segment = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment


def write_jpeg(path: Path, segment: bytes) -> Path:
    write_image(path, random_image(path.name, 40, 30))
    path.write_bytes(path.read_bytes()[:2] + segment + path.read_bytes()[2:])
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_capture_times_are_read_from_exif(tmp_path: Path, order: str) -> None:
    times = [
        capture_time(write_jpeg(tmp_path / f"{i}.jpg", exif(taken, digits, order)))
        for i, (taken, digits) in enumerate(
            [("2024:02:28 23:59:59", "75"), ("2024:02:29 00:00:01", ""), ("2024:03:01 00:00:01", "5")]
        )
    ]
    assert times == pytest.approx([times[0], times[0] + 1.25, times[0] + 1.75 + 86400], abs=1e-6)
    assert capture_time(write_jpeg(tmp_path / "zeros.jpg", exif("0000:00:00 00:00:00"))) is None
    write_image(tmp_path / "none.jpg", random_image("none.jpg", 40, 30))
    write_image(tmp_path / "none.png", random_image("none.png", 40, 30))
    assert all(capture_time(tmp_path / name) is None for name in ("none.jpg", "none.png", "missing.jpg"))


def test_truncated_exif_gives_no_time_or_the_time_without_its_fraction(tmp_path: Path) -> None:
    whole = exif("2024:02:28 23:59:59", "75")[4:]
    time = capture_time(write_jpeg(tmp_path / "whole.jpg", exif("2024:02:28 23:59:59", "75")))
    assert time is not None
    for size in range(6, len(whole)):
        part = whole[:size]
        segment = b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part
        assert capture_time(write_jpeg(tmp_path / "part.jpg", segment)) in (None, time - 0.75, time)


def test_images_that_are_written_again_keep_their_time(tmp_path: Path) -> None:
    source = write_jpeg(tmp_path / "photo.jpg", exif("2024:02:28 23:59:59"))
    time = capture_time(source)
    lens = Lens("SIMPLE_RADIAL", 40, 30, (35.0, 35.0), (20.0, 15.0), (0.02,))
    undistort_files([Job(source, lens, pinhole_window(lens), tmp_path / "straight.jpg")], skip_bad=False)
    write_images(tmp_path / "out", [SourceView(camera("a.jpg"), source)], 2.0)
    for path in (tmp_path / "straight.jpg", tmp_path / "out" / "images" / "a.jpg"):
        assert capture_time(path) == time is not None
        assert cv2.imread(str(path)) is not None
    png = cv2.imencode(".png", random_image("a", 4, 4))[1].tobytes()
    assert with_exif(png, source) == png


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_scene(tmp_path_factory.mktemp("tiny"))
    (folder / "sparse" / "0" / "test.txt").write_text("005.png\n010.png\n")
    names = sorted(path.name for path in (folder / "images").iterdir())
    (folder / "times.csv").write_text("name,time\n" + "".join(f"{n},{2 * i}\n" for i, n in enumerate(names)))
    return folder


def test_a_table_beside_the_scene_gives_the_times(scene_folder: Path, tmp_path: Path) -> None:
    scene = load_scene(make_config(scene_folder, tmp_path).scene)
    found = capture_times(scene)
    assert found.keys() == {camera.name for camera in scene.train}
    assert found["006.png"] - found["004.png"] == 4
    moved = replace(scene, path=tmp_path)
    assert capture_times(moved) == {}, "PNG files carry no time"
    (tmp_path / "times.csv").write_text("000.png,2024-05-31T12:00:00\n001.png,2024-05-31T12:00:00.5+00:00\n")
    found = capture_times(moved)
    assert found["001.png"] - found["000.png"] == 0.5
    for line in ("000.png,noon", "000.png", "000.png,1,2"):
        (tmp_path / "times.csv").write_text(f"name,time\n{line}\n")
        with pytest.raises(UserError, match=r"times.csv: line 2 is '000.png.*', expected an image's name and its time"):
            capture_times(moved)


def test_consecutive_images_are_neighbours_and_closer_in_time_means_more_weight() -> None:
    times = {"c.jpg": 0.0, "b.jpg": 2.0, "a.jpg": 4.0, "d.jpg": 24.0, "e.jpg": 24.5, "f/a.jpg": 1.0, "f/b.jpg": 3.0}
    found = neighbours_in_time(HERE, [*times, "none.jpg"], times)
    assert found == {
        "c.jpg": [("b.jpg", 1.0)],
        "b.jpg": [("c.jpg", 1.0), ("a.jpg", 1.0)],
        "a.jpg": [("b.jpg", 1.0), ("d.jpg", 0.1)],
        "d.jpg": [("a.jpg", 0.1), ("e.jpg", 1.0)],
        "e.jpg": [("d.jpg", 1.0)],
        "f/a.jpg": [("f/b.jpg", 1.0)],
        "f/b.jpg": [("f/a.jpg", 1.0)],
    }
    # Neither the unit of time nor the clock's zero matters.
    assert neighbours_in_time(HERE, list(times), {name: 60 * t + 7 for name, t in times.items()}) == found


@pytest.mark.parametrize("times", [{}, {"a.jpg": 1.0}, {"a.jpg": 1.0, "b.jpg": 1.0}, {"a.jpg": 1.0, "f/c.jpg": 2.0}])
def test_without_times_the_term_is_refused(times: dict[str, float]) -> None:
    match = rf"appearance.smooth: {len(times)} of 3 images in scene carry a time .*times.csv .*appearance.smooth=0"
    with pytest.raises(UserError, match=match):
        neighbours_in_time(HERE, ["a.jpg", "b.jpg", "f/c.jpg"], times)


def test_a_run_on_images_without_times_is_refused_and_one_without_the_term_is_not(
    scene_folder: Path, tmp_path: Path
) -> None:
    config = make_config(scene_folder, tmp_path, *SMOOTH, "stage=coarse", "steps=2")
    scene = replace(load_scene(config.scene), path=tmp_path)
    with pytest.raises(UserError, match="0 of 14 images in .* carry a time"):
        Training(config, scene, None, LocalComm(), CPU)
    for change in ({"smooth": 0.0}, {"model": "none"}):
        Training(replace(config, appearance=replace(config.appearance, **change)), scene, None, LocalComm(), CPU)


NAMES = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg")
TIMES = {"a/1.jpg": 0.0, "a/2.jpg": 1.0, "b/1.jpg": 0.0, "b/2.jpg": 4.0}


def learner(rows: torch.Tensor, names: Sequence[str], times: Mapping[str, float], smooth: float) -> SharedAppearance:
    config = Config()
    model = "affine" if rows.dim() == 3 else "bilateral"
    config = replace(config, appearance=replace(config.appearance, model=model, smooth=smooth))
    table = AppearanceTable(tuple(names), rows, torch.ones(len(names), dtype=torch.bool))
    return SharedAppearance(config, table, CPU, 1.0, neighbours_in_time(HERE, names, times))


def gradients(appearance: SharedAppearance, names: Sequence[str]) -> torch.Tensor:
    """Gradients of the term alone, with one image for each block; no step is taken."""
    appearance.begin_step(True, len(names))
    for position, name in enumerate(names):
        (0 * appearance.correct(torch.full((3, 2, 2), 0.5).to(appearance._rows), name)).sum().backward()
        appearance.take_gradient(position)
    return appearance.gradients[0][:, 1:].view(len(names), 3, 4)


def test_the_gradient_is_that_of_the_weighted_squares() -> None:
    """A pair counts once: its weight times its closeness times the mean squared difference of its rows."""
    rows = torch.randn(4, 3, 4, dtype=torch.float64)
    rows -= rows.mean(0)
    found = gradients(learner(rows, NAMES, TIMES, 3.0), NAMES)

    def term(rows: torch.Tensor) -> float:
        pairs = ((0, 1, 1.0), (2, 3, 2.5 / 4))  # Median gap 2.5.
        return 3 * sum(closeness * float((rows[a] - rows[b]).square().mean()) for a, b, closeness in pairs)

    for place in range(4):
        for entry in ((0, 0), (1, 3), (2, 2)):
            change = torch.zeros_like(rows)
            change[place][entry] = 1e-4
            slope = (term(rows + change) - term(rows - change)) / 2e-4
            assert float(found[place][entry]) == pytest.approx(slope, abs=1e-6)


def test_the_term_alone_makes_neighbours_equal_and_keeps_the_mean() -> None:
    rows = torch.randn(4, 3, 4)
    rows -= rows.mean(0)
    appearance = learner(rows * 0.05, NAMES, TIMES, 1e3)
    middle = (rows[0] + rows[1] - rows[2] - rows[3]) * 0.05 / 4
    for i in range(2000):
        appearance._updates = 15 * i  # So that the learning rates fall to their final values.
        gradients(appearance, NAMES)
        appearance.finish_step()
        assert appearance.table.rows.mean(0).abs().max() < 1e-6
    found = appearance.table.rows
    torch.testing.assert_close(found[0], found[1], atol=2e-3, rtol=0)
    torch.testing.assert_close(found[2], found[3], atol=2e-3, rtol=0)
    torch.testing.assert_close(found[0], middle, atol=0.02, rtol=0)


def test_an_image_that_was_not_shown_gives_no_gradient() -> None:
    appearance = learner(torch.zeros(4, 3, 4), NAMES, TIMES, 1e3)
    appearance._rows[0] = 1.0
    appearance._seen[1] = False
    assert not gradients(appearance, NAMES[:1]).any()
    appearance._seen[1] = True
    assert gradients(appearance, NAMES[:1]).all()


def test_a_step_touches_the_rows_of_its_images_alone() -> None:
    names = [f"{i:03}.jpg" for i in range(50)]
    appearance = learner(torch.zeros(50, 3, 4), names, {name: float(i) for i, name in enumerate(names)}, 10.0)
    before = appearance._rows.clone()
    for i in range(5):
        appearance.begin_step(True, 1)
        (appearance.correct(torch.rand(3, 2, 2), names[10 + i]) - 1).square().sum().backward()
        appearance.take_gradient(0)
        appearance.finish_step()
    touched = (appearance._rows != before).flatten(1).any(1)
    assert touched.nonzero().flatten().tolist() == [10, 11, 12, 13, 14]
    assert appearance.table.rows.double().mean(0).abs().max() < 1e-8
    assert all(torch.equal(appearance.row(i), appearance.table.rows[i]) for i in range(50))


def everything(out: Path) -> dict[str, torch.Tensor]:
    (folder,) = (out / "point_cloud").glob("iteration_*")
    table = load_appearance(folder)
    assert table is not None
    return model_of(out) | {"rows": table.rows, "shown": table.shown}


@pytest.fixture(scope="module")
def whole(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Model and corrections of a run in one process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    train(make_config(scene_folder, out, *SMOOTH))
    torch.set_num_threads(threads)
    return everything(out)


def test_ranks_do_not_change_model_or_corrections(
    scene_folder: Path, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    run_ranks(scene_folder, tmp_path, 2, *SMOOTH)
    assert_same_bits(whole, everything(tmp_path))


@pytest.mark.parametrize("ranks", [1, 2])
def test_resume_is_bit_for_bit(scene_folder: Path, tmp_path: Path, whole: dict[str, torch.Tensor], ranks: int) -> None:
    config = make_config(scene_folder, tmp_path, *SMOOTH, "log.checkpoint_every=37")
    interrupt(config, 42)
    if ranks == 1:
        train(config, resume=True)
    else:
        run_ranks(scene_folder, tmp_path, ranks, *SMOOTH, "--resume")
    assert_same_bits(whole, everything(tmp_path))


def test_the_term_changes_the_corrections(scene_folder: Path, tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    train(make_config(scene_folder, tmp_path, SMOOTH[0]))
    free = everything(tmp_path)["rows"]
    assert not torch.equal(free, whole["rows"])
