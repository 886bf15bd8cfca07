"""Facts about undistorted images: pixels, field of view, and the copies that are kept."""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scene_files import points, random_image, write_image
from test_lens import HEIGHT, STRONG, WIDTH, lens_of

from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.data import undistort as module
from momentum_gs.data.images import read_image
from momentum_gs.data.lens import MODELS, Lens
from momentum_gs.data.scene import load_scene
from momentum_gs.data.undistort import Job, cached_path, pinhole_window, places_of, undistort, undistort_files

BENT = tuple(STRONG) + ("SIMPLE_FISHEYE", "FISHEYE")


def waves(rays: np.ndarray) -> np.ndarray:
    """Grey levels of a smooth pattern, as a function of rays [...,2]."""
    x, y = rays[..., 0], rays[..., 1]
    return 127 + 60 * np.sin(9 * x + 2 * y) + 50 * np.cos(7 * y - 3 * x)


def seen_through(lens: Lens) -> np.ndarray:
    """Image [H,W] of ``waves`` through the lens, 8 bits."""
    x, y = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    rays = lens.to_rays(np.stack([x, y], -1).reshape(-1, 2)).reshape(lens.height, lens.width, 2)
    return np.nan_to_num(waves(rays)).round().astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("model", BENT)
def test_the_undistorted_image_is_that_of_a_pinhole(model: str) -> None:
    lens = lens_of(model)
    window = pinhole_window(lens)
    found = undistort(seen_through(lens), places_of(lens, window))
    x = (np.arange(window.width) + 0.5 - window.cx) / window.fx
    y = (np.arange(window.height) + 0.5 - window.cy) / window.fy
    wanted = waves(np.stack(np.meshgrid(x, y), -1))
    # Two roundings by half a level; positions are rounded to 1/32 pixel, and the pattern changes by up to 2 levels a
    # pixel. At the border cubic interpolation repeats the last pixel.
    assert np.abs(found - wanted)[2:-2, 2:-2].max() < 1.5
    assert np.abs(found - wanted).max() < 3


@pytest.mark.parametrize("model", BENT)
def test_the_window_keeps_the_focal_length_and_shows_no_border(model: str) -> None:
    lens = lens_of(model)
    window = pinhole_window(lens)
    assert (window.fx, window.fy) == lens.focal
    white = undistort(np.full((HEIGHT, WIDTH), 255, np.uint8), places_of(lens, window))
    assert white.min() == 255
    # It is not smaller than necessary: along each axis it reaches a border of the distorted image, up to a whole pixel.
    corners = np.array([[0.5, 0.5], [window.width - 0.5, window.height - 0.5]]) - (window.cx, window.cy)
    along = [np.linspace(corners[0, axis], corners[1, axis], 200) for axis in (0, 1)]
    for axis in (0, 1):
        edge = np.zeros((400, 2))
        edge[:, axis] = np.repeat(corners[:, axis], 200)
        edge[:, 1 - axis] = np.tile(along[1 - axis], 2)
        pixels = lens.to_pixels(edge / lens.focal)[:, axis]
        room = min((pixels - 0.5).min(), ((WIDTH, HEIGHT)[axis] - 0.5 - pixels).min())
        assert room < 2


def test_a_pinhole_keeps_its_image_bit_for_bit() -> None:
    lens = lens_of("OPENCV", (0.0, 0.0, 0.0, 0.0))
    window = pinhole_window(lens)
    assert (window.width, window.height, window.cx, window.cy) == (WIDTH, HEIGHT, *lens.center)
    pixels = random_image("a", WIDTH, HEIGHT)
    assert np.array_equal(undistort(pixels, places_of(lens, window)), pixels)


def test_a_wide_fisheye_is_cut_at_twice_its_size() -> None:
    # 160 degrees over the width, which on a plane would be 4 times as wide.
    lens = Lens.from_parameters("SIMPLE_FISHEYE", 400, 400, [200 / np.radians(80), 200.0, 200.0])
    window = pinhole_window(lens)
    assert (window.width, window.height) == (800, 800)


def test_a_fisheye_circle_inside_the_image_has_a_window() -> None:
    # The corners are at 114 degrees from the axis, which a plane cannot show.
    lens = Lens.from_parameters("SIMPLE_FISHEYE", 800, 800, [800 / np.radians(160), 400.0, 400.0])
    window = pinhole_window(lens)
    assert undistort(np.full((800, 800), 7, np.uint8), places_of(lens, window)).min() == 7


def test_a_lens_that_folds_within_the_image_is_cut_before_the_fold_or_refused() -> None:
    folding = Lens.from_parameters("SIMPLE_RADIAL", WIDTH, HEIGHT, [400.0, 320.0, 240.0, -0.6])
    window = pinhole_window(folding)
    x = (np.array([0.5, window.width - 0.5]) - window.cx) / window.fx
    y = (np.array([0.5, window.height - 0.5]) - window.cy) / window.fy
    assert folding.unfolded(np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)).all()
    for hopeless in (replace(folding, extra=(-900.0,)), replace(folding, center=(320.0, 1000.0))):
        with pytest.raises(UserError, match="SIMPLE_RADIAL lens of 640x480 .*cannot be undistorted"):
            pinhole_window(hopeless)


@pytest.mark.parametrize("kind", ["grey", "colour", "alpha", "16 bits"])
def test_pixel_types_survive(kind: str) -> None:
    lens = lens_of("OPENCV")
    shape = {"grey": (), "colour": (3,), "alpha": (4,), "16 bits": (3,)}[kind]
    pixels = np.full((HEIGHT, WIDTH, *shape), 200, np.uint16 if kind == "16 bits" else np.uint8)
    found = undistort(pixels, places_of(lens, pinhole_window(lens)))
    assert found.dtype == pixels.dtype and found.shape[2:] == shape and (found == 200).all()


# Copies.


def job_for(tmp_path: Path, name: str = "a b/1.jpg", lens: Lens | None = None) -> Job:
    lens = lens or lens_of("OPENCV")
    source = tmp_path / "images" / name
    if not source.exists():
        write_image(source, random_image(name, lens.width, lens.height))
    return Job(source, lens, pinhole_window(lens), cached_path(tmp_path / "cache", name, source, lens))


def test_copies_are_made_once_and_again_when_file_or_lens_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = module.stored_pixels
    monkeypatch.setattr(module, "stored_pixels", lambda path: made.append(path.name) or real(path))
    job = job_for(tmp_path)
    for _ in range(2):
        undistort_files([job], skip_bad=False)
    assert len(made) == 1
    before = job.source.stat()
    assert job_for(tmp_path).target == job.target
    assert job_for(tmp_path, lens=lens_of("OPENCV", (-0.1, 0.02, 1e-3, -3e-3))).target != job.target
    os.utime(job.source, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    again = job_for(tmp_path)
    assert again.target != job.target
    undistort_files([again], skip_bad=False)
    assert len(made) == 2 and job.target.is_file()
    assert not [path for path in (tmp_path / "cache").rglob("*.part")]


def test_nothing_is_written_among_the_images(tmp_path: Path) -> None:
    job = job_for(tmp_path)
    undistort_files([job, job_for(tmp_path, "2.png")], skip_bad=False)
    assert sorted(path.name for path in (tmp_path / "images").rglob("*.*")) == ["1.jpg", "2.png"]
    assert {path.suffix for path in (tmp_path / "cache").rglob("*.*")} == {".jpg", ".png"}


def test_a_bad_file_is_named_or_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = job_for(tmp_path), job_for(tmp_path, "2.png")
    bad.source.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.jpg"):
        undistort_files([bad, good], skip_bad=False)
    undistort_files([bad, good], skip_bad=True)
    assert good.target.is_file() and not bad.target.exists()
    assert "1.jpg" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named_with_the_setting(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(UserError, match="cache/a b: undistorted images cannot be written .*scene.undistort_folder"):
        undistort_files([job_for(tmp_path)], skip_bad=False)


# Scenes.


def write_bent_scene(root: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Lens:
    """Two views of the waves through a lens, as COLMAP text; images may be smaller than the model says."""
    lens = lens_of("OPENCV")
    sparse = root / "sparse" / "0"
    sparse.mkdir(parents=True)
    numbers = [*lens.focal, *lens.center, *lens.extra]
    (sparse / "cameras.txt").write_text(f"1 OPENCV {WIDTH} {HEIGHT} {' '.join(map(str, numbers))}\n")
    (sparse / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a/1.png\n\n2 1 0 0 0 0.5 0 0 1 2.jpg\n\n")
    cloud = points()
    rows = zip(cloud.xyz.tolist(), cloud.rgb.tolist(), strict=True)
    lines = [f"{i} {' '.join(map(str, [*xyz, *rgb]))} 0\n" for i, (xyz, rgb) in enumerate(rows)]
    (sparse / "points3D.txt").write_text("".join(lines))
    for name in ("a/1.png", "2.jpg"):
        write_image(root / "images" / name, seen_through(lens.resized(*size)))
    return lens


@pytest.mark.slow
def test_a_distorted_scene_is_refused_or_undistorted_on_request(tmp_path: Path) -> None:
    lens = write_bent_scene(tmp_path)
    config = SceneConfig(path=str(tmp_path), resolution=1.0, test_every=0)
    with pytest.raises(UserError, match="has model OPENCV, which is distorted, .*scene.undistort=true.*image_undist"):
        load_scene(config)
    scene = load_scene(replace(config, undistort=True))
    window = pinhole_window(lens)
    for camera in scene.train:
        assert replace(camera, **vars(window)) == camera
        found = read_image(scene.image_paths[camera.name], camera.width, camera.height)[0].numpy().astype(float)
        x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
        wanted = waves(np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy], -1))
        assert np.abs(found - wanted)[2:-2, 2:-2].mean() < 1  # JPEG twice in one of them
    assert sorted(scene.image_paths) == ["2.jpg", "a/1.png"]
    assert all(path.is_relative_to(tmp_path / "undistorted" / "images") for path in scene.image_paths.values())


@pytest.mark.slow
def test_smaller_copies_and_divisors_give_the_same_view(tmp_path: Path) -> None:
    write_bent_scene(tmp_path / "whole")
    write_bent_scene(tmp_path / "half", size=(WIDTH // 2, HEIGHT // 2))
    config = SceneConfig(resolution=1.0, test_every=0, undistort=True, undistort_folder=str(tmp_path / "elsewhere"))
    whole, half = (load_scene(replace(config, path=str(tmp_path / name))).train[0] for name in ("whole", "half"))
    divided = load_scene(replace(config, path=str(tmp_path / "whole"), resolution=2.0)).train[0]
    # A window ends at a whole pixel of its own image, so sizes agree up to one.
    assert abs(half.width - whole.width / 2) <= 1 and abs(half.height - whole.height / 2) <= 1
    assert half.fx == pytest.approx(whole.fx / 2) and divided.fx == pytest.approx(whole.fx / 2, rel=2 / whole.width)
    assert abs(half.cx - whole.cx / 2) <= 1 and (tmp_path / "elsewhere" / "images").is_dir()


@pytest.mark.slow
def test_masks_are_undistorted_with_their_images(tmp_path: Path) -> None:
    lens = write_bent_scene(tmp_path)
    # The mask, of half the image's size, ignores what is right of x/z = 0.2.
    small = lens.resized(WIDTH // 2, HEIGHT // 2)
    x, y = np.meshgrid(np.arange(small.width) + 0.5, np.arange(small.height) + 0.5)
    rays = small.to_rays(np.stack([x, y], -1).reshape(-1, 2)).reshape(small.height, small.width, 2)
    write_image(tmp_path / "masks" / "a" / "1.png", np.where(rays[..., 0] > 0.2, 0, 255).astype(np.uint8))
    scene = load_scene(SceneConfig(path=str(tmp_path), resolution=1.0, test_every=0, undistort=True))
    camera = next(camera for camera in scene.train if camera.name == "a/1.png")
    mask = cv2.imread(str(scene.mask_paths["a/1.png"]), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (camera.height, camera.width) and set(scene.mask_paths) == {"a/1.png"}
    edge = 0.2 * camera.fx + camera.cx
    columns = np.arange(camera.width) + 0.5
    # 4 pixels are two of the mask, which is resized without smoothing.
    assert (mask[:, columns < edge - 4] == 255).all() and (mask[:, columns > edge + 4] == 0).all()


@pytest.mark.slow
def test_a_missing_image_that_may_be_skipped_leaves_its_view(tmp_path: Path) -> None:
    write_bent_scene(tmp_path)
    (tmp_path / "images" / "2.jpg").unlink()
    config = SceneConfig(path=str(tmp_path), resolution=1.0, test_every=0, undistort=True, bad_images="skip")
    scene = load_scene(config)
    assert len(scene.train) == 2 and not scene.image_paths["2.jpg"].exists()


def test_every_distorted_model_is_tested() -> None:
    assert set(BENT) | {"SIMPLE_PINHOLE", "PINHOLE"} == set(MODELS)
