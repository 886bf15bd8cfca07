"""The learned background."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from anchor_scene import random_anchors, random_decoder
from test_render import camera
from tiny_run import (
    CPU,
    assert_same_bits,
    interrupt,
    make_config,
    model_of,
    run_ranks,
    train,
)
from tiny_scene import SIZE, write_tiny_scene

from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import pixel_directions, project
from momentum_gs.core.types import PointCloud, TargetImage
from momentum_gs.data.images import write_png
from momentum_gs.data.scene import load_scene
from momentum_gs.model.background import DEGREE, Background, sh_basis
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.io import load_decoder, load_model, save_decoder
from momentum_gs.partition.assign import view_changes
from momentum_gs.render.rasterize import rasterize, spherical_harmonics
from momentum_gs.render.view import render_view
from momentum_gs.train.decoders.learner import DecoderLearner
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training
from momentum_gs.train.losses import loss_terms

pytestmark = pytest.mark.usefixtures("one_thread")

BLACK = torch.zeros(3)
ON = "model.background=directional"
SKY = (0.3, 0.5, 0.8)


def with_background(degree: int, seed: int = 0) -> GaussianDecoder:
    decoder = random_decoder(seed=seed)
    decoder.background = Background(degree)
    torch.nn.init.normal_(decoder.background.sh, generator=torch.Generator().manual_seed(seed))
    return decoder.requires_grad_(False)


@pytest.mark.parametrize("degree", DEGREE.values())
def test_the_background_is_weighted_by_the_transmittance(degree: int) -> None:
    anchors, decoder, view = random_anchors(40), with_background(degree), camera()
    shown = render_view(anchors, decoder, view, BLACK)
    drawn = rasterize(shown.decoded.gaussians, view, BLACK)
    assert 0 < drawn.alpha.mean() < 0.99
    behind = decoder.background(pixel_directions(view, BLACK)).T.view(3, view.height, view.width)
    torch.testing.assert_close(shown.output.image, drawn.image + (1 - drawn.alpha) * behind)
    # Where the transmittance is 0, the background has no effect.
    assert torch.equal(drawn.image + (1 - torch.ones_like(drawn.alpha)) * behind, drawn.image)
    assert torch.equal(shown.output.alpha, drawn.alpha)


@pytest.mark.parametrize("degree", DEGREE.values())
def test_the_gradient_of_the_background_is_the_transmittance(degree: int) -> None:
    decoder, view = with_background(degree), camera()
    decoder.background.requires_grad_()
    shown = render_view(random_anchors(40), decoder, view, BLACK)
    weights = torch.rand(shown.output.image.shape, generator=torch.Generator().manual_seed(0))
    (weights * shown.output.image).sum().backward()
    basis = sh_basis(degree, pixel_directions(view, BLACK))
    passed = weights * (1 - shown.output.alpha.detach())
    torch.testing.assert_close(decoder.background.sh.grad, basis.T @ passed.flatten(1).T)


@pytest.mark.parametrize("degree", DEGREE.values())
def test_an_empty_view_is_the_background(degree: int) -> None:
    decoder, view = with_background(degree), camera()
    anchors = random_anchors(40)
    away = replace(anchors, position=anchors.position.detach() - torch.tensor([0.0, 0, 99]))
    image = render_view(away, decoder, view, BLACK).output.image
    assert torch.equal(image, decoder.background(pixel_directions(view, BLACK)).T.view_as(image))


def test_directions_pass_through_the_centres_of_pixels() -> None:
    view = camera()
    directions = pixel_directions(view, view.rotation)
    pixels, depth = project(view.center + 7 * directions, view)
    row, column = torch.meshgrid(torch.arange(view.height), torch.arange(view.width), indexing="ij")
    torch.testing.assert_close(pixels, torch.stack([column, row], -1).view(-1, 2) + 0.5, check_dtype=False)
    assert (depth > 0).all()
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(len(directions), dtype=torch.float64))


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_the_basis_spans_the_harmonics_of_the_rasterizer(degree: int) -> None:
    direction = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(1)))
    size = (degree + 1) ** 2
    theirs = spherical_harmonics(degree, direction, torch.eye(size).expand(50, size, size).contiguous())
    ours = sh_basis(degree, direction)
    torch.testing.assert_close(ours @ torch.linalg.lstsq(ours, theirs).solution, theirs, atol=1e-5, rtol=0)


def test_the_heads_of_the_decoder_start_as_without_a_background(tmp_path: Path) -> None:
    plain, learned = (
        DecoderLearner(make_config(tmp_path, tmp_path, f"model.background={kind}"), CPU).module
        for kind in ("fixed", "constant")
    )
    assert "background_degree" not in plain.architecture
    weights = learned.state_dict()
    assert torch.equal(weights.pop("background.sh"), torch.zeros(1, 3))
    assert_same_bits(plain.state_dict(), weights)


def test_decoder_files_hold_the_background(tmp_path: Path) -> None:
    decoder = GaussianDecoder(8, 4, background_degree=2)
    torch.nn.init.normal_(decoder.background.sh)
    save_decoder(tmp_path, decoder)
    assert_same_bits(decoder.state_dict(), load_decoder(tmp_path).state_dict())


@pytest.mark.slow
def test_a_sky_is_learned_where_no_anchor_hides_it(tmp_path: Path) -> None:
    """The plane ends at x = 0; beyond it every image shows one colour."""
    scene = write_tiny_scene(tmp_path / "scene")
    loaded = load_scene(make_config(scene, tmp_path / "out").scene)
    for view in (*loaded.train, *loaded.test):
        directions = pixel_directions(view, view.rotation)
        beyond = (view.center[0] + directions[:, 0] / -directions[:, 2] * view.center[2]) > 0
        image = torch.full((3, SIZE[1], SIZE[0]), 0.1)
        image[:, beyond.view(SIZE[1], SIZE[0])] = torch.tensor(SKY)[:, None]
        write_png(scene / "images" / view.name, image)
    config = make_config(scene, tmp_path / "out", "stage=coarse", "steps=300", "model.background=constant")
    kept = loaded.points.xyz[:, 0] < -0.2
    points = PointCloud(loaded.points.xyz[kept], loaded.points.rgb[kept])
    Training(config, replace(loaded, points=points), None, LocalComm(), CPU).run(Observers())
    decoder = load_model(tmp_path / "out" / "point_cloud" / "iteration_300" / "point_cloud.ply")[1]
    found = decoder.background(torch.tensor([[0.0, 0, -1]]))
    torch.testing.assert_close(found, torch.tensor([SKY]), atol=0.05, rtol=0)


def test_a_hidden_background_still_learns_the_mean_colour_of_images() -> None:
    """By a loss term of its own, which is zero once the background has the colour of the images."""
    config = make_config(Path("scene"), Path("out"), "model.background=constant")
    anchors, decoder, view = random_anchors(40), with_background(0), camera()
    decoder.background.requires_grad_(True)
    shown = render_view(anchors, decoder, view, BLACK)
    target = torch.tensor(SKY)[:, None, None].expand_as(shown.output.image)
    terms = loss_terms(shown.output.image, TargetImage(target), shown.decoded, None, config, shown.behind)
    (gradient,) = torch.autograd.grad(terms["background"], decoder.background.sh)
    found = decoder.background(torch.eye(3)[:1])
    assert torch.equal(gradient.sign(), (found - torch.tensor([SKY])).sign())
    with torch.no_grad():
        decoder.background.sh -= (found - torch.tensor([SKY])) / float(sh_basis(0, torch.eye(3)[:1]))
    there = render_view(anchors, decoder, view, BLACK)
    terms = loss_terms(there.output.image, TargetImage(target), there.decoded, None, config, there.behind)
    assert float(terms["background"].detach()) < 1e-6


@pytest.mark.slow
def test_ranks_and_resume_do_not_change_the_background(tmp_path: Path) -> None:
    scene = write_tiny_scene(tmp_path / "scene")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(make_config(scene, whole, ON))
    model = model_of(whole)
    assert model["decoder.background.sh"].abs().sum() > 0
    config = make_config(scene, parts, ON, "log.checkpoint_every=37")
    interrupt(config, 42)
    train(config, resume=True)
    assert_same_bits(model, model_of(parts))
    assert_same_bits(model, run_ranks(scene, tmp_path / "ranks", 2, ON))


def test_the_change_by_a_block_is_measured_before_the_learned_background() -> None:
    anchors, decoder, view = random_anchors(60), with_background(0), camera()
    block = (anchors.position[:, 0] > 0).long()
    decoder.background.sh.fill_(-0.5 / float(sh_basis(0, torch.eye(3)[:1])))
    plain = view_changes(anchors, random_decoder(), view, block, BLACK)
    black = view_changes(anchors, decoder, view, block, torch.ones(3))
    assert plain.keys() == black.keys() and len(plain) == 2
    assert all(abs(plain[b] - black[b]) < 1e-5 for b in plain)


def test_a_learned_background_needs_the_shared_decoder(tmp_path: Path) -> None:
    others = ["blocks.decoder=per_block", "teacher.enabled=false", "blocks.boundary_finetuning=false",
              "blocks.decoder_freeze_rounds=0"]  # fmt: skip
    with pytest.raises(UserError, match=r"model.background is 'directional', expected fixed"):
        make_config(tmp_path, tmp_path, *others, ON)


def test_explicit_gaussians_have_no_learned_background(tmp_path: Path) -> None:
    assert make_config(tmp_path, tmp_path, "model.primitive=gaussians", ON).model.background == "fixed"
