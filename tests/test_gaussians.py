"""Explicit Gaussians: colours, files, initial values, learning rates."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from splat_scene import random_splats
from tiny_scene import nadir_camera

from momentum_gs.config.schema import GaussiansConfig, OptimConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.normals import point_normals
from momentum_gs.core.types import PointCloud
from momentum_gs.model.init import FLAT, init_splats
from momentum_gs.model.splat_io import load_splats, save_splats
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.splat_view import decode_splats
from momentum_gs.render.view import render_view
from momentum_gs.train.optim import set_splat_lr, splat_optimizer

CAMERA = nadir_camera("a", 0.3, -0.2)


def test_a_new_gaussian_has_its_colour_from_every_side() -> None:
    rgb = torch.rand(50, 3)
    splats = Splats.fresh(torch.randn(50, 3), rgb, torch.zeros(50, 3), sh_degree=3)
    for x in (-3.0, 5.0):
        # One rounding of (rgb - 0.5) / c * c + 0.5 in float32.
        seen = decode_splats(splats, Harmonics(3), nadir_camera("v", x, 1.0))
        torch.testing.assert_close(seen.gaussians.colors, rgb, rtol=0, atol=2e-7)


def test_degree_1_in_closed_form_and_no_negative_colour() -> None:
    splats = random_splats(40)
    x, y, z = torch.nn.functional.normalize(splats.position - CAMERA.center.float()).split(1, dim=1)
    c0, c1 = math.sqrt(1 / (4 * math.pi)), math.sqrt(3 / (4 * math.pi))
    dc, rest = splats.sh_dc[:, 0], splats.sh_rest
    wanted = 0.5 + c0 * dc + c1 * (-y * rest[:, 0] + z * rest[:, 1] - x * rest[:, 2])
    assert (wanted < 0).any()
    found = decode_splats(splats, Harmonics(1), CAMERA).gaussians.colors
    torch.testing.assert_close(found, wanted.clamp_min(0))


def test_the_length_of_a_quaternion_changes_nothing() -> None:
    splats = random_splats(30)
    longer = Splats.from_rows(splats.rows() | {"rotation": splats.rotation.detach() * 7})
    one, other = (render_view(s, Harmonics(3), CAMERA, torch.zeros(3)).output.image for s in (splats, longer))
    torch.testing.assert_close(one, other)


def test_every_row_gets_a_gradient() -> None:
    splats = random_splats(30)
    render_view(splats, Harmonics(3), CAMERA, torch.zeros(3)).output.image.square().sum().backward()
    for name, row in splats.rows().items():
        assert row.grad is not None and row.grad.any(), name


def test_subset_and_cat_keep_rows() -> None:
    splats = random_splats(9)
    mask = torch.arange(9) % 3 == 0
    parts = Splats.cat([splats.subset(mask), splats.subset((~mask).nonzero()[:, 0])])
    order = torch.cat([mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]])
    for name, row in splats.rows().items():
        assert torch.equal(parts.rows()[name], row[order]) and parts.rows()[name].is_leaf
    assert (len(splats), splats.sh_degree) == (9, 3)


@pytest.mark.parametrize(("n", "degree"), [(0, 3), (1, 0), (57, 1), (5, 3)])
def test_ply_round_trip_is_bit_for_bit(tmp_path: Path, n: int, degree: int) -> None:
    splats = random_splats(n, degree)
    save_splats(tmp_path / "a.ply", splats)
    again = load_splats(tmp_path / "a.ply")
    assert again.sh_degree == degree
    for name, row in splats.rows().items():
        found = again.rows()[name]
        assert torch.equal(found, row) and found.is_contiguous() and found.requires_grad


def test_ply_layout(tmp_path: Path) -> None:
    splats = random_splats(5, degree=1)
    save_splats(tmp_path / "a.ply", splats)
    vertices = PlyData.read(str(tmp_path / "a.ply"))["vertex"].data
    assert vertices.dtype.names == (
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{i}" for i in range(9)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    )
    # All coefficients of red, then of green, then of blue.
    for i in range(9):
        assert np.array_equal(vertices[f"f_rest_{i}"], splats.sh_rest[:, i % 3, i // 3].detach().numpy())
    assert np.array_equal(vertices["f_dc_2"], splats.sh_dc[:, 0, 2].detach().numpy())
    assert np.array_equal(vertices["rot_0"], splats.rotation[:, 0].detach().numpy())


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    with pytest.raises(UserError, match="no such file, expected a PLY of Gaussians"):
        load_splats(path)
    path.write_text("no ply")
    with pytest.raises(UserError, match="not a readable PLY .* expected a complete one of Gaussians"):
        load_splats(path)
    save_splats(path, random_splats(3))
    rows = PlyData.read(str(path))["vertex"].data
    for names, message in [
        ([name for name in rows.dtype.names if name != "opacity"], "no property 'opacity'"),
        ([name for name in rows.dtype.names if name != "f_rest_44"], "44 f_rest numbers"),
    ]:
        left = np.array(rows[names].tolist(), [(name, "<f4") for name in names])
        PlyData([PlyElement.describe(left, "vertex")]).write(str(path))
        with pytest.raises(UserError, match=message):
            load_splats(path)


def test_initial_gaussians_are_spheres_as_wide_as_the_spacing() -> None:
    # In a unit grid every point has at least three neighbours at distance 1.
    xyz = torch.cartesian_prod(*[torch.arange(4.0, dtype=torch.float64)] * 3)
    rgb = torch.randint(0, 256, (64, 3), dtype=torch.uint8)
    splats = init_splats(PointCloud(xyz, rgb), sh_degree=2)
    assert torch.equal(splats.position, xyz.float())
    torch.testing.assert_close(splats.scales, torch.ones(64, 3))
    torch.testing.assert_close(splats.opacity.sigmoid(), torch.full((64, 1), 0.1))
    assert splats.sh_rest.shape == (64, 8, 3) and not splats.sh_rest.any()
    with pytest.raises(UserError, match="63 of 64 are finite"):
        init_splats(PointCloud(xyz.index_fill(0, torch.tensor([5]), torch.nan), rgb), sh_degree=2)


def test_gaussians_that_start_flat_lie_along_the_points() -> None:
    """A roof and a wall, each a little rough: the scale along the normal is ``FLAT`` times the others."""
    generator = torch.Generator().manual_seed(0)
    roof, wall = torch.rand(2, 400, 3, generator=generator, dtype=torch.float64)
    roof[:, 2], wall[:, 1] = 3 + 0.01 * roof[:, 2], 5 + 0.01 * wall[:, 1]
    points = PointCloud(torch.cat([roof, wall]), torch.zeros(800, 3, dtype=torch.uint8))
    flat, spheres = (init_splats(points, 1, flat=flat) for flat in (True, False))
    torch.testing.assert_close(flat.scales, spheres.scales * torch.tensor([FLAT, 1.0, 1.0]))
    normal = quat_to_matrix(flat.rotation.detach())[:, :, 0].abs()
    # A few neighbourhoods are nearly a line.
    assert float(torch.cat([normal[:400, 2], normal[400:, 1]]).quantile(0.02)) > 0.99
    torch.testing.assert_close(flat.rotation.norm(dim=1), torch.ones(800))


def test_normals_of_few_points_are_unit_vectors() -> None:
    for count in (0, 1, 2, 5, 40):
        normals = point_normals(torch.rand(count, 3))
        torch.testing.assert_close(normals.norm(dim=1), torch.ones(count))
    same = point_normals(torch.zeros(30, 3))
    torch.testing.assert_close(same.norm(dim=1), torch.ones(30))


def test_rates_of_3dgs() -> None:
    config, optim = GaussiansConfig(), OptimConfig()
    optimizer = splat_optimizer(random_splats(2), optim, config, lr_scale=5.0)

    def rates() -> dict[str, float]:
        return {group["name"]: group["lr"] for group in optimizer.param_groups}

    wanted = {"position": 8e-4, "sh_dc": 2.5e-3, "sh_rest": 1.25e-4}
    wanted |= {"opacity": 0.05, "log_scale": 5e-3, "rotation": 1e-3}
    assert rates() == pytest.approx(wanted)
    # Half way on a logarithmic scale: the geometric mean of both ends.
    set_splat_lr(optimizer, optim, config, 15_000, lr_scale=5.0)
    assert rates() == pytest.approx(wanted | {"position": 8e-5})
    set_splat_lr(optimizer, optim, config, 0, lr_scale=5.0, factor=1.5)
    assert rates() == pytest.approx({name: 1.5 * rate for name, rate in wanted.items()})


@pytest.mark.parametrize(
    ("name", "value"),
    [("sh_degree", 4), ("interval", 0), ("reset_every", -1), ("min_opacity", 0.0), ("max_per_block", 0)],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"config: gaussians\.{name} is {value}, expected"):
        GaussiansConfig(**{name: value})  # type: ignore[arg-type]
