"""Facts about lenses: projection and its inverse, agreement with COLMAP, scaling, pixels without a ray."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momentum_gs.data.lens import MODELS, Lens, parameter_count

WIDTH, HEIGHT = 640, 480
# Distortion parameters of plausible strength for each model.
STRONG = {
    "SIMPLE_RADIAL": (-0.12,), "RADIAL": (-0.11, 0.02), "OPENCV": (-0.1, 0.02, 1e-3, -2e-3),
    "OPENCV_FISHEYE": (-0.03, 0.01, -0.004, 0.001),
    "FULL_OPENCV": (-0.2, 0.05, 1e-3, 2e-3, -0.01, 0.02, -0.01, 0.003), "FOV": (0.8,),
    "SIMPLE_RADIAL_FISHEYE": (-0.02,), "RADIAL_FISHEYE": (-0.02, 0.005),
    "THIN_PRISM_FISHEYE": (-0.03, 0.01, 1e-3, 2e-3, -0.004, 0.001, 1e-3, -1e-3),
    "RAD_TAN_THIN_PRISM_FISHEYE": (-0.03, 0.02, -0.01, 0.003, -1e-3, 1e-4, 5e-4, 3e-4, 1e-3, -2e-4, 3e-4, 1e-4),
    "SIMPLE_DIVISION": (-0.1,), "DIVISION": (-0.1,), "EUCM": (0.6, 1.1),
}  # fmt: skip


def lens_of(model: str, extra: tuple[float, ...] | None = None) -> Lens:
    extra = STRONG.get(model, ()) if extra is None else extra
    focals = parameter_count(model) - 2 - len(extra)
    return Lens.from_parameters(model, WIDTH, HEIGHT, [410.0, 415.0][:focals] + [325.0, 236.0] + list(extra))


def grid() -> np.ndarray:
    """Pixels all over the image, its corners and the principal point among them."""
    x, y = np.meshgrid(np.linspace(0, WIDTH, 17), np.linspace(0, HEIGHT, 13))
    return np.concatenate([np.stack([x, y], -1).reshape(-1, 2), [[325.0, 236.0]]])


@pytest.mark.parametrize("model", MODELS)
def test_a_pixel_is_the_projection_of_its_ray(model: str) -> None:
    lens = lens_of(model)
    # The search ends below 1e-9 of a focal length of 400 pixels.
    np.testing.assert_allclose(lens.to_pixels(lens.to_rays(grid())), grid(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_colmap_gives_the_same_projection(model: str) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap (the extra sfm) is not installed")
    lens = lens_of(model)
    focals = parameter_count(model) - 2 - len(lens.extra)
    camera = pycolmap.Camera(
        model=model, width=WIDTH, height=HEIGHT, params=[*lens.focal[:focals], *lens.center, *lens.extra]
    )
    assert int(getattr(pycolmap.CameraModelId, model)) == MODELS.index(model)
    rays = lens.to_rays(grid())
    theirs = np.array(camera.img_from_cam(np.concatenate([rays, np.ones((len(rays), 1))], axis=1)))
    # Both are float64; COLMAP switches to a series near the middle, exact to 1e-8 of the focal length.
    np.testing.assert_allclose(lens.to_pixels(rays), theirs, rtol=0, atol=1e-5)
    np.testing.assert_allclose(rays, np.array(camera.cam_from_img(grid())), rtol=0, atol=1e-7)


def test_every_model_of_colmap_is_known_but_the_panorama() -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap (the extra sfm) is not installed")
    assert set(pycolmap.CameraModelId.__members__) - set(MODELS) == {"INVALID", "EQUIRECTANGULAR"}


@pytest.mark.parametrize("model", [m for m in MODELS if "FISHEYE" not in m])
def test_without_distortion_every_model_is_the_pinhole(model: str) -> None:
    lens = lens_of(model, (0.0,) * len(STRONG.get(model, ())))
    rays = (grid() - lens.center) / lens.focal
    np.testing.assert_allclose(lens.to_pixels(rays), grid(), rtol=0, atol=1e-12)  # round-off of one division
    assert lens.is_pinhole


def test_a_fisheye_without_distortion_is_equidistant() -> None:
    lens = lens_of("SIMPLE_FISHEYE")
    assert not lens.is_pinhole
    for angle in (0.0, 1e-12, 0.3, 1.2):
        x = lens.to_pixels(np.array([[math.tan(angle), 0.0]]))[0, 0]
        assert x == pytest.approx(325 + 410 * angle, abs=1e-9)


@given(st.sampled_from(MODELS), st.floats(0.1, 8), st.floats(-0.4, 0.4), st.floats(-0.3, 0.3))
def test_a_resized_lens_sees_the_same_rays(model: str, scale: float, x: float, y: float) -> None:
    lens = lens_of(model)
    width, height = max(1, round(WIDTH * scale)), max(1, round(HEIGHT * scale * 0.9))
    ray = np.array([[x, y]])
    resized = lens.resized(width, height).to_pixels(ray) / (width, height)
    np.testing.assert_allclose(resized, lens.to_pixels(ray) / (WIDTH, HEIGHT), rtol=0, atol=1e-12)


def test_beyond_the_fold_there_is_no_ray() -> None:
    # x - 0.5 x^3 has its maximum of 0.544 at x = 0.816: no ray reaches 0.6, and one before the fold reaches 0.54.
    lens = Lens.from_parameters("SIMPLE_RADIAL", WIDTH, HEIGHT, [100.0, 0.0, 0.0, -0.5])
    rays = lens.to_rays(np.array([[60.0, 0.0], [54.0, 0.0]]))
    assert np.isnan(rays[0]).all()
    assert 0 < rays[1, 0] < 0.8165
    assert lens.unfolded(np.array([[0.8, 0.0], [0.83, 0.0]])).tolist() == [True, False]
