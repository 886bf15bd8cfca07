"""Normalized coordinates: they are the same for a scene in another unit, place or heading."""

import importlib.util
from pathlib import Path

import pytest
import torch
from scene_files import camera, points, write_scene
from tiny_run import BASE, CPU, SETTINGS, assert_same_bits, make_config
from tiny_scene import write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import project
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.frame import VIEW_DISTANCE, Frame, recorded_frame, view_distance
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.model.io import load_ply, model_folder
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training

_SPEC = importlib.util.spec_from_file_location("move_scene", Path(__file__).parents[1] / "scripts" / "move_scene.py")
assert _SPEC is not None and _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
move_scene = _MODULE.move_scene

NAMES = [f"{i}.png" for i in range(9)]
SHIFT = (1e6, -1e6, 1e6)


def moved_scene(
    root: Path, scale: float, shift: tuple[float, ...] = (0.0, 0.0, 0.0), turns: int = 0, up: str = "y"
) -> Path:
    """The files of a small scene after ``turns`` quarter turns about ``up``, scaled and shifted."""
    written = write_scene(root / "written", NAMES)
    return move_scene(written, root, scale, shift, turns, up)


def load(root: Path, **settings: object) -> Scene:
    return load_scene(SceneConfig(path=str(root), unit="auto", **settings))  # type: ignore[arg-type]


def assert_same(a: Scene, b: Scene) -> None:
    assert torch.equal(a.points.xyz, b.points.xyz)
    for one, other in zip([*a.train, *a.test], [*b.train, *b.test], strict=True):
        assert torch.equal(one.rotation.float(), other.rotation.float())
        # Rendering uses float32; further digits depend on those in the files.
        torch.testing.assert_close(one.translation, other.translation, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**-4, 2.0**4, 2.0**10, 1 / 20, 1000.0])
def test_the_unit_of_a_scene_does_not_matter(tmp_path: Path, scale: float) -> None:
    assert_same(load(moved_scene(tmp_path / "a", 1.0)), load(moved_scene(tmp_path / "b", scale)))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_heading_does_not_matter(tmp_path: Path, turns: int) -> None:
    # The cameras of these files look along z and are upright: up is -y.
    assert_same(load(moved_scene(tmp_path / "a", 1.0)), load(moved_scene(tmp_path / "b", 1.0, turns=turns)))


def test_the_origin_does_not_matter(tmp_path: Path) -> None:
    assert_same(load(moved_scene(tmp_path / "a", 1.0)), load(moved_scene(tmp_path / "b", 1.0, SHIFT)))


def test_cameras_see_the_points_from_the_viewing_distance(tmp_path: Path) -> None:
    scene = load(moved_scene(tmp_path, 37.0))
    assert view_distance([*scene.train, *scene.test], scene.points) == pytest.approx(VIEW_DISTANCE, rel=1e-4)


def test_images_show_the_same(tmp_path: Path) -> None:
    plain = load_scene(SceneConfig(path=str(moved_scene(tmp_path, 20.0, SHIFT, 1, "z")), offset=(0.0, 0.0, 0.0)))
    normal = load(tmp_path)
    for before, after in zip([*plain.train, *plain.test], [*normal.train, *normal.test], strict=True):
        pixels, depth = project(plain.points.xyz, before)
        pixels_after, depth_after = project(normal.points.xyz, after)
        seen = depth > 1e-3 * normal.frame.unit
        torch.testing.assert_close(depth_after[seen], depth[seen] / normal.frame.unit, rtol=0, atol=1e-4)
        near = seen & (depth > normal.frame.unit)
        torch.testing.assert_close(pixels_after[near], pixels[near], rtol=0, atol=0.05)


def test_points_come_back_to_the_scene(tmp_path: Path) -> None:
    scene = load(moved_scene(tmp_path, 20.0, SHIFT, 1, "z"))
    back = scene.frame.scene_points(scene.points.xyz)
    x, y, z = points().xyz.unbind(1)
    wanted = torch.stack([-y, x, z], dim=1) * 20 + torch.tensor(SHIFT, dtype=torch.float64)
    # Half a rounding step of a point, in scene units.
    assert (back - wanted).abs().max() <= 0.51 * 2.0**-16 * scene.frame.unit


def test_a_recorded_frame_gives_the_same_coordinates(tmp_path: Path) -> None:
    scene = load(moved_scene(tmp_path, 20.0, SHIFT, 1, "z"))
    settings = scene.frame.recorded(SceneConfig(path=str(tmp_path), unit="auto"))
    assert settings.unit == scene.frame.unit
    again = load_scene(settings)
    assert again.frame == scene.frame
    assert_same(scene, again)
    assert recorded_frame(SceneConfig(unit="auto"), scene.frame.record()).axes == scene.frame.axes
    assert recorded_frame(SceneConfig(unit=2.0), scene.frame.record()).unit == 2.0


def test_without_normalization_nothing_moves() -> None:
    view = camera("a.jpg", x=0.3)
    frame = Frame()
    assert frame.is_identity
    assert torch.equal(frame.points(points().xyz), points().xyz)
    assert torch.equal(frame.camera(view).translation, view.translation)


def test_a_unit_alone_divides(tmp_path: Path) -> None:
    root = moved_scene(tmp_path, 1.0)
    whole, divided = load_scene(SceneConfig(path=str(root))), load_scene(SceneConfig(path=str(root), unit=4.0))
    assert torch.equal(divided.points.xyz, whole.points.xyz / 4)
    assert torch.equal(divided.train[0].translation, whole.train[0].translation / 4)


def test_axes_must_be_right_handed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="right-handed"):
        load(moved_scene(tmp_path, 1.0), axes=("x", "y", "-z"))


def test_a_scene_without_a_point_in_view_is_refused() -> None:
    behind: list[Camera] = [camera("a.jpg", x=0.0)]
    with pytest.raises(UserError, match="in view"):
        view_distance(behind, PointCloud(torch.tensor([[0.0, 0, -5]], dtype=torch.float64), points().rgb[:1]))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("scale", "shift", "turns"),
    [(2.0**-10, 0.0, 0), (2.0**10, 0.0, 0), (1 / 20, 0.0, 0), (1000.0, 0.0, 0), (1.0, 1e6, 0), (1.0, 0.0, 1)],
)
def test_a_moved_scene_trains_to_the_same_model(tmp_path: Path, scale: float, shift: float, turns: int) -> None:
    def trained(scene: Path, out: Path) -> dict[str, torch.Tensor]:
        config = make_config(scene, out, "stage=coarse", "scene.unit=auto", "optim.lr_scale=5", "steps=40")
        assert config.scene.unit == "auto"
        Training(config, load_scene(config.scene), None, LocalComm(), CPU).run(Observers())
        return {f"anchors.{name}": row for name, row in load_ply(model_folder(out) / "point_cloud.ply").rows().items()}

    plain = write_tiny_scene(tmp_path / "plain")
    moved = move_scene(plain, tmp_path / "moved", scale, (shift, -shift, shift), turns)
    before, after = trained(plain, tmp_path / "a"), trained(moved, tmp_path / "b")
    assert len(before["anchors.position"]) > 0
    assert_same_bits(before, after)


@pytest.mark.slow
def test_a_coarse_model_in_other_coordinates_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    scene, out = write_tiny_scene(tmp_path / "scene"), tmp_path / "out"
    coarse = [*BASE, "-s", str(scene), "-m", str(out / "coarse"), *SETTINGS, "stage=coarse", "steps=2", "device=cpu"]
    assert main(["train", *coarse]) == 0
    cut = ["partition", str(scene), *BASE, "-m", str(out), *SETTINGS, "partition.min_views=1"]
    capsys.readouterr()
    assert main([*cut, "scene.unit=auto"]) == 2
    assert "has scene.unit=1.0" in capsys.readouterr().err
    assert main([*cut, "scene.offset=0,0,0"]) == 0
