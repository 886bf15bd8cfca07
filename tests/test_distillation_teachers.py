"""Teachers that differ: dropout and perturbation of Gaussians, their clocks, and that neither depends on the ranks."""

from pathlib import Path

import pytest
import torch
from splat_scene import random_splats
from test_gaussians_training import GAUSSIANS
from tiny_run import CPU, assert_same_bits, interrupt, make_config, model_of, run_ranks, train
from tiny_scene import nadir_camera, write_tiny_scene

from momentum_gs.config.load import load_config
from momentum_gs.config.schema import DistillConfig
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.seeds import keyed_uniform
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.view import render_view
from momentum_gs.train.distillation.dropout import dropout_rate, opacity_factors
from momentum_gs.train.distillation.perturbation import perturb, perturbs, turned
from momentum_gs.train.growth.report import Draw
from momentum_gs.train.growth.splats import SplatStats

VARIED = (
    *GAUSSIANS, "gaussians.from_coarse=false", "distill.noise=0.3", "distill.noise_every=7", "distill.dropout=0.3",
    "distill.from_step=3", "distill.until=40",
)  # fmt: skip


def keyed(*key: int | str) -> Draw:
    return lambda level, index: keyed_uniform(index, *key)


def test_the_dropout_schedule_at_its_ends_and_between() -> None:
    paper = DistillConfig(dropout=0.2)
    steps = {499: 0.0, 500: 0.0, 7750: 0.1, 15_000: 0.2, 15_001: 0.0, 30_000: 0.0}
    assert {step: dropout_rate(step, paper) for step in steps} == pytest.approx(steps)
    code = DistillConfig(dropout=0.2, dropout_every=1000, from_step=15_000, until=25_000)
    assert [step for step in range(14_000, 26_001) if dropout_rate(step, code)] == list(range(16_000, 25_001, 1000))
    assert dropout_rate(10_000, DistillConfig()) == 0


def test_the_clocks_are_the_papers_at_its_length_and_shares_of_any_other() -> None:
    for steps, first, last in ((30_000, 500, 15_000), (600, 10, 300)):
        for name in ("perturbed", "dropout"):
            config = load_config([f"distill/{name}"], [f"steps={steps}"]).distill
            assert (config.from_step, config.until) == (first, last)
        assert load_config(["distill/perturbed"], [f"steps={steps}"]).distill.noise_every == first
    plain = load_config(["distill/standard"]).distill
    assert (plain.noise, plain.dropout) == (0, 0)
    config = DistillConfig(noise=0.1)
    assert [step for step in range(30_001) if perturbs(step, config)] == list(range(500, 15_001, 500))


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_dropout_keeps_the_expectation_of_every_opacity(rate: float) -> None:
    opacity = torch.rand(50, 1, generator=torch.Generator().manual_seed(0)) * 0.98 + 0.01
    draws = 1000
    factors = torch.stack([opacity_factors(opacity, rate, keyed("test", step)) for step in range(draws)])
    shown = factors * opacity
    assert float(shown.max()) <= 1 + 1e-6
    # The variance of a factor is (1 - p) / p with p = max(1 - rate, opacity) the probability of being kept.
    kept = opacity.clamp_min(1 - rate)
    error = opacity * ((1 - kept) / kept / draws).sqrt()
    assert bool(((shown.mean(dim=0) - opacity).abs() < 5 * error + 1e-6).all())
    assert float((factors > 0).float().mean()) == pytest.approx(float(kept.mean()), abs=0.01)


@pytest.mark.slow
def test_the_expectation_of_the_render_is_the_render_without_dropout() -> None:
    splats, camera = random_splats(40), nadir_camera("a.png", 0, 0)
    # The rasterizer has no alpha above 0.99, so none may reach that when it is divided by the probability.
    splats.opacity.data.clamp_(max=0.5)
    with torch.no_grad():
        whole = render_view(splats, Harmonics(0), camera, torch.zeros(3))
        total = torch.zeros_like(whole.output.image)
        draws = 600
        for step in range(draws):
            factors = opacity_factors(splats.opacity.sigmoid(), 0.3, keyed("render", step))
            view = render_view(splats, Harmonics(0), camera, torch.zeros(3), opacity_factors=factors)
            assert not view.output.radii[factors[:, 0] == 0].any(), "what is dropped does not count as drawn"
            total += view.output.image
    difference = total / draws - whole.output.image
    assert float(whole.output.alpha.max()) > 0.5
    assert abs(float(difference.mean())) < 2e-3 and float(difference.square().mean().sqrt()) < 0.02


def test_perturbation_touches_only_what_it_may() -> None:
    splats = random_splats(200)
    before = {name: row.detach().clone() for name, row in splats.rows().items()}
    chosen = torch.arange(200) % 3 == 0
    perturb(splats, chosen, 0.1, keyed("noise"))
    for name, row in splats.rows().items():
        assert torch.equal(row.detach()[~chosen], before[name][~chosen]), name
        same = torch.equal(row.detach()[chosen], before[name][chosen])
        assert same == (name in ("sh_dc", "sh_rest")), name
    largest = before["log_scale"][chosen].exp().amax(dim=1, keepdim=True)
    moved = (splats.position.detach() - before["position"])[chosen] / largest
    assert float(moved.std()) == pytest.approx(0.1, rel=0.15) and abs(float(moved.mean())) < 0.03
    # Six numbers, of which three turn: about 0.1 radians about each axis.
    turns = quat_to_matrix(splats.rotation.detach()[chosen]) @ quat_to_matrix(before["rotation"][chosen]).mT
    angle = ((turns.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2).clamp(-1, 1).acos()
    assert 0.05 < float(angle.mean()) < 0.3


def test_what_is_perturbed_depends_on_key_and_row_alone() -> None:
    one, few = random_splats(200), random_splats(200)
    chosen = torch.zeros(200, dtype=torch.bool)
    chosen[17] = True
    perturb(one, torch.ones(200, dtype=torch.bool), 0.1, keyed("noise"))
    perturb(few, chosen, 0.1, keyed("noise"))
    for name, row in one.rows().items():
        assert torch.allclose(row[17], few.rows()[name][17]), name


def test_noise_on_six_numbers_gives_rotations() -> None:
    rotation = quat_to_matrix(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)))
    noise = 0.3 * torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    found = turned(rotation, noise)
    assert torch.allclose(found @ found.mT, torch.eye(3).expand_as(found), atol=1e-5)
    assert torch.allclose(torch.linalg.det(found), torch.ones(30), atol=1e-5)
    assert torch.allclose(turned(rotation, torch.zeros(30, 6)), rotation, atol=1e-6)


def test_the_gradient_of_the_statistics_is_a_mean_over_views() -> None:
    stats = SplatStats(torch.tensor([[6.0], [0.0]]), torch.tensor([[3.0], [0.0]]), torch.zeros(2, 1))
    assert stats.gradient.tolist() == [2.0, 0.0]


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"), points=400)


@pytest.fixture(scope="module")
def whole(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(make_config(scene_folder, out, *VARIED), device=CPU)
    torch.set_num_threads(threads)
    return model_of(out)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_resumed_teacher_is_bit_for_bit_the_uninterrupted_one(
    scene_folder: Path, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    config = make_config(scene_folder, tmp_path, *VARIED, "log.checkpoint_every=25")
    interrupt(config, 33)
    train(config, resume=True)
    assert_same_bits(model_of(tmp_path), whole)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_ranks_do_not_change_a_teacher(scene_folder: Path, whole: dict[str, torch.Tensor], tmp_path: Path) -> None:
    assert_same_bits(run_ranks(scene_folder, tmp_path, 2, *VARIED), whole)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_each_variation_changes_the_model(
    scene_folder: Path, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    name = "point_cloud_block0.position"
    for without in ("distill.noise=0", "distill.dropout=0"):
        out = tmp_path / without
        train(make_config(scene_folder, out, *VARIED, without))
        other = model_of(out)
        assert other[name].shape != whole[name].shape or not torch.equal(other[name], whole[name])


def test_splats_have_no_other_rows_than_the_perturbed_and_the_colours() -> None:
    assert set(Splats.LEARNABLE) == {"position", "sh_dc", "sh_rest", "log_scale", "rotation", "opacity"}
