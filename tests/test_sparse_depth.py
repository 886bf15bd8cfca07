"""Depth from the sparse points that an image observes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scene_files import write_scene
from test_render import camera, one_gaussian
from test_tracks import NAMES, write_tracks

from momentum_gs.config.schema import SceneConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import project
from momentum_gs.core.types import PointCloud, RenderOutput
from momentum_gs.data.scene import load_scene
from momentum_gs.data.tracks import Tracks
from momentum_gs.render.rasterize import rasterize
from momentum_gs.train.sparse_depth import SparseDepths, ViewDepths, depth_loss, trust

CPU = torch.device("cpu")
BLACK = torch.zeros(3)
PIXELS = torch.tensor([3, 20, 47])
Z = torch.tensor([2.0, 5.0, 9.0])


def drawn(depth: torch.Tensor, alpha: torch.Tensor) -> RenderOutput:
    """A view of 8 x 6 pixels with these depths and opacities at ``PIXELS``."""
    whole, opacity = torch.full((48,), 3.0), torch.full((48,), 0.5)
    opacity[PIXELS] = alpha
    whole[PIXELS] = depth
    shape = (6, 8)
    return RenderOutput(
        image=torch.zeros(3, *shape), alpha=opacity.view(shape), depth=(whole * opacity).view(shape),
        radii=torch.zeros(0, dtype=torch.int32), screen_means=torch.zeros(0, 3),
    )  # fmt: skip


def known(z: torch.Tensor = Z, weight: tuple[float, ...] = (1.0, 0.5, 0.1)) -> ViewDepths:
    return ViewDepths(PIXELS, z, torch.tensor(weight))


def test_the_right_depth_has_no_loss_at_any_opacity() -> None:
    assert float(depth_loss(drawn(Z, torch.tensor([1.0, 0.5, 0.11])), known())) < 1e-6


def test_the_loss_is_the_error_of_inverse_depth_relative_to_that_of_the_point() -> None:
    loss = depth_loss(drawn(2 * Z, torch.ones(3)), known())
    torch.testing.assert_close(loss, torch.tensor(0.5))
    # Only the first is wrong, which has a weight of 1 of 1.6.
    loss = depth_loss(drawn(Z * torch.tensor([0.5, 1, 1]), torch.ones(3)), known())
    torch.testing.assert_close(loss, torch.tensor(1.0 / 1.6))


def test_the_unit_of_the_scene_does_not_matter() -> None:
    alpha = torch.tensor([0.9, 0.8, 0.3])
    torch.testing.assert_close(
        depth_loss(drawn(7.5 * (Z + 1), alpha), known(7.5 * Z)), depth_loss(drawn(Z + 1, alpha), known())
    )


def test_transparent_pixels_and_images_without_points_have_no_loss() -> None:
    assert float(depth_loss(drawn(Z + 1, torch.tensor([0.0, 0.05, 0.09])), known())) == 0
    nothing = ViewDepths(PIXELS[:0], Z[:0], Z[:0])
    assert float(depth_loss(drawn(Z, torch.ones(3)), nothing)) == 0


@pytest.mark.parametrize(("wanted", "sign"), [(3.0, 1), (5.0, -1)])
def test_the_gradient_moves_a_gaussian_towards_the_depth(wanted: float, sign: int) -> None:
    """The Gaussian is at depth 4; a step against the gradient must go towards the wanted depth."""
    mean = torch.tensor([[0.0, 0, 0]], requires_grad=True)
    output = rasterize(replace(one_gaussian([0, 0, 0]), means=mean), camera(), BLACK)
    pixel = torch.tensor([15 * 48 + 20])
    depth_loss(output, ViewDepths(pixel, torch.tensor([wanted]), torch.ones(1))).backward()
    assert mean.grad is not None
    assert mean.grad[0, 2] * sign > 0


def test_trust_falls_with_the_error_and_grows_with_the_length_of_the_track() -> None:
    error, length = torch.tensor([0.5, 1.0, 3.0, -1.0]).double(), torch.tensor([2, 2, 2, 2])
    tracks = Tracks(PointCloud(torch.zeros(4, 3).double(), torch.zeros(4, 3, dtype=torch.uint8)), error, length, {})
    found = trust(tracks)
    assert found[0] > found[1] > found[2] > 0
    assert found[3] == 0.5, "no error is known: the track alone counts"
    assert (trust(replace(tracks, length=torch.tensor([9, 9, 9, 9]))) > found).all()
    assert found.max() <= 1


@pytest.mark.parametrize("offset", [None, (3.0, -2.0, 1.0)])
def test_an_image_knows_the_depths_of_the_points_that_it_observes(tmp_path: Path, offset: tuple | None) -> None:
    write_tracks(write_scene(tmp_path, NAMES))
    scene = load_scene(SceneConfig(path=str(tmp_path), test_every=0, offset=offset))
    depths = SparseDepths(scene, CPU)
    seen = depths._tracks.seen
    for view in scene.train:
        pixels, z = project(scene.points.xyz[seen[view.name]], view)
        inside = ((pixels >= 0) & (pixels < torch.tensor([view.width, view.height]))).all(dim=1) & (z > 0)
        found = depths.of(view)
        torch.testing.assert_close(found.depth, z[inside].float())
        column, row = pixels[inside].long().unbind(1)
        assert torch.equal(found.pixel, row * view.width + column)


def test_a_scene_without_tracks_is_refused(tmp_path: Path) -> None:
    scene = load_scene(SceneConfig(path=str(write_scene(tmp_path, NAMES)), test_every=0))
    with pytest.raises(UserError, match="loss.depth: the points of .* have no tracks"):
        SparseDepths(scene, CPU)
