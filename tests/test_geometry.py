"""Facts about space contraction, quaternions and cameras."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from momentum_gs.core.geometry import (
    Sight,
    camera_radius,
    contract,
    in_view,
    project,
    projection_matrix,
    quat_to_matrix,
    uncontract,
    world_view_transform,
)
from momentum_gs.core.types import Camera

PARITY = Path(__file__).parent / "fixtures" / "parity"
AABB = [-50.0, -100.0, -135.0, 50.0, 300.0, -5.0]


def load(name: str) -> dict[str, Tensor]:
    with np.load(PARITY / name) as figures:
        return {key: torch.as_tensor(figures[key]) for key in figures}


def looking_down_z(width: int = 100, height: int = 60) -> Camera:
    """A camera at (0, 0, -10) whose principal point is off the middle of the image."""
    return Camera(
        name="a.png", width=width, height=height, fx=80.0, fy=90.0, cx=40.0, cy=35.0,
        rotation=torch.eye(3, dtype=torch.float64), translation=torch.tensor([0.0, 0.0, 10.0], dtype=torch.float64),
    )  # fmt: skip


def test_contract_equals_the_original() -> None:
    figures = load("partition.npz")
    # One rounding step of float32 near 1.
    torch.testing.assert_close(contract(figures["points"], figures["aabb"]), figures["contracted"], rtol=0, atol=1.2e-7)


def test_contract_keeps_the_box_in_the_middle_half() -> None:
    corners = torch.tensor([AABB[:3], AABB[3:]], dtype=torch.float64)
    assert contract(corners, AABB).tolist() == [[0.25] * 3, [0.75] * 3]


@given(seed=st.integers(0, 10**6), reach=st.floats(0.1, 1e4))
@settings(max_examples=50, deadline=None)
def test_contract_round_trip(seed: int, reach: float) -> None:
    points = torch.randn(64, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * reach * 100
    unit = contract(points, AABB)
    assert ((unit > 0) & (unit < 1)).all()
    # A coordinate of x half edges has an error of about x^2 * 1e-16 half edges: with x up to 1e5, 1e-6 of up to 200.
    torch.testing.assert_close(uncontract(unit, AABB), points, rtol=1e-9, atol=2e-4)


def test_contract_keeps_the_order_along_an_axis() -> None:
    line = torch.zeros(1000, 3, dtype=torch.float64)
    line[:, 1] = torch.linspace(-1e4, 1e4, 1000, dtype=torch.float64)
    assert (contract(line, AABB)[:, 1].diff() > 0).all()


def test_uncontract_puts_the_faces_at_infinity_without_nan() -> None:
    faces = torch.tensor([[1.0, 0.5, 0.5], [0.5, 0.0, 0.3], [0.0, 1.0, 0.5]])
    points = uncontract(faces, [-1.0, -1, -1, 1, 1, 1])
    assert points[0].tolist() == [math.inf, 0.0, 0.0]
    assert points[1, 1] == -math.inf
    assert not points.isnan().any()


def test_quat_to_matrix_is_a_rotation_and_ignores_length_and_sign() -> None:
    quats = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrices = quat_to_matrix(quats)
    eye = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(matrices @ matrices.mT, eye, rtol=0, atol=1e-14)  # float64 round-off of 3 products
    torch.testing.assert_close(torch.linalg.det(matrices), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(quat_to_matrix(-7 * quats), matrices)


def test_quat_to_matrix_turns_x_to_y_about_z() -> None:
    quarter = torch.tensor([math.cos(math.pi / 4), 0.0, 0.0, math.sin(math.pi / 4)])
    turned = quat_to_matrix(quarter) @ torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0, 0.0]))


def test_project_by_hand() -> None:
    points = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 10.0]], dtype=torch.float64)
    pixels, depth = project(points, looking_down_z())
    assert depth.tolist() == [10.0, 20.0]
    assert pixels.tolist() == [[40.0, 35.0], [40.0 + 80 * 1 / 20, 35.0 - 90 * 2 / 20]]


def test_project_keeps_float32_precise_far_from_the_origin() -> None:
    far = torch.tensor([4.0e6, -2.0e6, 1.0e6], dtype=torch.float64)  # UTM-like coordinates, exact in float32
    camera = looking_down_z()
    moved = Camera(**{**vars(camera), "translation": camera.translation - far})
    points = torch.tensor([[1.0, 2.0, 3.0]])
    pixels, _ = project(points + far.float(), moved)
    torch.testing.assert_close(pixels, project(points, camera)[0])


def test_in_view_honours_edges_near_plane_and_margin() -> None:
    camera = looking_down_z()
    # At depth 10 one unit is 8 pixels: the left edge is at x = -5, the right edge (excluded) at 7.5.
    points = torch.tensor([[-5.0, 0, 0], [-5.01, 0, 0], [7.5, 0, 0], [0, 0, -9.9], [0, 0, -9.7], [0, 0, -20.0]])
    assert in_view(points, camera).tolist() == [True, False, False, False, True, False]
    assert in_view(points, camera, margin=0.01).tolist() == [True, True, True, False, True, False]
    assert in_view(points, camera, near=0.05).tolist() == [True, False, False, True, True, False]


def cameras_around(n: int, seed: int) -> list[Camera]:
    """Cameras at random places and turns, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    turns = quat_to_matrix(torch.randn(n, 4, generator=generator, dtype=torch.float64))
    places = 1e6 + 10 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return [replace(looking_down_z(), rotation=r, translation=-r @ c) for r, c in zip(turns, places, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_cameras_together_see_what_each_of_them_sees(seed: int) -> None:
    cameras = cameras_around(6, seed)
    points = 1e6 + 10 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    each = torch.stack([in_view(points, camera) for camera in cameras])
    sight = Sight(cameras)
    assert 0 < each.any(dim=0).sum() < len(points)
    assert sight.see(points).equal(each.any(dim=0))
    among = torch.tensor([True, False, True, False, False, True])
    assert sight.see(points, among).equal(each[among].any(dim=0))
    assert not Sight([]).see(points).any()


@pytest.mark.parametrize("seed", range(3))
def test_a_box_is_shown_where_one_of_its_points_is(seed: int) -> None:
    cameras = cameras_around(6, seed)
    generator = torch.Generator().manual_seed(seed)
    low = 1e6 + 10 * torch.randn(300, 3, generator=generator, dtype=torch.float64)
    size = 4 * torch.rand(300, 3, generator=generator, dtype=torch.float64)
    shown = Sight(cameras).may_show(torch.cat([low, low + size], dim=1))
    inside = low[:, None] + size[:, None] * torch.rand(300, 50, 3, generator=generator, dtype=torch.float64)
    visible = torch.stack([in_view(inside.flatten(0, 1), camera).view(300, 50).any(dim=1) for camera in cameras], dim=1)
    assert visible.sum() > 100
    assert (shown | ~visible).all()
    assert shown.sum() < 2 * visible.sum(), "boxes beside and behind a camera are not shown"


def test_boxes_beyond_a_plane_and_without_points_are_not_shown() -> None:
    # At depth 10 the left edge is at x = -5, which belongs to the view, and the right one at 7.5, which does not.
    boxes = [[-9, 0, 0, -5, 1, 0], [-9, 0, 0, -5.1, 1, 0], [7.5, 0, 0, 9, 1, 0], [0, 0, -30, 1, 1, -9.9]]
    boxes.append([math.nan] * 6)
    assert Sight([looking_down_z()]).may_show(torch.tensor(boxes))[:, 0].tolist() == [True, False, False, False, False]
    assert Sight([]).may_show(torch.tensor(boxes)).shape == (5, 0)


def test_camera_radius_is_measured_from_the_mean() -> None:
    centers = torch.tensor([[100.0, 0.0, 0.0], [102.0, 0.0, 0.0], [101.0, 0.0, 0.0]])
    assert camera_radius(centers) == pytest.approx(1.1)
    assert camera_radius(centers[:1]) == 0.0


def test_matrices_equal_the_official_ones() -> None:
    figures = load("camera.npz")
    world_view = world_view_transform(figures["R_c2w"], figures["T"])
    # The near and far planes of 3DGS are 0.01 and 100.
    full = world_view @ projection_matrix(0.01, 100.0, float(figures["fovx"]), float(figures["fovy"]))
    # Float32 round-off of entries up to 2, a few operations deep.
    torch.testing.assert_close(world_view.float(), figures["world_view_transform"], rtol=0, atol=5e-7)
    torch.testing.assert_close(full.float(), figures["full_proj_transform"], rtol=0, atol=5e-7)
    center = -figures["R_c2w"] @ figures["T"]
    torch.testing.assert_close(center.float(), figures["camera_center"], rtol=0, atol=5e-7)


def test_3dgs_matrices_and_project_agree() -> None:
    camera = looking_down_z()
    centred = Camera(**{**vars(camera), "cx": camera.width / 2, "cy": camera.height / 2})
    points = torch.rand(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 4
    fovx, fovy = 2 * math.atan(camera.width / 2 / camera.fx), 2 * math.atan(camera.height / 2 / camera.fy)
    full = world_view_transform(camera.rotation.T, camera.translation) @ projection_matrix(0.01, 100.0, fovx, fovy)
    homogeneous = torch.cat([points, torch.ones(20, 1, dtype=torch.float64)], dim=1) @ full
    ndc = homogeneous[:, :2] / homogeneous[:, 3:]
    expected = (ndc + 1) / 2 * torch.tensor([camera.width, camera.height])
    torch.testing.assert_close(project(points, centred)[0], expected)
