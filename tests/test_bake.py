"""Baking anchors: what the decoder gives is kept where it does not depend on the view, and fitted where it does."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from splat_scene import random_splats
from tiny_scene import nadir_camera
from torch import Tensor

import momentum_gs.bake.fit as fitting
from momentum_gs.bake.baking import bake, bake_parts, choose
from momentum_gs.bake.between import Between
from momentum_gs.bake.contributions import FAINT, contributions, row_errors
from momentum_gs.bake.fit import fit, means_of
from momentum_gs.bake.refine import Teaching, others, refine
from momentum_gs.bake.row_adam import BETAS, EPS, RowAdam
from momentum_gs.bake.shell import background_shell, reach_of
from momentum_gs.core.geometry import pixel_directions
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.background import Background
from momentum_gs.model.decoder import HEADS, DecoderOutput, GaussianDecoder
from momentum_gs.model.harmonics import bands, basis, rotation_of_harmonics
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.blending import blending_sums, blending_weights
from momentum_gs.render.rasterize import rasterize, spherical_harmonics, visible_splats
from momentum_gs.render.view import decode_view, draw, render_image

BLACK = torch.zeros(3)
K = 4


def make_anchors(n: int = 150, seed: int = 0) -> Anchors:
    rng = torch.Generator().manual_seed(seed)
    position = (torch.rand(n, 3, generator=rng) - 0.5) * torch.tensor([5.0, 5.0, 0.6])
    feature = torch.randn(n, 8, generator=rng)
    anchors = Anchors.fresh(position, feature, torch.full((n, 6), -1.5), K)
    anchors.offset = torch.randn(n, K, 3, generator=rng) * 0.5
    return anchors.as_leaves()


def make_decoder(*, view_dependent: bool = True, seed: int = 0) -> GaussianDecoder:
    torch.manual_seed(seed)
    decoder = GaussianDecoder(8, K)
    if not view_dependent:
        with torch.no_grad():
            for name in HEADS:
                getattr(decoder, name)[0].weight[:, 8:] = 0
    return decoder.requires_grad_(False)


def cameras() -> list[Camera]:
    spots = [(x, y, h) for x in (-1.5, 0.0, 1.5) for y in (-1.0, 1.0) for h in (4.0, 6.0)]
    return [nadir_camera(f"{i}.png", *spot) for i, spot in enumerate(spots)]


def image_of(splats: Splats, camera: Camera) -> Tensor:
    return render_image(splats, Harmonics(splats.sh_degree), camera, BLACK)


@pytest.mark.parametrize("degree", range(4))
def test_harmonics_are_those_of_the_renderer(degree: int) -> None:
    rng = torch.Generator().manual_seed(0)
    direction = F.normalize(torch.randn(40, 3, generator=rng, dtype=torch.float64))
    sh = torch.randn(40, 16, 3, generator=rng, dtype=torch.float64)
    y = basis(degree, direction)
    assert y.shape[1] == len(bands(degree)) == (degree + 1) ** 2
    mine = torch.einsum("nk,nkc->nc", y, sh[:, : y.shape[1]])
    torch.testing.assert_close(mine, spherical_harmonics(degree, direction, sh))


def test_rotated_harmonics_are_the_function_rotated() -> None:
    rng = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64)).Q
    rotation *= torch.linalg.det(rotation)
    matrix = rotation_of_harmonics(3, rotation)
    direction = F.normalize(torch.randn(30, 3, generator=rng, dtype=torch.float64))
    sh = torch.randn(16, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(basis(3, direction @ rotation.T) @ (matrix @ sh), basis(3, direction) @ sh)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)
    band = torch.tensor(bands(3))
    assert float(matrix[band[:, None] != band].abs().max()) < 1e-12


def test_contributions_sum_to_the_alpha_of_the_image() -> None:
    anchors, decoder, camera = make_anchors(), make_decoder(), cameras()[0]
    decoded = decode_view(anchors, decoder, camera)
    weight = blending_weights(decoded.gaussians, camera)
    alpha = rasterize(decoded.gaussians, camera, BLACK).alpha
    torch.testing.assert_close(weight.sum(), alpha.sum(), rtol=1e-4, atol=0)
    assert float(weight.min()) >= 0


def test_contributions_in_files_are_those_in_memory(tmp_path: Path) -> None:
    anchors, decoder = make_anchors(), make_decoder()
    away = nadir_camera("away.png", 500.0, 500.0)  # It sees nothing.
    here, filed = (contributions(anchors, decoder, [*cameras()[:3], away], folder) for folder in (None, tmp_path))
    assert torch.equal(here.total, filed.total)
    for one, other in zip(here.views, filed.views, strict=True):
        for a, b in zip(one.between(100, 300), other.between(100, 300), strict=True):
            assert torch.equal(a, b)
        assert bool((one.weight > FAINT).all())
    assert len(here.views[-1].offset) == 0


def test_what_masks_hide_does_not_contribute() -> None:
    """A Gaussian that only hidden pixels show is not exported, and refining does not put others in its place."""
    anchors, decoder, camera = make_anchors(), make_decoder(), cameras()[0]
    mask = torch.ones(1, camera.height, camera.width)
    mask[:, :, : camera.width // 2] = 0
    whole = contributions(anchors, decoder, [camera])
    half = contributions(anchors, decoder, [camera], counts=lambda _: mask)
    other = contributions(anchors, decoder, [camera], counts=lambda _: 1 - mask)
    torch.testing.assert_close(half.total + other.total, whole.total, rtol=1e-4, atol=3 * FAINT)
    hidden = (half.total == 0) & (whole.total > 0)
    assert bool(hidden.any()) and not bool(hidden[choose(half)].any())
    decoded = decode_view(anchors, decoder, camera)
    whole_image, image = (rasterize(g, camera, BLACK).image for g in (decoded.gaussians, others(decoded, hidden, K)))
    torch.testing.assert_close(image * mask, whole_image * mask, rtol=0, atol=0.01)
    splats = fit(anchors, decoder, [camera], half, choose(half), 0)
    target = TargetImage(whole_image.detach(), mask)
    teaching = Teaching(anchors, decoder, [camera], BLACK, lambda _: target, left_out=half.total == 0)
    found = image_of(refine(splats, teaching, 6), camera)
    error, gap = ((drawn - image).abs() * (1 - mask) for drawn in (found, whole_image))
    assert float(error.detach().mean()) < 0.3 * float(gap.detach().mean())


def test_errors_are_of_the_rows_that_are_seen_there() -> None:
    """With an error of 0.5 in a square of each image, the errors of the rows sum to that of the images."""
    anchors, decoder, there = make_anchors(), make_decoder(), cameras()[:3]
    error = torch.zeros(1, there[0].height, there[0].width)
    error[:, 12:20, 16:24] = 0.5
    pixels = torch.cat([torch.ones_like(error), error])
    *_, found = row_errors(anchors, decoder, there, BLACK, lambda camera, _: None if camera is there[1] else pixels)
    seen = ~found.mean.isnan()
    assert found.views == 2 and 0 < int(seen.sum()) < len(seen)
    assert float(found.mean[seen].min()) == 0 and 0 < float(found.mean[seen].max()) <= 0.5 + 1e-6
    weight = contributions(anchors, decoder, there[::2]).total.view(len(seen), -1).sum(dim=1)
    decoded = [decode_view(anchors, decoder, camera).gaussians for camera in there[::2]]
    wanted = sum(float(blending_sums(g, camera, error).sum()) for g, camera in zip(decoded, there[::2], strict=True))
    assert float((found.mean.nan_to_num() * weight).sum()) == pytest.approx(wanted, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("degree", [0, 3])
def test_a_decoder_that_ignores_the_view_is_baked_exactly(degree: int) -> None:
    anchors, decoder = make_anchors(), make_decoder(view_dependent=False)
    splats = bake(anchors, decoder, cameras(), sh_degree=degree)
    assert splats.sh_degree == degree
    for camera in (*cameras(), nadir_camera("new.png", 0.4, 0.3, 5.0)):
        difference = image_of(splats, camera) - render_image(anchors, decoder, camera, BLACK)
        # What contributes a thousandth of a pixel or less to an image is left out.
        assert float(difference.abs().max()) < 2 * FAINT
        assert float(difference.abs().mean()) < 1e-4


@pytest.mark.slow
def test_higher_degrees_are_closer_to_a_decoder_that_sees_directions() -> None:
    anchors, decoder = make_anchors(), make_decoder()
    errors = []
    for degree in (0, 1, 2):
        splats = bake(anchors, decoder, cameras(), sh_degree=degree)
        pairs = [(image_of(splats, camera), render_image(anchors, decoder, camera, BLACK)) for camera in cameras()]
        errors.append(float(torch.stack([(a - b).square().mean() for a, b in pairs]).mean()))
    assert errors[0] > errors[1] > errors[2]


class KnownColors(GaussianDecoder):
    """A decoder whose colours are known harmonics of the direction, and whose rotations change their sign."""

    def __init__(self, sh: Float[Tensor, "k 3"]) -> None:
        super().__init__(8, K)
        self._sh = sh

    def forward(
        self, feature: Float[Tensor, "m f"], direction: Float[Tensor, "m 3"], distance: Float[Tensor, "m 1"]
    ) -> DecoderOutput:
        n = len(direction)
        color = basis(3, direction) @ self._sh + 0.5
        cov = direction.new_tensor([0.0, 0.5, 1.0, 0.8, 0.6, 0.0, 0.0]).repeat(n, K, 1)
        cov[:, :, 3:] *= torch.where(distance > 4.5, -1.0, 1.0)[:, :, None]
        return DecoderOutput(torch.full((n, K), 0.4), cov, color[:, None].expand(n, K, 3))


@pytest.mark.slow
def test_the_fit_recovers_known_harmonics_and_rotations(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    sh = torch.randn(16, 3, generator=rng) * 0.1
    anchors = make_anchors(3)
    anchors.offset = torch.zeros(3, K, 3)  # The decoder sees the direction to the anchor, the fit that to the Gaussian.
    around = F.normalize(torch.randn(60, 3, generator=rng, dtype=torch.float64)) * 5
    seen_from = [replace(nadir_camera(str(i), 0, 0), rotation=_towards(c), translation=-_towards(c) @ c)
                 for i, c in enumerate(around)]  # fmt: skip
    decoder = KnownColors(sh)
    seen = contributions(anchors, decoder, seen_from)
    chosen = torch.tensor([0, K, 2 * K])
    assert bool((seen.total[chosen] > 0).all())
    monkeypatch.setattr(fitting, "RIDGE", 0.0)
    splats = fit(anchors, decoder, seen_from, seen, chosen, 3)
    for found in torch.cat([splats.sh_dc, splats.sh_rest], dim=1):
        torch.testing.assert_close(found, sh, rtol=0, atol=1e-3)  # The mean pulls a little.
    wanted = F.normalize(torch.tensor([0.8, 0.6, 0.0, 0.0]), dim=0)
    torch.testing.assert_close((F.normalize(splats.rotation) @ wanted).abs(), torch.ones(3))
    torch.testing.assert_close(splats.opacity.sigmoid(), torch.full((3, 1), 0.4))
    bound = anchors.scales[:3, 3:].detach()
    torch.testing.assert_close(splats.scales.detach(), bound * torch.tensor([0.0, 0.5, 1.0]).sigmoid())


def _towards(center: Tensor) -> Tensor:
    """World to camera of a camera at ``center`` that looks at the origin."""
    z = -center / center.norm()
    x = F.normalize(torch.linalg.cross(z, torch.tensor([0.3, 0.5, 0.8], dtype=z.dtype)), dim=0)
    return torch.stack([x, torch.linalg.cross(z, x), z])


def test_directions_that_nothing_was_seen_from_get_the_mean_colour() -> None:
    """Seen from one direction alone, a Gaussian has that colour from everywhere."""
    anchors, decoder = make_anchors(30), make_decoder()
    splats = bake(anchors, decoder, [nadir_camera("0.png", 0.0, 0.0)])
    assert float(splats.sh_rest.detach().abs().max()) < 1e-3


def test_left_out_offsets_change_nothing() -> None:
    anchors, decoder = make_anchors(), make_decoder()
    seen = contributions(anchors, decoder, cameras())
    hidden = seen.total == 0
    assert 0 < int(hidden.sum()) < len(hidden)
    assert torch.equal(choose(seen), (~hidden).nonzero()[:, 0])
    for camera in cameras():
        decoded = decode_view(anchors, decoder, camera)
        rest = draw(others(decoded, hidden, K), camera, BLACK).image
        assert float((rest - draw(decoded.gaussians, camera, BLACK).image).detach().abs().max()) < 2 * FAINT


def test_those_that_contribute_most_are_kept() -> None:
    anchors, decoder = make_anchors(), make_decoder()
    seen = contributions(anchors, decoder, cameras())
    chosen = choose(seen, 50)
    assert len(chosen) == 50 and bool((chosen.diff() > 0).all())
    rest = seen.total.clone()
    rest[chosen] = 0
    assert float(seen.total[chosen].min()) >= float(rest.max())
    among = torch.arange(len(seen.total)) < 100
    assert int(choose(seen, None, among).max()) < 100
    assert len(bake(anchors, decoder, cameras(), max_gaussians=50)) == 50


@pytest.mark.slow
def test_parts_give_what_one_part_gives() -> None:
    anchors, decoder = make_anchors(), make_decoder()
    seen = contributions(anchors, decoder, cameras())
    chosen = choose(seen)
    ((_, whole),) = bake_parts(anchors, decoder, cameras(), seen, chosen, sh_degree=3)
    parts = list(bake_parts(anchors, decoder, cameras(), seen, chosen, sh_degree=3, part=37))
    assert torch.equal(torch.cat([offsets for offsets, _ in parts]), chosen)
    joined = Splats.cat([splats for _, splats in parts]).rows()
    for name, rows in whole.rows().items():
        torch.testing.assert_close(joined[name].abs(), rows.detach().abs(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(whole.position.detach(), means_of(anchors, chosen))


def test_nothing_in_view_bakes_to_nothing() -> None:
    splats = bake(make_anchors(), make_decoder(), [nadir_camera("away.png", 500.0, 500.0)], sh_degree=2)
    assert len(splats) == 0 and splats.sh_degree == 2


def test_cameras_between_are_on_the_way_to_a_neighbour() -> None:
    pair = [nadir_camera("a", 0, 0), nadir_camera("b", 2, 0)]
    between = Between(pair, torch.Generator().manual_seed(0))
    drawn = [between.draw(0) for _ in range(5)]
    assert all(0 < float(camera.center[0]) < 2 and abs(float(camera.center[1])) < 1e-12 for camera in drawn)
    assert len({float(camera.center[0]) for camera in drawn}) == 5
    turned = replace(pair[1], rotation=_towards(torch.tensor([1.0, 0.2, 2.0], dtype=torch.float64)))
    turned = replace(turned, translation=-turned.rotation @ pair[1].center)
    rotation = Between([pair[0], turned], torch.Generator().manual_seed(0)).draw(0).rotation
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64))
    assert float(torch.linalg.det(rotation)) == pytest.approx(1)
    opposite = replace(pair[1], rotation=torch.eye(3, dtype=torch.float64))
    alone = Between([pair[0], opposite], torch.Generator().manual_seed(0))
    assert alone.draw(0) is pair[0]


def test_row_adam_is_adam_for_rows_that_every_step_shows() -> None:
    splats, plain = random_splats(20), random_splats(20)
    mine = RowAdam(splats.rows())
    rates = dict.fromkeys(Splats.LEARNABLE, 0.01)
    theirs = torch.optim.Adam(plain.rows().values(), lr=0.01, betas=BETAS, eps=EPS)
    index, before = torch.arange(15), splats.position[15:].detach().clone()
    for _ in range(4):
        leaves = mine.leaves(index)
        sum((leaf.square() * (leaf + 1)).sum() for leaf in leaves.values()).backward()
        mine.step(index, leaves, rates)
        theirs.zero_grad()
        sum((row.square() * (row + 1)).sum() for row in plain.rows().values()).backward()
        theirs.step()
    for name, row in splats.rows().items():
        torch.testing.assert_close(row[:15].detach(), plain.rows()[name][:15].detach())
    assert torch.equal(splats.position[15:].detach(), before)


def _teaching(anchors: Anchors, decoder: GaussianDecoder) -> Teaching:
    renders = {camera.name: render_image(anchors, decoder, camera, BLACK) for camera in cameras()}
    return Teaching(anchors, decoder, cameras(), BLACK, lambda name: TargetImage(renders[name]))


@pytest.mark.slow
def test_refining_brings_the_bake_closer_to_the_model() -> None:
    anchors, decoder = make_anchors(), make_decoder()
    for name in HEADS:
        getattr(decoder, name)[0].weight[:, 8:] *= 6  # Opacity, sizes and rotations depend on the view as well.
    baked = bake(anchors, decoder, cameras(), sh_degree=1)
    before = {name: rows.detach().clone() for name, rows in baked.rows().items()}
    refined = refine(baked, _teaching(anchors, decoder), 60)
    assert len(refined) == len(baked)
    assert all(torch.equal(rows, before[name]) for name, rows in baked.rows().items())

    def error(splats: Splats) -> float:
        new = [nadir_camera("new", 0.7, 0.2, 5.0), *cameras()]
        pairs = [(image_of(splats, camera), render_image(anchors, decoder, camera, BLACK)) for camera in new]
        return float(torch.stack([(a - b).square().mean() for a, b in pairs]).mean())

    assert error(refined) < 0.7 * error(baked)


def test_a_part_is_refined_beside_the_rest_of_the_model() -> None:
    """With the rest of the model around it, a part that equals the model's stays what it is, nearly."""
    anchors, decoder = make_anchors(), make_decoder(view_dependent=False)
    seen = contributions(anchors, decoder, cameras())
    part = choose(seen)[:200]
    splats = fit(anchors, decoder, cameras(), seen, part, 0)
    hidden = torch.zeros(len(seen.total), dtype=torch.bool)
    hidden[part] = True
    refined = refine(splats, _teaching(anchors, decoder), 6, hidden=hidden)
    for camera in cameras()[:4]:
        around = others(decode_view(anchors, decoder, camera), hidden, K)
        own = decode_view(refined, Harmonics(0), camera).gaussians
        image = draw(own, camera, BLACK, None, None, around).image
        assert float((image - render_image(anchors, decoder, camera, BLACK)).detach().abs().mean()) < 0.02


def test_views_that_show_nothing_teach_nothing() -> None:
    anchors, decoder = make_anchors(), make_decoder()
    baked = bake(anchors, decoder, cameras(), sh_degree=0)
    away = nadir_camera("away.png", 500.0, 500.0)
    teaching = replace(_teaching(anchors, decoder), cameras=[away])
    refined = refine(baked, teaching, 3)
    for name, rows in baked.rows().items():
        assert torch.equal(refined.rows()[name].detach(), rows.detach()), name


def test_splats_in_view_are_those_with_a_radius() -> None:
    splats, camera = random_splats(200), nadir_camera("a", 0, 0)
    gaussians = decode_view(splats, Harmonics(3), camera).gaussians
    radii = rasterize(gaussians, camera, BLACK).radii
    assert torch.equal(visible_splats(splats, camera), radii.nonzero()[:, 0])


@pytest.mark.parametrize(("degree", "bound"), [(0, 0.08), (2, 0.05)])
def test_a_shell_shows_the_background_in_every_direction_from_every_place(degree: int, bound: float) -> None:
    rng = torch.Generator().manual_seed(0)
    background = Background(2).requires_grad_(False)
    background.sh.data = 0.1 * torch.randn(9, 3, generator=rng)
    shell = background_shell(background, torch.tensor([3.0, 0.0, 1.0]).double(), 5.0, sh_degree=degree)
    for _ in range(6):
        turn = torch.linalg.qr(torch.randn(3, 3, generator=rng, dtype=torch.float64)).Q
        turn = turn * torch.linalg.det(turn)
        center = torch.tensor([3.0, 0.0, 1.0]).double() + 5 * (torch.rand(3, generator=rng).double() - 0.5)
        camera = Camera("a", 48, 36, 40.0, 40.0, 24.0, 18.0, turn, -turn @ center)
        output = draw(decode_view(shell, Harmonics(degree), camera).gaussians, camera, BLACK)
        wanted = background(pixel_directions(camera, BLACK)).T.view(3, 36, 48)
        assert bool((output.alpha > 0.985).all())
        assert bool(((output.image - wanted).abs() < bound).all())


def test_single_gaussians_far_away_do_not_decide_how_far_a_scene_reaches() -> None:
    seen_from = cameras()
    places = torch.tensor([[0.0, 0, 0], [9.0, 0, 0], [5000.0, 0, 0]])
    middle, reach = reach_of(places, torch.tensor([1e4, 1e3, 1.0]), seen_from)
    assert reach == pytest.approx(float((torch.tensor([9.0, 0, 0]) - middle).norm()))
    _, nearer = reach_of(torch.zeros(1, 3), torch.ones(1), seen_from)
    assert nearer >= max(float((camera.center - middle).norm()) for camera in seen_from)
