"""Depth and normal priors: the losses, the files, and training with them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scene_files import write_image, write_scene
from tiny_run import assert_same_bits, interrupt, make_config, model_of, train
from tiny_scene import nadir_camera, write_tiny_scene

from momentum_gs.config.load import load_config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.window import window_of
from momentum_gs.data.priors import find_priors, read_depth, read_normals
from momentum_gs.data.scene import load_scene
from momentum_gs.data.synthetic.scene import CitySettings, write_city
from momentum_gs.data.synthetic.scene import read_depth as read_true_depth
from momentum_gs.data.views import Views
from momentum_gs.model.io import load_model
from momentum_gs.render.surface import Surface, expected_depth
from momentum_gs.render.view import render_view
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training
from momentum_gs.train.priors import depth_error, fitted, normal_error

CPU = torch.device("cpu")
ONES = torch.ones(12, 16)


def random_depth(seed: int = 0) -> torch.Tensor:
    return 2 + 3 * torch.rand(12, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-2, 0.5), (7e3, -4e4)])
@pytest.mark.parametrize("inverse", [True, False])
def test_scale_and_shift_of_a_prior_do_not_matter(scale: float, shift: float, inverse: bool) -> None:
    depth = random_depth()
    seen = 1 / depth if inverse else depth
    assert float(depth_error(depth, scale * seen + shift, ONES, inverse)) < 1e-4
    other = random_depth(1)
    torch.testing.assert_close(
        depth_error(other, scale * seen + shift, ONES, inverse), depth_error(other, seen, ONES, inverse),
        rtol=1e-3, atol=1e-5,
    )  # fmt: skip


def test_a_prior_says_nothing_where_it_is_unknown_transparent_masked_or_upside_down() -> None:
    depth, counts, prior = random_depth(), ONES.clone(), 1 / random_depth()
    prior[0], depth[1], counts[2] = float("nan"), 0, 0
    prior[1:3] = 100.0
    assert float(depth_error(depth, prior, counts, True)) < 1e-6
    assert float(depth_error(depth, -prior, counts, True)) == 0
    assert float(depth_error(depth, ONES, counts, True)) == 0
    assert float(depth_error(torch.zeros(12, 16), prior, counts, True)) == 0


def test_outliers_hardly_move_the_fit() -> None:
    """A tenth of the pixels shows something ten times as near: the others keep their depth."""
    seen = 1 / random_depth()
    prior = 3 * seen + 1
    wrong = torch.rand(12, 16, generator=torch.Generator().manual_seed(2)) < 0.1
    values = fitted(prior, torch.where(wrong, 10 * seen, seen), ONES).values
    assert float(((values - seen).abs() / seen)[~wrong].median()) < 0.02


def test_the_gradient_is_that_of_central_differences_with_the_fit_held_fixed() -> None:
    depth, counts = random_depth().double(), random_depth(2).double()
    prior = 7 / (depth + 0.3 * random_depth(1)) - 1
    fit = fitted(prior, 1 / depth, counts)

    def error(d: torch.Tensor) -> torch.Tensor:
        return (counts * (1 / d - fit.values).abs()).sum() / fit.mean / counts.sum()

    depth.requires_grad_()
    depth_error(depth, prior, counts, True).backward()
    assert depth.grad is not None
    for place in ((0, 0), (5, 7), (11, 15)):
        step = torch.zeros_like(depth)
        step[place] = 1e-6
        with torch.no_grad():
            wanted = (error(depth + step) - error(depth - step)) / 2e-6
        torch.testing.assert_close(depth.grad[place], wanted, rtol=1e-6, atol=1e-10)


def test_normals_are_compared_in_the_same_axes() -> None:
    """Seen straight from above, the world's up is the camera's -z."""
    camera = nadir_camera("a.png", 0.0, 0.0)
    up = torch.tensor([0.0, 0, 1])[:, None, None].expand(3, 36, 48)
    surface, ones = Surface(torch.ones(36, 48), up, torch.ones(36, 48)), torch.ones(36, 48)
    assert float(normal_error(surface, -up, camera, ones)) < 1e-6
    aside = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 36, 48)
    assert float(normal_error(surface, aside, camera, ones)) == pytest.approx(1)
    assert float(normal_error(surface, 0 * up, camera, ones)) == 0
    tilted = torch.nn.functional.normalize(up + 0.3 * aside, dim=0).requires_grad_()
    normal_error(Surface(ones, tilted, ones), -up, camera, ones).backward()
    assert tilted.grad is not None
    torch.testing.assert_close(tilted.grad, -up / ones.numel())


# Files.


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def normals(rows: int = 12, columns: int = 16) -> np.ndarray:
    """Unit vectors towards a camera with COLMAP's axes, [H,W,3]."""
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(rows, columns, 3)) * [0.4, 0.4, 0.1] - [0, 0, 1]
    return (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32)


def test_both_formats_read_alike(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(1, 65535, (12, 16), dtype=np.uint16)
    levels[0, 0] = 0
    write_image(tmp_path / "a.png", levels)
    save(tmp_path / "a.npy", levels[None].astype(np.float32))
    for inverse in (True, False):
        for size in ((16, 12), (8, 6), (32, 24)):
            one, other = (read_depth(tmp_path / name, *size, inverse) for name in ("a.png", "a.npy"))
            np.testing.assert_array_equal(one, other)
            assert one.shape == size[::-1] and np.isnan(one[0, 0]) != inverse
    vectors = normals()
    rounded = ((vectors + 1) * 127.5).round().astype(np.uint8)
    write_image(tmp_path / "n.png", rounded[..., ::-1])
    save(tmp_path / "n.npy", vectors.transpose(2, 0, 1))
    save(tmp_path / "gl.npy", vectors * [1, -1, -1])
    found = {name: read_normals(tmp_path / name, 16, 12) for name in ("n.png", "n.npy", "gl.npy")}
    np.testing.assert_allclose(found["n.png"], vectors, atol=0.005)
    np.testing.assert_allclose(found["n.npy"], vectors, atol=1e-6)
    np.testing.assert_allclose(found["gl.npy"], vectors, atol=1e-6)


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "constant": ("d.npy", lambda p: save(p, np.full((12, 16), 3.0)), "is 3 at every pixel, expected a map that varies"),
    "nan": ("d.npy", lambda p: save(p, np.full((12, 16), np.nan)), "192 values that are not finite, first: nan"),
    "shape": ("d.npy", lambda p: save(p, np.ones((12, 16, 3))), r"has the shape \(12, 16, 3\), expected one value"),
    "integers": ("d.npy", lambda p: save(p, np.ones((12, 16), int)), "holds int64, expected one array of floats"),
    "turned": ("d.npy", lambda p: save(p, np.ones((16, 12))), "is 12x16, expected the shape of its image"),
    "no array": ("d.npy", lambda p: p.write_bytes(b"junk"), "cannot be read"),
    "8 bits": ("d.png", lambda p: write_image(p, np.ones((12, 16), np.uint8)), "type uint8, expected a PNG of 16 bits"),
    "cut off": ("d.png", lambda p: p.write_bytes(b"junk"), "truncated or no image"),
    "grey": ("n.png", lambda p: write_image(p, np.ones((12, 16), np.uint8)), r"shape \(12, 16\), expected three"),
    "16 bits": ("n.png", lambda p: write_image(p, np.ones((12, 16, 3), np.uint16)), "uint16, expected a PNG of 8 bits"),
    "black": ("n.png", lambda p: write_image(p, np.zeros((12, 16, 3), np.uint8)), "0% unit vectors, expected unit"),
    "encoded": ("n.npy", lambda p: save(p, (normals() + 1) / 2), "unit vectors, expected unit vectors in"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, kind: str) -> None:
    name, write, message = BAD[kind]
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError, match=message) as error:
        read_depth(path, 16, 12, True) if name.startswith("d") else read_normals(path, 16, 12)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and ";" in str(error.value)


def test_priors_come_with_their_image_through_its_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path, ["a/1.jpg", "a/2.jpg", "3.png"])
    depth = np.random.default_rng(0).random((30, 40)).astype(np.float32)
    save(tmp_path / "depths/a/1.npy", depth)
    vectors = normals(30, 40)
    save(tmp_path / "normals/a/1.jpg.npy", vectors)
    save(tmp_path / "normals/3.npy", vectors)
    settings = [f"scene.path={tmp_path}", "scene.test_every=0", "scene.resolution=1"]
    config = load_config(None, [*settings, "loss.depth_prior=1", "loss.normal_prior=1"])
    scene = load_scene(config.scene)
    priors = find_priors(config, scene)
    assert priors is not None
    said = capsys.readouterr().out
    assert "1 of 3 training images have a depth prior" in said and "2 train without, first: 3.png" in said
    assert find_priors(load_config(None, settings), scene) is None
    with Views(scene, 10 * 1200, CPU, priors=priors) as views:
        for _ in range(2):
            target = views.target("a/1.jpg")
            assert target.depth_prior is not None and target.normal_prior is not None
            np.testing.assert_array_equal(target.depth_prior.numpy(), depth)
            np.testing.assert_allclose(target.normal_prior.permute(1, 2, 0).numpy(), vectors, atol=0.006)
        assert views.held_bytes == 10 * 1200
        none, half = views.target("a/2.jpg"), views.target("3.png")
        assert none.depth_prior is None and none.normal_prior is None
        assert half.depth_prior is None and half.normal_prior is not None
        window = window_of(torch.arange(1024).view(32, 32) % 32 < 9, scene.train[0], CPU)
        assert window is not None
        part = window.target(target)
        assert part.depth_prior is not None and torch.equal(part.depth_prior, window.crop(torch.from_numpy(depth)))
        cropped = views.target("a/1.jpg", window)
        torch.testing.assert_close(vars(cropped), vars(part), rtol=0, atol=0, equal_nan=True)
    with Views(scene, 0, CPU) as views:
        assert torch.equal(views.target("a/1.jpg").image, target.image)
    with pytest.raises(UserError, match="loss.depth_prior: no training image has a map in .*/none .it has no files"):
        find_priors(load_config(None, [*settings, "loss.depth_prior=1", "scene.depths=none"]), scene)


def test_a_map_of_the_other_kind_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = write_synthetic_priors(write_tiny_scene(tmp_path))
    for kind, other in (("inverse", "depth"), ("depth", "inverse")):
        config = make_config(scene, tmp_path / "out", "loss.depth_prior=1", f"scene.depths_hold={kind}")
        loaded = load_scene(config.scene)
        heights = loaded.points.xyz[:, 0] * 0.2  # A slope: the plane of the tiny scene has one depth.
        loaded.points.xyz[:, 2] = heights
        find_priors(config, loaded)
        warned = capsys.readouterr().err
        assert (f"try scene.depths_hold={other}" in warned) == (kind == "inverse")


# Training.


def write_synthetic_priors(scene: Path) -> Path:
    """Depths that fall to the right, as of a plane that rises, and normals of a plane from above."""
    for image in (scene / "images").iterdir():
        save(scene / "depths" / f"{image.stem}.npy", np.tile(np.linspace(5, 3, 24, dtype=np.float32), (18, 1)))
        save(scene / "normals" / f"{image.stem}.npy", np.tile(np.array([0, 0, -1], np.float32), (18, 24, 1)))
    return scene


PRIORS = ["loss.depth_prior=0.1", "loss.normal_prior=0.05", "scene.depths_hold=depth"]
GAUSSIANS = ["model.primitive=gaussians", "teacher.enabled=false", "blocks.boundary_finetuning=false",
             "blocks.offset_clamping=false", "gaussians.from_coarse=false"]  # fmt: skip


@pytest.mark.slow
def test_without_weights_nothing_is_read_and_with_them_training_goes_on(tmp_path: Path) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    train(make_config(scene, tmp_path / "a", "steps=2", "blocks.interval=1"))
    for folder in ("depths", "normals"):
        for i in range(16):
            save(scene / folder / f"{i:03d}.npy", np.full((1, 2), np.nan))
    train(make_config(scene, tmp_path / "b", "steps=2", "blocks.interval=1"))
    plain = model_of(tmp_path / "a")
    assert_same_bits(plain, model_of(tmp_path / "b"))
    write_synthetic_priors(scene)
    train(make_config(scene, tmp_path / "c", "steps=2", "blocks.interval=1", *PRIORS))
    found = model_of(tmp_path / "c")
    assert all(value.isfinite().all() for value in found.values())
    assert any(not torch.equal(value, plain[name]) for name, value in found.items())


@pytest.mark.slow
def test_true_depths_of_a_city_make_the_trained_depth_better(tmp_path: Path) -> None:
    city = tmp_path / "city"
    write_city(city, CitySettings(blocks_x=1, blocks_y=1, views=16, width=64, height=48))
    errors = []
    for weight in (0, 0.5):
        settings = [f"scene.path={city}", f"out={tmp_path / str(weight)}", f"loss.depth_prior={weight}", "stage=coarse",
                    "steps=150", "scene.depths_hold=depth", "scene.resolution=1", "log.tensorboard=false", GAUSSIANS[0],
                    "teacher.enabled=false"]  # fmt: skip
        config = load_config(None, settings)
        scene = load_scene(config.scene)
        Training(config, scene, None, LocalComm(), CPU).run(Observers())
        model, harmonics = load_model(next((tmp_path / str(weight)).glob("point_cloud/iteration_*/*.ply")))
        misses = []
        for camera in scene.train[::3]:
            with torch.no_grad():
                depth = expected_depth(render_view(model, harmonics, camera, torch.zeros(3)).output)
            truth = read_true_depth(city, camera.name)
            misses.append(((depth - truth).abs() / truth)[(truth > 0) & (depth > 0)].median())
        errors.append(float(torch.stack(misses).mean()))
    assert errors[1] < 0.97 * errors[0], errors


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", [["blocks.windows=true"], GAUSSIANS], ids=["windows", "gaussians"])
def test_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, options: list[str]) -> None:
    scene = write_synthetic_priors(write_tiny_scene(tmp_path / "scene"))
    options = [*options, *PRIORS, "steps=20", "log.checkpoint_every=10"]
    train(make_config(scene, tmp_path / "a", *options))
    config = make_config(scene, tmp_path / "b", *options)
    interrupt(config, 15)
    train(config, resume=True)
    assert_same_bits(model_of(tmp_path / "a"), model_of(tmp_path / "b"))
