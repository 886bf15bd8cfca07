"""Levels of detail: cuts show the scene once, merging keeps what a Gaussian covers, budgets hold."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from momentum_gs.bake.lod import build_lod, pixel_size
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import matrix_to_quat, quat_to_matrix
from momentum_gs.core.types import Camera
from momentum_gs.core.voxels import morton
from momentum_gs.model.lod import LodTree, join_trees, load_lod, save_lod
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.view import render_image

CAMERA = Camera(
    "a", 64, 48, 60.0, 60.0, 32.0, 24.0, torch.eye(3).double(), torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64)
)


def cloud(n: int, seed: int = 0, spread: float = 1.0) -> Splats:
    """Random Gaussians before the camera."""
    g = torch.Generator().manual_seed(seed)
    splats = Splats.fresh(
        (torch.rand(n, 3, generator=g) - 0.5) * spread, torch.rand(n, 3, generator=g),
        torch.randn(n, 3, generator=g) * 0.5 - 3.5, 1,
    )  # fmt: skip
    rotation = torch.randn(n, 4, generator=g)
    rest = torch.randn(n, 3, 3, generator=g) * 0.1
    return replace(splats, rotation=rotation, sh_rest=rest, opacity=torch.randn(n, 1, generator=g))


def leaves_below(tree: LodTree, node: int) -> set[int]:
    children = (tree.parent == node).nonzero()[:, 0].tolist()
    return {node} if not children else set().union(*(leaves_below(tree, child) for child in children))


def indices(tree: LodTree, cut: Splats) -> list[int]:
    """Nodes of a cut, found by their positions, which differ."""
    place = {tuple(row): i for i, row in enumerate(tree.splats.position.tolist())}
    return [place[tuple(row)] for row in cut.position.tolist()]


@pytest.mark.slow
@given(n=st.integers(1, 40), seed=st.integers(0, 20), budget=st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_a_cut_shows_every_leaf_once(n: int, seed: int, budget: int) -> None:
    tree = build_lod(cloud(n, seed), [CAMERA], coarsest=1 / 1000)
    assert tree.leaves == n
    cut = indices(tree, tree.level(budget))
    assert len(cut) <= budget
    below = [leaf for node in cut for leaf in leaves_below(tree, node)]
    assert sorted(below) == list(range(n)), "one root, so every budget can be kept"


@pytest.mark.slow
def test_children_come_first_and_errors_grow_towards_the_roots() -> None:
    tree = build_lod(cloud(300), [CAMERA])
    child = (tree.parent >= 0).nonzero()[:, 0]
    assert (tree.parent[child] > child).all()
    assert (tree.error[tree.parent[child]] >= tree.error[child]).all()
    assert torch.bincount(tree.parent[child]).unique().tolist() == [0, 2]
    assert (tree.parent[tree.root] == -1).all()


@pytest.mark.slow
def test_a_budget_of_all_gaussians_is_the_model() -> None:
    splats = cloud(200)
    tree = build_lod(splats, [CAMERA])
    harmonics, black = Harmonics(1), torch.zeros(3)
    whole = render_image(splats, harmonics, CAMERA, black)
    for cut in (tree.level(200), tree.for_view(CAMERA, 200)):
        assert len(cut) == 200
        torch.testing.assert_close(render_image(cut, harmonics, CAMERA, black), whole, atol=2e-6, rtol=0)


def test_equal_gaussians_merge_into_themselves() -> None:
    one = cloud(1)
    pair = Splats.cat([one, one])
    tree = build_lod(pair, [CAMERA], coarsest=0.1)
    merged = tree.level(1)
    assert len(merged) == 1
    torch.testing.assert_close(merged.position, one.position)
    torch.testing.assert_close(merged.sh_rest, one.sh_rest)
    torch.testing.assert_close(merged.scales.sort(dim=1).values, one.scales.sort(dim=1).values, rtol=1e-4, atol=1e-6)
    assert math.isclose(merged.opacity.sigmoid().item(), min(0.999, 2 * one.opacity.sigmoid().item()), rel_tol=1e-4)


def test_merging_keeps_the_mean_of_a_mixture() -> None:
    """Weight, first and second moments of the root are those of its leaves."""
    splats = cloud(2)
    splats = replace(splats, opacity=torch.full((2, 1), -3.0))
    tree = build_lod(splats, [CAMERA], coarsest=0.1)
    root = tree.level(1)
    blur = 0.3 * pixel_size(splats.position, [CAMERA]) ** 2

    def covariance(s: Splats) -> torch.Tensor:
        m = quat_to_matrix(s.rotation) * s.scales[:, None]
        return m @ m.transpose(1, 2)

    def area(s: Splats, blur: torch.Tensor) -> torch.Tensor:
        a, b, c = ((torch.linalg.eigvalsh(covariance(s)) + blur[:, None]).sqrt() ** 1.6075).unbind(1)
        return ((a * b + a * c + b * c) / 3) ** (1 / 1.6075)

    weight = splats.opacity[:, 0].sigmoid() * area(splats, blur)
    share = weight / weight.sum()
    mean = (share[:, None] * splats.position).sum(0)
    torch.testing.assert_close(root.position[0], mean)
    apart = splats.position - mean
    cov = (share[:, None, None] * (covariance(splats) + apart[:, :, None] * apart[:, None, :])).sum(0)
    torch.testing.assert_close(covariance(root)[0], cov, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        root.opacity[0, 0].sigmoid() * area(root, (share * blur).sum()[None])[0], weight.sum(), rtol=1e-4, atol=1e-9
    )


@pytest.mark.slow
def test_a_view_spends_its_budget_on_what_is_near() -> None:
    near, far = cloud(200, 1), cloud(200, 2)
    far = replace(far, position=far.position + torch.tensor([0.0, 0, 60]))
    tree = join_trees([build_lod(near, [CAMERA]), build_lod(far, [CAMERA])])
    cut = tree.for_view(CAMERA, 250)
    assert len(cut) <= 250
    assert (cut.position[:, 2] < 10).sum() > 190, "far Gaussians, which are smaller on the screen, are merged first"


@pytest.mark.slow
def test_what_is_not_in_view_is_not_drawn() -> None:
    behind = cloud(50, 3)
    behind = replace(behind, position=behind.position - torch.tensor([0.0, 0, 20]))
    tree = join_trees([build_lod(cloud(50), [CAMERA]), build_lod(behind, [CAMERA])])
    assert (tree.for_view(CAMERA, 1000).position[:, 2] > -10).all()


def test_fewer_than_the_roots_are_those_that_cover_most() -> None:
    tree = build_lod(cloud(100), [CAMERA], coarsest=0.5)
    cut = tree.level(10)
    assert len(cut) == 10
    covers = tree.splats.opacity[:, 0].sigmoid() * tree.splats.scales.square().sum(1)
    roots = covers[tree.parent < 0].sort(descending=True).values
    torch.testing.assert_close(
        (cut.opacity[:, 0].sigmoid() * cut.scales.square().sum(1)).sort(descending=True).values, roots[:10]
    )


@pytest.mark.slow
def test_a_file_holds_the_tree(tmp_path: Path) -> None:
    tree = join_trees([build_lod(cloud(60), [CAMERA]), build_lod(cloud(30, 1), [CAMERA])])
    save_lod(tmp_path / "a.safetensors", tree)
    again = load_lod(tmp_path / "a.safetensors")
    for name, row in tree.splats.rows().items():
        assert torch.equal(row, again.splats.rows()[name])
    assert torch.equal(tree.parent, again.parent) and torch.equal(tree.error, again.error)
    assert tree.leaves == 90


def test_files_that_hold_no_tree(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file, expected levels of detail; run 'momentum-gs export OUT --lod'"):
        load_lod(tmp_path / "none")
    (tmp_path / "text").write_text("not safetensors at all")
    with pytest.raises(UserError, match="text: not levels of detail"):
        load_lod(tmp_path / "text")


def test_quaternions_are_the_inverse_of_matrices() -> None:
    quats = torch.nn.functional.normalize(torch.randn(100, 4, dtype=torch.float64), dim=1)
    found = matrix_to_quat(quat_to_matrix(quats))
    torch.testing.assert_close(found, torch.where(quats[:, :1] < 0, -quats, quats))


def test_the_curve_visits_cells_one_after_the_other() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
    points = torch.cat([corners * 0.99, corners * 0.99 + 0.001])
    place = morton(points, torch.full((3,), 0.1)).argsort() % 8
    assert (place[0::2] == place[1::2]).all(), "the two points of a corner follow each other"
    assert len(morton(torch.zeros(0, 3), torch.zeros(3))) == 0
