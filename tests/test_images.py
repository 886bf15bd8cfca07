"""Facts about image files: sizes from headers, decoding, resampling, errors."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_files import REAL_SCENES, random_image, write_image

from momentum_gs.core.errors import UserError
from momentum_gs.data.images import image_size, read_image, target_size, write_png

JPEG_START = b"\xff\xd8"


def encoded(extension: str, pixels: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(extension, pixels, options)[1].tobytes()


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    """The JPEG with another segment at its start."""
    return JPEG_START + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


def exif_orientation(value: int) -> bytes:
    """An EXIF block of one tag, 0x0112."""
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, value, 0, 0)


@pytest.mark.parametrize("extension", [".jpg", ".png", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize(("width", "height"), [(37, 21), (21, 37), (1, 1)])
def test_the_size_is_that_of_the_pixels(tmp_path: Path, extension: str, width: int, height: int) -> None:
    path = tmp_path / f"a{extension}"
    write_image(path, random_image("a", width, height))
    assert image_size(path) == (width, height)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_the_size_is_read_from_the_header_alone(tmp_path: Path, extension: str) -> None:
    data = encoded(extension, random_image("a", 640, 480))
    path = tmp_path / f"a{extension}"
    path.write_bytes(data[:700])  # Holds the quantization tables and frame header of a JPEG, but not its pixels.
    assert image_size(path) == (640, 480)
    with pytest.raises(UserError, match="truncated"):
        read_image(path, 640, 480)


def test_segments_before_the_frame_are_skipped(tmp_path: Path) -> None:
    thumbnail = encoded(".jpg", random_image("t", 16, 12))
    jpeg = encoded(".jpg", random_image("a", 37, 21), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    # A thumbnail inside an EXIF segment has its own frame header and end marker.
    jpeg = with_segment(with_segment(jpeg, 0xE1, b"Exif\0\0" + thumbnail), 0xFE, b"\xff\xc0 comment " * 4000)
    # Any number of fill bytes may stand before a marker.
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xff" + jpeg[2:])
    assert image_size(path) == (37, 21)
    assert read_image(path, 37, 21).shape == (3, 21, 37)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    """COLMAP reconstructs from the stored pixels; a rotated image would not match its intrinsics."""
    plain, turned = tmp_path / "plain.jpg", tmp_path / "turned.jpg"
    jpeg = encoded(".jpg", random_image("a", 37, 21))
    plain.write_bytes(jpeg)
    turned.write_bytes(with_segment(jpeg, 0xE1, exif_orientation(orientation)))
    if orientation > 1:  # The tag is valid: by default OpenCV rotates the image.
        default = cv2.imdecode(np.frombuffer(turned.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        assert not np.array_equal(default, cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))
    assert image_size(turned) == (37, 21)
    assert torch.equal(read_image(turned, 37, 21), read_image(plain, 37, 21))


@pytest.mark.parametrize(
    ("resolution", "size", "wanted"),
    [
        (1, (4000, 3000), (4000, 3000)),
        (2, (1000, 751), (500, 376)),  # 375.5 rounds to even, with Python's round as in 3DGS
        (4, (4001, 3003), (1000, 751)),
        (8, (4000, 3000), (500, 375)),
        (2, (1, 1), (1, 1)),
        (-1, (1600, 1200), (1600, 1200)),
        (-1, (640, 480), (640, 480)),
        (-1, (4000, 3000), (1600, 1200)),
        (-1, (1601, 1200), (1600, 1199)),  # the floats of 3DGS give 1599 here
        (1000, (4000, 3001), (1000, 750)),
        (800, (400, 300), (800, 600)),
        (16, (4000, 10), (16, 1)),
    ],
)
def test_resolution_means_what_it_means_in_3dgs_codebases(
    resolution: float, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    assert target_size(*size, resolution) == wanted


@pytest.mark.parametrize("resolution", [3, 1.5, 0.5, 15])
def test_a_mistyped_divisor_is_refused(resolution: float) -> None:
    with pytest.raises(UserError, match=rf"scene.resolution: {resolution:g} .*expected 1, 2, 4 or 8"):
        target_size(4000, 3000, resolution)


def test_pixels_are_rgb_and_bitwise_those_of_the_file(tmp_path: Path) -> None:
    bgr = random_image("a", 37, 21)
    write_image(tmp_path / "a.png", bgr)
    found = read_image(tmp_path / "a.png", 37, 21)
    assert torch.equal(found, torch.from_numpy(bgr[..., ::-1].transpose(2, 0, 1).copy()))
    assert found.is_contiguous()


def test_shrinking_averages_areas(tmp_path: Path) -> None:
    bgr = random_image("a", 40, 24)
    write_image(tmp_path / "a.png", bgr)
    found = read_image(tmp_path / "a.png", 10, 6)
    means = bgr[..., ::-1].reshape(6, 4, 10, 4, 3).mean(axis=(1, 3), dtype=np.float64).transpose(2, 0, 1)
    assert np.abs(found.numpy() - means).max() <= 0.5 + 1e-6  # rounding to 8 bits


def test_enlarging_keeps_a_flat_image_flat(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.full((5, 7, 3), 90, np.uint8))
    found = read_image(tmp_path / "a.png", 20, 11)
    assert found.shape == (3, 11, 20) and (found == 90).all()


def test_sixteen_bits_round_to_eight(tmp_path: Path) -> None:
    levels = np.array([[0, 128, 129, 257, 65535 - 129, 65535]], np.uint16)
    write_image(tmp_path / "a.png", np.repeat(levels[..., None], 3, axis=2))
    # One level of 8 bits is 257 of 16.
    assert read_image(tmp_path / "a.png", 6, 1)[0, 0].tolist() == [0, 0, 1, 1, 254, 255]


def test_grey_fills_all_channels(tmp_path: Path) -> None:
    grey = random_image("a", 9, 7)[..., 0]
    for extension, pixels in ((".png", grey), (".tif", grey.astype(np.uint16) * 257)):
        write_image(tmp_path / f"a{extension}", pixels)
        found = read_image(tmp_path / f"a{extension}", 9, 7)
        assert all(np.array_equal(channel, grey) for channel in found.numpy())


def test_transparency_shows_the_background(tmp_path: Path) -> None:
    bgra = np.dstack([np.full((1, 3, 3), (30, 60, 90), np.uint8), np.array([[0, 51, 255]], np.uint8)])
    write_image(tmp_path / "a.png", bgra)
    # An alpha of 51 of 255 is a fifth.
    assert read_image(tmp_path / "a.png", 3, 1)[:, 0].T.tolist() == [[0, 0, 0], [18, 12, 6], [90, 60, 30]]
    white = read_image(tmp_path / "a.png", 3, 1, white_background=True)
    assert white[:, 0].T.tolist() == [[255, 255, 255], [222, 216, 210], [90, 60, 30]]


def test_paths_outside_ascii(tmp_path: Path) -> None:
    path = tmp_path / "Luftbild ö 空" / "Bild №1.jpg"
    write_image(path, random_image("a", 8, 6))
    assert image_size(path) == (8, 6) and read_image(path, 8, 6).shape == (3, 6, 8)


WHOLE_JPEG, WHOLE_PNG = encoded(".jpg", random_image("a", 64, 48)), encoded(".png", random_image("a", 64, 48))
BROKEN = {
    "empty": b"",
    "text": b"not an image",
    "a page of an error": b"<html>404</html>" * 100,
    "jpeg signature only": JPEG_START,
    "jpeg before its pixels": WHOLE_JPEG[:300],
    "half a jpeg": WHOLE_JPEG[: len(WHOLE_JPEG) // 2],
    "jpeg without its end": WHOLE_JPEG[:-2],
    "half a jpeg with a whole thumbnail": with_segment(WHOLE_JPEG, 0xE1, WHOLE_JPEG)[: len(WHOLE_JPEG) * 3 // 2],
    "png signature only": WHOLE_PNG[:8],
    "png before its pixels": WHOLE_PNG[:33],
    "half a png": WHOLE_PNG[: len(WHOLE_PNG) // 2],
    "png of size 0": WHOLE_PNG[:16] + struct.pack(">II", 0, 0) + WHOLE_PNG[24:],
    "jpeg of width 0": WHOLE_JPEG.replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 48, 0)),
    "floating point": encoded(".tif", np.zeros((4, 4, 3), np.float32)),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_are_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "DJI_0042.JPG"
    path.write_bytes(data)
    with pytest.raises(UserError, match="DJI_0042.JPG") as error:
        read_image(path, 64, 48)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in BROKEN if "jpeg" in name and "width" not in name])
def test_a_cut_jpeg_is_refused_where_the_decoder_would_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """OpenCV 4 fills what is missing with grey; OpenCV 5 refuses by itself."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.full((48, 64, 3), 128, np.uint8))
    path = tmp_path / "a.jpg"
    path.write_bytes(WHOLE_JPEG + b"what some cameras append")
    assert read_image(path, 64, 48).shape == (3, 48, 64)
    path.write_bytes(BROKEN[name])
    with pytest.raises(UserError, match="truncated"):
        read_image(path, 64, 48)


@pytest.mark.parametrize("name", ["empty", "text", "jpeg signature only", "png of size 0", "jpeg of width 0"])
def test_a_file_without_a_size_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "DJI_0042.JPG"
    path.write_bytes(BROKEN[name])
    with pytest.raises(UserError, match="DJI_0042.JPG"):
        image_size(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (image_size, lambda path: read_image(path, 4, 4)):
        with pytest.raises(UserError, match=r"a\.png cannot be read \(No such file"):
            read(tmp_path / "a.png")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([b"", JPEG_START, b"\x89PNG\r\n\x1a\n", WHOLE_JPEG[:60]]))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, tail: bytes, head: bytes) -> None:
    path = tmp_path_factory.mktemp("images") / "a.jpg"
    path.write_bytes(head + tail)
    for read in (image_size, lambda p: read_image(p, 4, 4)):
        try:
            read(path)
        except UserError as error:
            assert "a.jpg" in str(error)


def test_png_keeps_every_level_and_clamps_values_out_of_range(tmp_path: Path) -> None:
    levels = torch.arange(256, dtype=torch.float32).view(1, 16, 16).expand(3, 16, 16) / 255
    path = tmp_path / "new" / "a.png"
    write_png(path, levels * torch.tensor([1.0, 0.5, 2.0])[:, None, None] - torch.tensor([0, 0, 0.1])[:, None, None])
    red, green, blue = read_image(path, 16, 16)
    assert torch.equal(red.flatten(), torch.arange(256, dtype=torch.uint8))
    assert torch.equal(green, (levels[0] * 127.5).round().to(torch.uint8))
    assert blue.min() == 0 and blue.max() == 255


@pytest.mark.skipif(not REAL_SCENES.is_dir(), reason=f"no {REAL_SCENES}; set MOMENTUM_GS_SHARED")
def test_real_images() -> None:
    paths = sorted((REAL_SCENES / "caliterra" / "images").iterdir())
    assert len(paths) == 75
    assert {image_size(path) for path in paths} == {(1000, 751)}
    whole, half = read_image(paths[0], 1000, 751), read_image(paths[0], 500, 376)
    # Area resampling keeps the mean colour; a tenth of a level is what rounding and the odd row may shift.
    torch.testing.assert_close(half.double().mean((1, 2)), whole.double().mean((1, 2)), rtol=0, atol=0.1)
