"""Planar surfaces in training: the loss terms, neighbours, and runs that are interrupted, divided or switched off."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import assert_same_bits, interrupt, make_config, model_of, run_ranks, train
from tiny_scene import nadir_camera, texture, write_tiny_scene
from torch import Tensor

from momentum_gs.core.types import Camera
from momentum_gs.data.scene import load_scene
from momentum_gs.data.views import Views
from momentum_gs.render.surface import Surface, pixel_rays
from momentum_gs.train.surfaces.losses import flatness, gray, match, normal_errors, patch_errors, smoothness
from momentum_gs.train.surfaces.neighbours import Neighbours
from momentum_gs.train.surfaces.terms import SurfaceTerms

PLANAR = ["model.surface=planar", "surface.normals_from=0.2", "surface.views_from=0.4"]
GAUSSIANS = ["model.primitive=gaussians", "teacher.enabled=false", "blocks.boundary_finetuning=false",
             "blocks.offset_clamping=false", "gaussians.from_coarse=false", "gaussians.from_step=10",
             "gaussians.interval=10"]  # fmt: skip


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("surfaces") / "scene")


def plane_surface(camera: Camera, lift: float = 0.0) -> Surface:
    """The plane z = lift, seen from above."""
    rays = pixel_rays(camera, torch.zeros(1))
    depth = (lift - float(camera.center[2])) / rays[2]
    up = torch.tensor([0.0, 0, 1])[:, None, None].expand_as(rays)
    return Surface(depth, up.clone(), torch.ones_like(depth))


def image_of_plane(camera: Camera) -> Tensor:
    rays = pixel_rays(camera, torch.zeros(1))
    depth = plane_surface(camera).depth
    places = (rays * depth).permute(1, 2, 0) + camera.center.float()
    return texture(places[..., :2]).permute(2, 0, 1)


ONE, OTHER = nadir_camera("a.png", 0.0, 0.0), nadir_camera("b.png", 1.0, 0.3)


def test_flatness_is_the_mean_smallest_scale() -> None:
    scales = torch.tensor([[3.0, 1.0, 2.0], [0.5, 4.0, 4.0]])
    torch.testing.assert_close(flatness(scales), torch.tensor(0.75))
    assert flatness(torch.empty(0, 3)) == 0


def test_depth_of_a_plane_agrees_with_its_normals() -> None:
    camera, image = ONE, image_of_plane(ONE)
    assert float(normal_errors(plane_surface(camera), camera, image, None).max()) < 1e-3
    tilted = replace(plane_surface(camera), normal=torch.tensor([0.6, 0, 0.8])[:, None, None].expand(3, 36, 48))
    assert float(normal_errors(tilted, camera, image, None)[5:-5, 5:-5].mean()) > 0.1


def test_edges_of_an_image_weigh_less() -> None:
    image = torch.zeros(3, 20, 20)
    image[:, :, 10:] = 1
    weight = smoothness(image)
    assert weight[5, 5] == 1 and weight[5, 10] == 0


def test_a_plane_matches_itself_in_another_view() -> None:
    found = match(plane_surface(ONE), ONE, plane_surface(OTHER), OTHER)
    assert len(found.pixel) > 500
    assert float(found.error.max()) < 1e-3 and float(found.weight.min()) > 0.99


def test_what_the_neighbour_sees_nearer_is_hidden() -> None:
    """A wall before the neighbour: the way back ends elsewhere, so that no pixel counts."""
    near = plane_surface(OTHER, lift=2.0)
    assert len(match(plane_surface(ONE), ONE, near, OTHER).pixel) == 0


def test_a_wrong_depth_misses_by_what_it_moves_the_point() -> None:
    """Lifted by h at height H: the neighbour at a distance of b sees the plane b h / (H - h) aside; in pixels f / H."""
    lift, base = 0.05, OTHER.center - ONE.center
    found = match(plane_surface(ONE, lift), ONE, plane_surface(OTHER), OTHER)
    wanted = float(base.norm()) * lift / (4 - lift) * 40 / 4
    assert float(found.error.median()) == pytest.approx(wanted, rel=0.05)
    depth = plane_surface(ONE, lift).depth.requires_grad_()
    surface = replace(plane_surface(ONE, lift), depth=depth)
    match(surface, ONE, plane_surface(OTHER), OTHER).error.sum().backward()
    assert depth.grad is not None and (depth.grad <= 0).all() and (depth.grad < 0).any()  # Farther is better.


def test_patches_of_the_same_plane_are_alike_and_tell_the_depth() -> None:
    luma, theirs = gray(image_of_plane(ONE)), gray(image_of_plane(OTHER))
    pixel = torch.tensor([10 * 48 + 30, 20 * 48 + 25, 15 * 48 + 35])
    right = patch_errors(plane_surface(ONE), ONE, luma, OTHER, theirs, pixel)
    assert float(right.max()) < 0.05
    depth = plane_surface(ONE, 0.25).depth.requires_grad_()
    wrong = patch_errors(replace(plane_surface(ONE, 0.25), depth=depth), ONE, luma, OTHER, theirs, pixel)
    assert (wrong > right).all()
    wrong.sum().backward()
    assert depth.grad is not None
    better = patch_errors(
        replace(plane_surface(ONE, 0.25), depth=(depth - 1e-2 * depth.grad.sign()).detach()), ONE, luma, OTHER, theirs,
        pixel,
    )  # fmt: skip
    assert (better < wrong.detach()).all()


def test_neighbours_see_the_same_from_aside(scene: Path, tmp_path: Path) -> None:
    loaded = load_scene(make_config(scene, tmp_path).scene)
    found = Neighbours([loaded.train], loaded.points.xyz, 2, 0)
    for camera in loaded.train:
        near = found.of(0, camera)
        assert len(near) <= 2 and camera.name not in [other.name for other in near]
        # An image shows 4.8 x 3.6 units of the plane; cameras are 8 / 3 apart.
        for other in near:
            x, y, _ = (other.center - camera.center).abs().tolist()
            assert (1 - x / 4.8) * (1 - y / 3.6) > 0.25
        drawn = {other.name for step in range(30) if (other := found.draw(0, step, camera)) is not None}
        assert drawn == {other.name for other in near}
    again = Neighbours([loaded.train], loaded.points.xyz, 2, 0)
    camera = loaded.train[0]
    assert [found.draw(0, s, camera) for s in range(9)] == [again.draw(0, s, camera) for s in range(9)]


def test_depth_is_drawn_every_few_steps_of_the_stages(scene: Path, tmp_path: Path) -> None:
    config = make_config(scene, tmp_path, *PLANAR, "steps=40", "surface.every=3")
    loaded = load_scene(config.scene)
    with Views(loaded, 0, torch.device("cpu")) as views:
        terms = SurfaceTerms(Neighbours([loaded.train], loaded.points.xyz, 2, 0), views)
    assert [step for step in range(40) if terms.draws(step, config)] == [*range(9, 40, 3)]
    compared = [step for step in range(40) if terms.neighbour(0, step, loaded.train[0], config) is not None]
    assert compared == [*range(18, 40, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["anchors", "gaussians"])
def test_without_weights_not_one_bit_changes(scene: Path, tmp_path: Path, kind: str) -> None:
    options = GAUSSIANS if kind == "gaussians" else []
    none = [f"surface.{name}=0" for name in ("flatten", "normals", "geometry", "patches")]
    train(make_config(scene, tmp_path / "a", *options))
    train(make_config(scene, tmp_path / "b", *options, *PLANAR, *none))
    assert_same_bits(model_of(tmp_path / "a"), model_of(tmp_path / "b"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", [["blocks.windows=true"], GAUSSIANS], ids=["windows", "gaussians"])
def test_interrupted_run_goes_on_to_the_same_bits(scene: Path, tmp_path: Path, options: list[str]) -> None:
    options = [*options, *PLANAR, "log.checkpoint_every=50"]
    train(make_config(scene, tmp_path / "a", *options))
    config = make_config(scene, tmp_path / "b", *options)
    interrupt(config, 70)
    train(config, resume=True)
    assert_same_bits(model_of(tmp_path / "a"), model_of(tmp_path / "b"))


@pytest.mark.slow
def test_ranks_do_not_change_the_model(scene: Path, tmp_path: Path) -> None:
    options = [*PLANAR, "blocks.windows=true", "log.checkpoint_every=0"]
    one = run_ranks(scene, tmp_path / "one", 1, *options)
    assert_same_bits(one, run_ranks(scene, tmp_path / "two", 2, *options))


@pytest.mark.slow
def test_gaussians_become_flat(scene: Path, tmp_path: Path) -> None:
    """Flatter than they start, which they would not become without the term's weight."""
    ratios = []
    for name, options in (("start", ["surface.flatten=1e-9"]), ("planar", [])):
        train(make_config(scene, tmp_path / name, *GAUSSIANS, *PLANAR, *options, "steps=60"))
        log_scale = model_of(tmp_path / name)["point_cloud_block0.log_scale"]
        ratios.append(float((log_scale.amin(dim=1) - log_scale.median(dim=1).values).exp().median()))
    assert ratios[1] < 0.8 * ratios[0]
