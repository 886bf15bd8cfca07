"""Meshes: fusion of depth maps, cells, files, and scores against a reference."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from splat_scene import random_splats

from momentum_gs.cli import eval_mesh
from momentum_gs.cli.main import main
from momentum_gs.core.errors import UserError
from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.frame import Frame
from momentum_gs.data.viewer_files import write_input_ply
from momentum_gs.mesh import build
from momentum_gs.mesh.build import Depth, MeshSettings, build_mesh
from momentum_gs.mesh.fusion import BLOCK, CELL, DepthMap, cells_of, fuse, surface_blocks
from momentum_gs.mesh.mesh import Mesh, read_mesh, write_mesh
from momentum_gs.mesh.score import PROTOCOLS, in_views, mean_spacing, score_mesh, score_points, surface_points, thinned
from momentum_gs.mesh.triangles import simplified, stitch, triangles_of, without_small_pieces
from momentum_gs.model.io import save_model
from momentum_gs.render.surface import pixel_rays

NEEDED = ("skimage", "scipy", "trimesh", "fast_simplification")
pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in NEEDED), reason="the extra mesh is not installed"
)
CPU = torch.device("cpu")
CENTER = torch.tensor([0.13, -0.2, 0.31], dtype=torch.float64)
RADIUS = 1.0


def looking(direction: tuple[float, float, float], distance: float = 4.0) -> Camera:
    """A camera that looks at ``CENTER`` from a direction."""
    ahead = -torch.tensor(direction, dtype=torch.float64)
    ahead = ahead / ahead.norm()
    right = torch.linalg.cross(torch.tensor([0.31, 0.2, 0.93], dtype=torch.float64), ahead)
    right = right / right.norm()
    rotation = torch.stack([right, torch.linalg.cross(ahead, right), ahead])
    place = CENTER - distance * ahead
    return Camera(f"{direction}.png", 96, 80, 120.0, 120.0, 48.0, 40.0, rotation, -rotation @ place)


AROUND = [
    looking((float(x), float(y), float(z))) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if x or y or z
]


ABOVE = [looking((0.3, 0.1, 1.0)), looking((-0.2, 0.3, 1.0)), looking((0.0, -0.4, 1.0))]


def sphere_map(camera: Camera, radius: float = RADIUS) -> DepthMap:
    """The depth at which rays meet the sphere."""
    rays = pixel_rays(camera, torch.zeros(1))
    arm = (CENTER - camera.center).float()
    a, b = (rays * rays).sum(dim=0), (rays * arm[:, None, None]).sum(dim=0)
    inside = b * b - a * (arm @ arm - radius**2)
    depth = torch.where(inside > 0, (b - inside.clamp_min(0).sqrt()) / a, 0.0)
    return DepthMap(depth, torch.tensor([0.2, 0.4, 0.8])[:, None, None].expand(-1, *depth.shape))


def sphere_mesh(voxel: float) -> tuple[Mesh, int]:
    maps = [sphere_map(camera) for camera in AROUND]
    cells = cells_of(surface_blocks(zip(AROUND, maps, strict=True), voxel))
    pieces = [
        triangles_of(fuse(cell, blocks, voxel, AROUND, maps.__getitem__, CPU), cell) for cell, blocks in cells.items()
    ]
    mesh = stitch(pieces)
    return Mesh(mesh.vertices * voxel, mesh.faces, mesh.colors), len(pieces)


@pytest.mark.slow
def test_fused_sphere_has_its_radius_and_no_seams() -> None:
    voxel = 0.04
    mesh, cells = sphere_mesh(voxel)
    assert cells > 1, "the sphere is cut by planes between cells"
    radius = np.linalg.norm(mesh.vertices - CENTER.numpy(), axis=1)
    assert abs(radius.mean() - RADIUS) < 0.1 * voxel and np.abs(radius - RADIUS).max() < voxel
    # Closed: every edge has two triangles, in opposite directions; a sphere: vertices - edges + faces = 2.
    edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    assert len(np.unique(edges, axis=0)) == len(edges)
    assert {tuple(e) for e in edges.tolist()} == {(b, a) for a, b in edges.tolist()}
    assert len(mesh.vertices) - len(edges) // 2 + len(mesh.faces) == 2
    a, b, c = (mesh.vertices[mesh.faces[:, i]] - CENTER.numpy() for i in range(3))
    volume = (np.cross(a, b) * c).sum() / 6
    assert volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.02)  # Positive: triangles face outwards.
    np.testing.assert_allclose(mesh.colors, np.tile([51, 102, 204], (len(mesh.colors), 1)), atol=1)


def test_neighbouring_cells_compute_the_same_on_the_plane_between_them() -> None:
    camera = replace(looking((0.1, 0.2, 1.0)), width=96)
    voxel, maps = 0.02, [sphere_map(camera, 1.6)]
    cells = cells_of(surface_blocks([(camera, maps[0])], voxel))
    one = next(cell for cell in cells if (cell[0] + 1, *cell[1:]) in cells)
    other = (one[0] + 1, *one[1:])
    left, right = (fuse(cell, cells[cell], voxel, [camera], maps.__getitem__, CPU) for cell in (one, other))
    assert torch.equal(left.known[-1], right.known[0]) and left.known[-1].any()
    torch.testing.assert_close(left.distance[-1], right.distance[0], atol=1e-3, rtol=0)
    assert left.distance.shape == (BLOCK * CELL + 1,) * 3


def two_squares() -> Mesh:
    """A square of two triangles, and a far one of one triangle's size."""
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [5, 5, 5], [6, 5, 5], [5, 6, 5]], dtype=float)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6]])
    return Mesh(vertices, faces, np.arange(21, dtype=np.uint8).reshape(7, 3))


def test_small_pieces_are_removed() -> None:
    left = without_small_pieces(two_squares(), 2)
    assert len(left.faces) == 2 and len(left.vertices) == 4
    assert len(without_small_pieces(two_squares(), 3).faces) == 0
    assert len(without_small_pieces(two_squares(), 1).faces) == 3


@pytest.mark.parametrize("suffix", [".ply", ".glb"])
def test_files_keep_triangles_and_colours(tmp_path: Path, suffix: str) -> None:
    write_mesh(tmp_path / f"mesh{suffix}", two_squares())
    found = read_mesh(tmp_path / f"mesh{suffix}")
    np.testing.assert_allclose(found.vertices[found.faces], two_squares().vertices[two_squares().faces])
    np.testing.assert_array_equal(found.colors, two_squares().colors)


def test_positions_far_from_the_origin_keep_their_precision(tmp_path: Path) -> None:
    mesh = two_squares()
    far = Mesh(mesh.vertices + [4e5, 5e6, 0.123456], mesh.faces, mesh.colors)
    write_mesh(tmp_path / "mesh.ply", far)
    np.testing.assert_array_equal(read_mesh(tmp_path / "mesh.ply").vertices, far.vertices)


def test_damaged_and_missing_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.ply").write_bytes(b"ply\nformat nothing\n")
    for name, wanted in (("bad.ply", "cannot be read"), ("none.ply", "is missing")):
        with pytest.raises(UserError, match=wanted):
            read_mesh(tmp_path / name)
    with pytest.raises(UserError, match="expected .ply or .glb"):
        write_mesh(tmp_path / "mesh.xyz", two_squares())


def test_simplified_to_a_number_of_triangles() -> None:
    grid = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0), indexing="ij"), axis=-1).reshape(-1, 2)
    vertices = np.concatenate([grid, np.zeros((400, 1))], axis=1)
    first = (np.arange(19)[:, None] * 20 + np.arange(19)).ravel()
    faces = np.concatenate([np.stack([first, first + 20, first + 21], 1), np.stack([first, first + 21, first + 1], 1)])
    mesh = Mesh(vertices, faces, np.full((400, 3), 7, np.uint8))
    small = simplified(mesh, 100)
    assert 2 <= len(small.faces) <= 100 and (small.colors == 7).all()
    np.testing.assert_allclose(small.vertices[:, 2], 0, atol=1e-6)
    assert simplified(mesh, 1000) is mesh


def model_of_a_wall(tmp_path: Path) -> tuple[Path, list[Camera]]:
    """Flat opaque Gaussians close together in the plane through ``CENTER`` across z, and views of it."""
    places = torch.cartesian_prod(torch.arange(-10, 11) / 10, torch.arange(-10, 11) / 10)
    splats = random_splats(len(places), degree=0)
    splats.position = torch.cat([places, torch.zeros(len(places), 1)], 1) + CENTER.float()
    splats.log_scale = torch.tensor([0.1, 0.1, 1e-3]).log().expand(len(places), 3).contiguous()
    splats.rotation = torch.tensor([1.0, 0, 0, 0]).expand(len(places), 4).contiguous()
    splats.opacity = torch.full((len(places), 1), 4.0)
    save_model(tmp_path / "point_cloud.ply", splats.as_leaves())
    return tmp_path / "point_cloud.ply", ABOVE


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["planar", "expected", "median"])
def test_mesh_of_a_model_lies_on_its_surface_and_continues_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: Depth
) -> None:
    ply, cameras = model_of_a_wall(tmp_path)
    frame, black = Frame(offset=(100.0, 200.0, 0.0), unit=2.0), torch.zeros(3)
    settings = MeshSettings(voxel=0.1, small=10, depth=depth)

    def make(folder: str) -> Mesh:
        return build_mesh(tmp_path / folder, ply, cameras, frame, black, settings)

    whole = make("a")
    inner = (np.abs(whole.vertices[:, :2] - [100, 200] - 2 * CENTER.numpy()[:2]) < 1.6).all(axis=1)
    assert inner.sum() > 200
    # A view that looks down at a slant shows a Gaussian's mean where its ray meets the wall beside it.
    beside = 0.02 if depth == "planar" else 0.1
    np.testing.assert_allclose(whole.vertices[inner, 2], 2 * float(CENTER[2]), atol=beside)
    # Interrupted after its first cell, and gone on with.
    real, done = build.fuse, []

    def once(*args: object) -> object:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "fuse", once)
    with pytest.raises(KeyboardInterrupt):
        make("b")
    assert len(list((tmp_path / "b" / "cells").glob("*.npz"))) == 1
    monkeypatch.setattr(build, "fuse", real)
    monkeypatch.setattr(build, "load_model", lambda path: pytest.fail("the maps are there"))
    again = make("b")
    np.testing.assert_array_equal(again.vertices, whole.vertices)
    np.testing.assert_array_equal(again.faces, whole.faces)


# ------------------------------------------------------------------------------------------------------------- scores


def random_cloud(n: int = 4000) -> np.ndarray:
    points = np.random.default_rng(0).random((n, 3))
    points[:, 2] = 0.01
    return points


def test_a_cloud_against_itself_is_perfect() -> None:
    scores = score_points(random_cloud(), random_cloud(), 1e-6)
    assert scores.f1 == scores.precision == scores.recall == 1
    assert scores.chamfer == 0


def test_scores_fall_with_a_shift_as_they_should() -> None:
    """A plane that is shifted along its normal by s is s away: right for thresholds above s, wrong below."""
    cloud = random_cloud()
    for shift in (0.01, 0.02):
        moved = cloud + [0, 0, shift]
        assert score_points(moved, cloud, 1.001 * shift).f1 == 1
        assert score_points(moved, cloud, 0.999 * shift).f1 == 0
        assert score_points(moved, cloud, shift).chamfer == pytest.approx(shift, rel=1e-3)


def test_half_of_the_surface_has_half_the_recall_and_full_precision() -> None:
    cloud = random_cloud(20000)
    half = cloud[cloud[:, 0] < 0.5]
    scores = score_points(half, cloud, 1e-3)
    assert scores.precision == 1 and scores.recall == pytest.approx(0.5, abs=0.03)
    assert scores.f1 == pytest.approx(2 * scores.recall / (1 + scores.recall))
    assert score_points(cloud, half, 1e-3).precision == scores.recall


def test_points_are_spread_evenly_and_do_not_depend_on_the_triangles() -> None:
    coarse = Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), np.array([[0, 1, 2], [0, 2, 3]]),
                  np.zeros((4, 3), np.uint8))  # fmt: skip
    points = surface_points(coarse, "even", 0.02)
    assert len(points) == pytest.approx(4 / 0.02**2, abs=2)
    counts = np.histogram2d(points[:, 0], points[:, 1], bins=4, range=[[0, 1], [0, 1]])[0]
    assert counts.min() > 0.85 * counts.mean() and (points[:, 2] == 0).all()
    assert len(thinned(points, 0.02)) <= 51 * 51
    assert len(surface_points(coarse, "vertices", 0.02)) == 6


def test_thresholds_of_protocols() -> None:
    square = Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), np.array([[0, 1, 2], [0, 2, 3]]),
                  np.zeros((4, 3), np.uint8))  # fmt: skip
    cloud = np.stack(np.meshgrid(np.arange(0, 1, 0.1), np.arange(0, 1, 0.1), [0.0]), axis=-1).reshape(-1, 3)
    assert mean_spacing(cloud) == pytest.approx(0.1)
    assert score_mesh(square, cloud, PROTOCOLS["gauu"], None).threshold == pytest.approx(0.15)
    assert score_mesh(square, cloud, PROTOCOLS["tnt-barn"], None).threshold == 0.01
    assert score_mesh(square, cloud, PROTOCOLS["tnt-barn"], 0.2).threshold == 0.2
    with pytest.raises(UserError, match="no threshold"):
        score_mesh(square, cloud, PROTOCOLS["own"], None)


def test_crop_keeps_what_enough_cameras_have_in_view() -> None:
    points = np.stack([CENTER.numpy(), CENTER.numpy() + [50, 0, 0]])
    assert in_views(points, ABOVE).tolist() == [True, False]
    assert in_views(points, ABOVE[:2]).tolist() == [False, False]


def test_command_scores_a_mesh(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mesh(tmp_path / "mesh.ply", two_squares().keep(two_squares().faces[:2]))
    cloud = np.random.default_rng(1).random((5000, 3)) * [1, 1, 0]
    grey = torch.zeros(5000, 3, dtype=torch.uint8)
    write_input_ply(tmp_path / "cloud.ply", PointCloud(torch.from_numpy(cloud), grey))
    words = [str(tmp_path / "mesh.ply"), "--reference", str(tmp_path / "cloud.ply")]
    assert main(["eval-mesh", *words, "--threshold", "0.05"]) == 0
    assert (tmp_path / "mesh.json").is_file() and "F1" in capsys.readouterr().out
    assert main(["eval-mesh", *words]) == 2
    assert main(["eval-mesh", *words, "--threshold", "-1"]) == 2
    assert "own" in eval_mesh.DESCRIPTION
