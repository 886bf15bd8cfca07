"""Facts about the synthetic city: geometry, light and files agree with each other."""

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import torch
from torch import Tensor

from momentum_gs.cli import synth
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import project
from momentum_gs.core.image import ssim
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.core.types import Camera
from momentum_gs.core.voxels import cells_of, unique_cells
from momentum_gs.data.colmap.model import ColmapModel, read_model
from momentum_gs.data.point_files import read_point_file
from momentum_gs.data.synthetic.cast import GROUND, SKY, Caster
from momentum_gs.data.synthetic.city import City, build_city
from momentum_gs.data.synthetic.scene import POINTS_PER_BLOCK, REFERENCE, CitySettings, read_depth, write_city
from momentum_gs.data.synthetic.shade import SKYLIGHT, SUN, SUNLIGHT, Shader, pulse, to_linear, to_srgb
from momentum_gs.data.synthetic.survey import FOCAL, fly, target, track_lengths

SETTINGS = CitySettings(blocks_x=2, blocks_y=2, views=12, width=96, height=72, seed=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With more threads such small operators are slower, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "city"
    write_city(folder, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def model(scene: Path) -> ColmapModel:
    return read_model(scene / "sparse" / "0")


@pytest.fixture(scope="module")
def city() -> City:
    return build_city(2, 2, 3)


def half_spaces(city: City) -> tuple[Tensor, Tensor]:
    """Boxes and roofs as outward planes: normals [s,8,3] and offsets [s,8] of n . p <= offset."""
    rows = []
    for x0, y0, x1, y1, top in city.boxes.double().tolist():
        rows.append([(-1, 0, 0, -x0), (1, 0, 0, x1), (0, -1, 0, -y0), (0, 1, 0, y1)] + [(0, 0, 1, top)] * 4)
    for x0, y0, x1, y1, sx, hx, sy, hy in city.roofs.double().tolist():
        mx, my = (x0 + x1) / 2, (y0 + y1) / 2
        rows.append([(-1, 0, 0, -x0), (1, 0, 0, x1), (0, -1, 0, -y0), (0, 1, 0, y1), (sx, 0, 1, hx + sx * mx),
                     (-sx, 0, 1, hx - sx * mx), (0, sy, 1, hy + sy * my), (0, -sy, 1, hy - sy * my)])  # fmt: skip
    planes = torch.tensor(rows, dtype=torch.float64)
    return planes[..., :3], planes[..., 3]


def cast_by_brute_force(city: City, origin: Tensor, direction: Tensor) -> Tensor:
    """Reference of ``Caster.cast`` in float64: every ray clipped by every plane of every solid. Distances [n]."""
    normals, offsets = half_spaces(city)
    rate = torch.einsum("spc,nc->nsp", normals, direction)
    room = offsets - torch.einsum("spc,nc->nsp", normals, origin)
    enter = torch.where(rate < 0, room / rate, -torch.inf).amax(2)
    # A ray parallel to a plane stays on its side of it.
    leave = torch.where(rate > 0, room / rate, torch.where((rate == 0) & (room < 0), -torch.inf, torch.inf)).amin(2)
    solids = torch.where((enter < leave) & (enter > 0), enter, torch.inf).amin(1)
    center, size = city.trees[:, :3].double(), city.trees[:, [3, 3, 4]].double()
    o, d = (origin[:, None] - center) / size, direction[:, None] / size
    a, b, c = (d * d).sum(2), (o * d).sum(2), (o * o).sum(2) - 1
    root = (b * b - a * c).sqrt()
    crowns = ((-b - root) / a).nan_to_num(nan=torch.inf)
    crowns = torch.where(crowns > 0, crowns, torch.inf).amin(1)
    ground = torch.where(direction[:, 2] < 0, -origin[:, 2] / direction[:, 2], torch.inf)
    return torch.minimum(torch.minimum(solids, crowns), ground)


@pytest.mark.slow
def test_grid_walk_equals_brute_force(city: City) -> None:
    generator = keyed_generator("rays")
    n = 3000
    # From around and above the city towards places in it; some in the opposite direction.
    origin = torch.randn(n, 3, generator=generator, dtype=torch.float64) * torch.tensor([90.0, 90.0, 30.0])
    origin[:, 2] = origin[:, 2].abs() + city.tallest + 1
    target = (torch.rand(n, 3, generator=generator, dtype=torch.float64) - 0.5) * torch.tensor([160.0, 160.0, 40.0])
    direction = torch.nn.functional.normalize(target - origin)
    direction[:50] *= -1
    direction[50:60] = torch.tensor([0.0, 0.0, -1.0])
    expected = cast_by_brute_force(city, origin, direction)
    hits = Caster(city).cast(origin.float(), direction.float())
    # float32 positions of some 200 m resolve 1.5e-5 m; a ray that grazes an edge may take either side of it.
    agree = torch.isclose(hits.distance.double(), expected, atol=1e-3, rtol=1e-5)
    assert agree.double().mean() > 0.999
    assert torch.equal(hits.solid == SKY, hits.distance.isinf())
    assert (hits.solid == SKY).sum() >= 40 and (hits.solid == GROUND).sum() > 300 and (hits.solid >= 0).sum() > 300


def test_rays_without_anything_to_hit(city: City) -> None:
    origins = torch.tensor([[0.0, 0.0, 500.0], [1e4, 0.0, 10.0], [0.0, 0.0, 500.0]])
    directions = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.6, -0.8], [1.0, 0.0, 0.0]])
    hits = Caster(city).cast(origins, directions)
    assert hits.solid.tolist() == [SKY, GROUND, SKY]
    assert math.isclose(float(hits.distance[1]), 12.5, rel_tol=1e-5)


def read_rgb(path: Path) -> Tensor:
    bgr = cv2.imread(str(path))
    assert bgr is not None
    return torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1).float() / 255


def unproject(camera: Camera, depth: Tensor) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    z = depth.double()
    x = (columns + 0.5 - camera.cx) / camera.fx * z
    y = (rows + 0.5 - camera.cy) / camera.fy * z
    return torch.stack([x, y, z], dim=-1).reshape(-1, 3) @ camera.rotation + camera.center


@pytest.mark.slow
def test_depth_of_one_view_lands_on_the_surface_of_another(scene: Path, model: ColmapModel) -> None:
    compared = 0
    for a, b in zip(model.cameras[:7], model.cameras[1:8], strict=True):
        first, second = read_rgb(scene / "images" / a.name), read_rgb(scene / "images" / b.name)
        pixels, z = project(unproject(a, read_depth(scene, a.name)), b)
        column, row = pixels.floor().long().unbind(1)
        inside = ((column >= 0) & (column < b.width) & (row >= 0) & (row < b.height) & (z > 0)).nonzero().squeeze(1)
        other = read_depth(scene, b.name)[row[inside], column[inside]]
        gap = other - z[inside]
        # Half a pixel on a slope of 60 degrees at about 100 m changes the depth by less than two metres. Where the
        # other view is occluded, its depth is smaller.
        same = gap.abs() < 2.0
        # At silhouettes, a few percent of the pixels at this size, either surface may be hit.
        assert (gap < 2.0).double().mean() > 0.94, "the other view sees through a surface that this one met"
        if inside.numel() < 500:
            continue
        compared += 1
        assert same.double().mean() > 0.6
        here = first.flatten(1)[:, inside[same]]
        there = second[:, row[inside][same], column[inside][same]]
        close = (here - there).abs().mean(0)
        mixed = (here - there.roll(97, dims=1)).abs().mean(0)
        # Positions differ by up to half a pixel: colours at edges differ, the median over surfaces does not.
        assert close.median() < 0.03
        assert mixed.median() > 2 * close.median()
    assert compared >= 3


@pytest.mark.slow
def test_sparse_points_lie_on_surfaces_within_their_noise(model: ColmapModel, city: City) -> None:
    normals, offsets = half_spaces(city)

    def from_surface(points: Tensor) -> Tensor:
        planes = (torch.einsum("spc,nc->nsp", normals, points) - offsets).amax(2).abs().amin(1)
        center, size = city.trees[:, :3].double(), city.trees[:, [3, 3, 4]].double()
        crowns = (((points[:, None] - center) / size).norm(dim=2) - 1).abs().amin(1) * 2.9
        return torch.minimum(torch.minimum(planes, crowns), points[:, 2].abs())

    distance = from_surface(model.points.xyz)
    # From a flight at about 130 m the noise is 0.07 m: four standard deviations. A hundredth of the points are
    # outliers.
    assert (distance < 0.28).double().mean() > 0.975
    assert distance.max() > 0.5, "no outlier at all"
    lifted = model.points.xyz + torch.tensor([0.0, 0.0, 1.5])
    assert (from_surface(lifted) < 0.28).double().mean() < 0.5


def test_sparse_points_are_seen_by_three_views_and_coloured(scene: Path, model: ColmapModel, city: City) -> None:
    count = POINTS_PER_BLOCK * 4
    assert 0.9 * count <= len(model.points) <= count
    assert model.points.rgb.float().std(0).min() > 10
    camera = model.cameras[2]
    surface = unproject(camera, target(camera, Caster(city), Shader(city, Caster(city)))[1])[::11]
    tracks = track_lengths(surface, model.cameras, Caster(city))
    assert tracks.min() >= 1, "a surface point is seen at least by the view it was found in"
    assert tracks.max() <= len(model.cameras)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_same_seed_same_bytes(tmp_path: Path) -> None:
    small = {"blocks_x": 1, "blocks_y": 1, "views": 5, "width": 48, "height": 32}
    write_city(tmp_path / "a", CitySettings(**small, seed=1))
    write_city(tmp_path / "b", CitySettings(**small, seed=1))
    write_city(tmp_path / "c", CitySettings(**small, seed=2))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["images/0000.jpg"] != contents(tmp_path / "c")["images/0000.jpg"]
    # A city that is written over a larger one leaves none of its files.
    write_city(tmp_path / "a", CitySettings(**small | {"views": 4}, seed=1))
    assert len(list((tmp_path / "a" / "images").iterdir())) == 4


def test_files_are_a_colmap_scene(scene: Path, model: ColmapModel) -> None:
    names = [f"{i:04d}.jpg" for i in range(12)]
    assert [camera.name for camera in model.cameras] == names
    assert sorted(p.name for p in (scene / "images").iterdir()) == names
    assert (scene / "sparse" / "0" / "test.txt").read_text().split() == ["0004.jpg"]
    planned, _ = fly(build_city(2, 2, 3), 12, 96, 72, 3)
    for read, flown in zip(model.cameras, planned, strict=True):
        assert (read.width, read.height, read.fx, read.cx) == (96, 72, flown.fx, 48)
        # COLMAP stores a quaternion: double round-off.
        assert torch.allclose(read.rotation, flown.rotation, atol=1e-12)
        assert torch.allclose(read.translation, flown.translation, atol=1e-9)
    assert read_rgb(scene / "images" / "0000.jpg").shape == (3, 72, 96)


@pytest.mark.parametrize("views", [4, 7, 16, 45, 200])
def test_flight_has_as_many_views_as_asked_and_overlaps(city: City, views: int) -> None:
    cameras, altitude = fly(city, views, 96, 72, 0)
    assert len(cameras) == views
    assert altitude >= 1.5 * city.tallest
    identity = torch.eye(3, dtype=torch.float64)
    down = [c for c in cameras if -c.rotation[2, 2] > math.cos(math.radians(10))]
    assert len(down) == views - 4 * int(0.15 * views)
    for camera in cameras:
        assert torch.allclose(camera.rotation @ camera.rotation.T, identity, atol=1e-12)
        assert torch.linalg.det(camera.rotation) > 0
        assert camera.center[2] > city.tallest
    # Every corner of the city is in an image.
    size_x, size_y = city.size
    corners = torch.tensor([[sx * size_x / 2, sy * size_y / 2, 0.0] for sx in (-1, 0, 1) for sy in (-1, 0, 1)]).double()
    seen = torch.zeros(9, dtype=torch.bool)
    for camera in cameras:
        pixels, z = project(corners, camera)
        seen |= (pixels > 0).all(1) & (pixels < torch.tensor([96, 72])).all(1) & (z > 0)
    assert seen.all()


def test_more_views_fly_lower() -> None:
    city = build_city(6, 6, 0)
    altitudes = [fly(city, views, 96, 72, 0)[1] for views in (20, 60, 180)]
    assert altitudes[0] > altitudes[1] > altitudes[2]


def test_images_do_not_alias(city: City) -> None:
    """An image of twice the size, averaged over 2x2 pixels, is the image."""
    caster = Caster(city)
    shader = Shader(city, caster)
    camera = fly(city, 12, 96, 72, 0)[0][9]
    small, _ = target(camera, caster, shader)
    large, _ = target(camera.resized(192, 144), caster, shader)
    mean = to_srgb(torch.nn.functional.avg_pool2d(to_linear(large), 2))
    skipped = large[:, ::2, ::2]
    # Taking every other pixel aliases; the error of the image is a small part of that of this one. It is not zero:
    # silhouettes have 2x2 samples, and the lens of the small image is twice as wide.
    assert (small - mean).square().mean() < 0.33 * (skipped - mean).square().mean()
    assert ssim(small, mean) > 0.95 > ssim(skipped, mean)


def test_shadow_lies_where_the_sun_is_hidden(city: City) -> None:
    """The ground has the light of sun and sky, or of the sky alone where the ray to the sun is blocked."""
    caster = Caster(city)
    x, y = torch.meshgrid(torch.linspace(-60, 60, 60), torch.linspace(-60, 60, 60), indexing="ij")
    high = torch.stack([x.flatten(), y.flatten(), torch.full((3600,), 300.0)], dim=1)
    down = torch.tensor([0.0, 0.0, -1.0]).repeat(3600, 1)
    bare = high[caster.cast(high, down).solid == GROUND] * torch.tensor([1.0, 1.0, 0.0])
    up = torch.tensor([0.0, 0.0, 1.0]).repeat(len(bare), 1)
    light = Shader(city, caster).light(bare, up)
    to_sun = torch.tensor(SUN, dtype=torch.float64).repeat(len(bare), 1)
    # 1 cm above the ground, so that the ground does not block the ray; the sun is 50 degrees high.
    blocked = cast_by_brute_force(city, bare.double() + torch.tensor([0.0, 0.0, 0.01]), to_sun).isfinite()
    expected = torch.tensor(SKYLIGHT) + torch.tensor(SUNLIGHT) * math.sin(math.radians(50)) * ~blocked[:, None]
    assert 0.1 < blocked.double().mean() < 0.9
    # A ray through an edge may go either way in float32.
    assert torch.isclose(light, expected, atol=1e-5).all(1).double().mean() > 0.998


def test_pulse_is_the_exact_mean_of_a_square_wave() -> None:
    x = torch.linspace(-7, 9, 33, dtype=torch.float64)
    period, duty, width = torch.tensor(2.5), torch.tensor(0.3), torch.full_like(x, 1.7)
    fine = x[:, None] + torch.linspace(-0.5, 0.5, 20001, dtype=torch.float64) * 1.7
    share = ((fine / 2.5) % 1 - 0.5).abs() < 0.15
    # The sum over 20,001 places misses each edge by at most one of them.
    assert torch.allclose(pulse(x, period, duty, width), share.double().mean(1), atol=3e-4)
    assert torch.allclose(pulse(x, period, duty, torch.full_like(x, 2500.0)), duty.double(), atol=1e-3)


def test_srgb_is_the_inverse_of_linear() -> None:
    x = torch.linspace(0, 1, 256)
    # 1e-6: a few units of float32 round-off through two powers; 8-bit steps are 4e-3.
    assert torch.allclose(to_srgb(to_linear(x)), x, atol=1e-6)


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    settings = CitySettings(blocks_x=1, blocks_y=1, views=4, width=16, height=16)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_text("an image")
    with pytest.raises(UserError, match="other than a synthetic city.*--force"):
        write_city(tmp_path, settings)
    with pytest.raises(UserError, match="other than a synthetic city"):
        write_city(tmp_path / "missing" / "..", settings)
    assert [p.name for p in tmp_path.iterdir()] == ["images"]
    write_city(tmp_path, settings, force=True)
    assert (tmp_path / "images" / "mine.jpg").read_text() == "an image"
    with pytest.raises(UserError, match="is a file"):
        write_city(tmp_path / "images" / "mine.jpg", settings)


@pytest.mark.parametrize("wrong", [{"views": 3}, {"blocks_x": 0}, {"width": 4}])
def test_settings_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}, expected at least"):
        CitySettings(**wrong)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    synth.add_arguments(parser)
    out = str(tmp_path / "city")
    synth.run(parser.parse_args([out, "--blocks-x", "1", "--blocks-y", "2", "--views", "5", "--size", "40x30"]))
    assert "5 views of 40x30" in capsys.readouterr().out
    assert read_rgb(tmp_path / "city" / "images" / "0004.jpg").shape == (3, 30, 40)
    with pytest.raises(SystemExit):
        parser.parse_args([out, "--size", "40"])
    assert "expected WIDTHxHEIGHT" in capsys.readouterr().err


def test_reference_points_are_on_surfaces_that_an_image_shows(scene: Path, model: ColmapModel) -> None:
    cloud = read_point_file(scene / REFERENCE)
    spacing = json.loads((scene / "synth.json").read_text())["depth_scale"] * (2**16 - 1) / 8 / (2 * FOCAL * 96)
    assert len(unique_cells(cells_of(cloud.xyz, spacing))[0]) > 0.99 * len(cloud), "one point in a voxel"
    shown = torch.zeros(len(cloud), dtype=torch.bool)
    for camera in model.cameras:
        pixels, z = project(cloud.xyz, camera)
        # Points are under the centres of pixels, so that rounding finds their pixel.
        inside = ((pixels > 0) & (pixels < torch.tensor([96, 72]))).all(dim=1) & (z > 0)
        column, row = pixels[inside].long().unbind(1)
        depth = read_depth(scene, camera.name)[row, column]
        centred = ((pixels[inside] - pixels[inside].floor() - 0.5).abs() < 0.01).all(dim=1)
        shown[inside] |= ((depth - z[inside]).abs() < 0.02) & centred
    assert len(cloud) > 10_000 and shown.all()
