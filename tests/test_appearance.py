"""Colour corrections of images: their formula, their mean (the pin), and that ranks and resume change no bit."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import (
    BASE,
    CPU,
    SETTINGS,
    Runs,
    assert_same_bits,
    make_config,
    model_of,
    run_ranks,
    train,
    write_table,
)
from tiny_scene import SIZE, write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.data.images import read_image, write_png
from momentum_gs.data.scene import load_scene
from momentum_gs.data.views import Views
from momentum_gs.model.appearance import (
    AppearanceTable,
    correct,
    load_appearance,
    roughness,
    save_appearance,
    sliced,
)
from momentum_gs.model.image_table import pin, rows_of
from momentum_gs.model.io import load_model
from momentum_gs.render.score import score_views
from momentum_gs.train.corrections.appearance import NO_APPEARANCE, SharedAppearance, make_appearance
from momentum_gs.train.decoders.per_block import PerBlockDecoders
from momentum_gs.train.decoders.shared import SharedDecoder
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training

pytestmark = pytest.mark.usefixtures("one_thread")

AFFINE = "appearance.model=affine"
NAMES = ("a.png", "b.png", "c.png")


def pixels(path: Path) -> torch.Tensor:
    return read_image(path, *SIZE).float() / 255


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every other image is half as bright; one of each kind is held out, with neighbours on all sides."""
    folder = write_tiny_scene(tmp_path_factory.mktemp("tiny"))
    for path in sorted((folder / "images").iterdir())[::2]:
        write_png(path, pixels(path) * 0.5)
    (folder / "sparse" / "0" / "test.txt").write_text("005.png\n010.png\n")
    return folder


@pytest.fixture(scope="module")
def runs(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(scene_folder, tmp_path_factory.mktemp("runs"))


def table_of(out: Path) -> AppearanceTable:
    (folder,) = (out / "point_cloud").glob("iteration_*")
    table = load_appearance(folder)
    assert table is not None
    return table


def everything(out: Path) -> dict[str, torch.Tensor]:
    table = table_of(out)
    return model_of(out) | {"rows": table.rows, "shown": table.shown}


def learner(rows: torch.Tensor | None = None, names: Sequence[str] = NAMES) -> SharedAppearance:
    config = Config()
    config = replace(config, appearance=replace(config.appearance, model="affine"))
    start = torch.zeros(len(names), 3, 4) if rows is None else rows
    table = AppearanceTable(tuple(names), start, torch.zeros(len(names), dtype=torch.bool))
    return SharedAppearance(config, table, CPU, 1.0)


def step(appearance: SharedAppearance, shown: dict[str, float], k: int | None = None) -> None:
    """One update, with one image for each block, whose loss asks for each image to be brighter by its number."""
    appearance.begin_step(True, k or len(shown))
    for position, (name, wanted) in enumerate(shown.items()):
        image = torch.full((3, 2, 2), 0.5)
        (appearance.correct(image, name) - image - wanted).square().sum().backward()
        appearance.take_gradient(position)
    appearance.finish_step()


def test_a_row_of_zeros_changes_nothing_and_an_affine_map_is_itself() -> None:
    image = torch.rand(3, 5, 7)
    assert torch.equal(correct(image, torch.zeros(3, 4)), image)
    matrix = torch.randn(3, 4)
    wanted = torch.einsum("cd,dhw->chw", matrix[:, :3], image) + matrix[:, 3, None, None]
    torch.testing.assert_close(correct(image, matrix - torch.eye(3, 4)), wanted)


def test_gradients_reach_the_render_and_the_row() -> None:
    image = torch.rand(3, 2, 3, dtype=torch.float64, requires_grad=True)
    row = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(correct, (image, row))


def test_the_pin_is_a_projection() -> None:
    rows, shown = torch.randn(6, 3, 4), torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    pinned = pin(rows, shown)
    assert pinned[shown].mean(0).abs().max() < 1e-6
    assert torch.equal(pinned[~shown], rows[~shown])
    torch.testing.assert_close(pin(pinned, shown), pinned)
    # Differences between the images that were shown do not change.
    torch.testing.assert_close(pinned[0] - pinned[2], rows[0] - rows[2])
    assert torch.equal(pin(rows, torch.zeros(6, dtype=torch.bool)), rows)


def test_the_row_of_an_image_that_is_not_shown_changes_by_the_pin_alone() -> None:
    appearance = learner()
    step(appearance, {"a.png": 1.0})
    assert not appearance.table.rows.any(), "one image alone is the mean: its exposure is the model's"
    step(appearance, {"b.png": 1.0})
    before = appearance.table.rows.clone()
    assert torch.equal(before[2], torch.zeros(3, 4)), "never shown"
    step(appearance, {"b.png": 1.0})
    moved = appearance.table.rows - before
    torch.testing.assert_close(moved[0], -moved[1])
    assert not moved[2].any()
    assert appearance._steps.tolist() == [1, 2, 0]


def test_rows_move_as_torch_adam_moves_them() -> None:
    """An image that is alone in its steps moves as a parameter with its own torch.optim.Adam does."""
    appearance = learner()
    own = torch.zeros(3, 4, requires_grad=True)
    adam = torch.optim.Adam([own], lr=0.01, eps=1e-15)
    for i in range(5):
        row = appearance.table.rows[0].clone()
        gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(i))
        before = own.detach().clone()
        own.grad = gradient.clone()
        adam.param_groups[0]["lr"] = appearance._rate(i)
        adam.step()
        appearance._move(torch.tensor([0]), gradient[None])
        appearance._updates += 1
        torch.testing.assert_close(appearance.table.rows[0] - row, own.detach() - before, rtol=1e-4, atol=1e-7)


def test_blocks_that_show_one_image_move_it_along_the_sum() -> None:
    both, once = learner(), learner()
    both.begin_step(True, 3)
    for position, name in enumerate(("a.png", "b.png", "a.png")):
        (both.correct(torch.full((3, 2, 2), 0.5), name).sum() * (position + 1)).backward()
        both.take_gradient(position)
    both.finish_step()
    once.begin_step(True, 2)
    for position, (name, weight) in enumerate({"a.png": 4.0, "b.png": 2.0}.items()):
        (once.correct(torch.full((3, 2, 2), 0.5), name).sum() * weight).backward()
        once.take_gradient(position)
    once.finish_step()
    assert_same_bits(both.to_tensors(), once.to_tensors())


def test_the_mean_correction_is_the_identity_and_the_model_learns_the_common_part() -> None:
    appearance, brightness = learner(), {"a.png": 0.7, "b.png": 0.4, "c.png": 0.4}
    model = torch.full((3, 1, 1), 0.2, requires_grad=True)
    descent = torch.optim.SGD([model], lr=0.05)
    for i in range(600):
        name = NAMES[i * 7 % 3]
        appearance.begin_step(True, 1)
        (appearance.correct(model, name) - brightness[name]).square().sum().backward()
        appearance.take_gradient(0)
        appearance.finish_step()
        descent.step()
        descent.zero_grad()
        assert appearance.table.rows[appearance.table.shown].mean(0).abs().max() < 1e-6
    seen = {name: float(appearance.table.correct(model.detach(), name).mean()) for name in NAMES}
    assert seen == pytest.approx(brightness, abs=0.02)
    assert float(model.detach().mean()) == pytest.approx(0.5, abs=0.02)


def test_a_fixed_table_takes_no_gradient() -> None:
    appearance = learner(torch.randn(3, 3, 4))
    appearance.begin_step(False, 1)
    image = torch.rand(3, 2, 2, requires_grad=True)
    appearance.correct(image, "a.png").sum().backward()
    assert appearance._shown is not None and appearance._shown[1].grad is None
    assert image.grad is not None
    assert appearance.gradients == ()


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    assert load_appearance(tmp_path) is None
    table = AppearanceTable(("ä/1.jpg", "b.jpg"), torch.randn(2, 3, 4), torch.tensor([True, False]))
    save_appearance(tmp_path, table)
    found = load_appearance(tmp_path)
    assert found is not None and found.names == table.names
    assert torch.equal(found.rows, table.rows) and torch.equal(found.shown, table.shown)
    image = torch.rand(3, 2, 2)
    assert torch.equal(found.correct(image, "other.jpg"), image)
    (tmp_path / "appearance.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="not a table of corrections"):
        load_appearance(tmp_path)


def test_rows_go_by_name() -> None:
    rows = pin(torch.randn(3, 3, 4), torch.ones(3, dtype=torch.bool))
    whole = AppearanceTable(NAMES, rows, torch.ones(3, dtype=torch.bool))
    table = rows_of(whole, ["0.png", "c.png", "b.png", "a.png"])
    assert torch.equal(table.rows[0], torch.zeros(3, 4))
    torch.testing.assert_close(table.rows[1:], rows.flip(0))
    assert table.shown.tolist() == [False, True, True, True]


def coarse(scene_folder: Path, out: Path, *overrides: str) -> Config:
    return make_config(scene_folder, out, "stage=coarse", "steps=400", "optim.lr_steps=400", *overrides)


def train_coarse(config: Config) -> None:
    Training(config, load_scene(config.scene), None, LocalComm(), CPU).run(Observers())


@pytest.fixture(scope="module")
def learnt(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a coarse run that learnt the exposures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("learnt")
    settings = [*SETTINGS, "stage=coarse", "steps=400", "optim.lr_steps=400", "appearance.lr=[0.03,0.03]", AFFINE]
    assert main(["train", *BASE, "-s", str(scene_folder), "-m", str(out), *settings]) == 0
    torch.set_num_threads(threads)
    return out


@pytest.mark.slow
def test_exposures_are_recovered_and_held_out_views_have_the_mean(scene_folder: Path, learnt: Path) -> None:
    table = table_of(learnt)
    grey = torch.full((3, 1, 1), 0.4)
    bright = {name: float(table.correct(grey, name).mean()) for name in table.names}
    dark = [v for name, v in bright.items() if int(name[:3]) % 2 == 0]
    light = [v for name, v in bright.items() if int(name[:3]) % 2 == 1]
    assert max(dark) < min(light)
    ratio = (sum(light) / len(light)) / (sum(dark) / len(dark))
    assert 1.75 < ratio < 2.25, ratio
    assert main(["render", str(learnt), "--split", "both"]) == 0
    # The model has the mean exposure of the training images, half of which are dark.
    for path in (learnt / "test/ours_400/renders").iterdir():
        truth = pixels(learnt / "test/ours_400/gt" / path.name) / (0.5 if int(path.stem) % 2 == 0 else 1)
        assert float(pixels(path).mean() / truth.mean()) == pytest.approx(0.75, rel=0.05)
    # Renders of training views are what the loss saw.
    for path in (learnt / "train/ours_400/renders").iterdir():
        truth = pixels(learnt / "train/ours_400/gt" / path.name)
        assert float(pixels(path).mean() / truth.mean()) == pytest.approx(1, rel=0.05)
    records = {s: json.loads((learnt / s / "ours_400/render.json").read_text()) for s in ("train", "test")}
    assert (records["train"]["corrected"], records["test"]["corrected"]) == (True, False)


@pytest.mark.slow
def test_scores_of_training_views_are_of_corrected_renders(scene_folder: Path, learnt: Path) -> None:
    """Otherwise a dark image would raise the weight of its blocks (eq. 7)."""
    scene = load_scene(coarse(scene_folder, learnt).scene)
    model, decoder = load_model(learnt / "point_cloud/iteration_400/point_cloud.ply")
    with Views(scene, 1 << 24, CPU) as views:
        plain = score_views(model, decoder, scene.train, views, torch.zeros(3))
        corrected = score_views(model, decoder, scene.train, views, torch.zeros(3), table_of(learnt))
    assert plain is not None and corrected is not None
    assert corrected.psnr > plain.psnr + 3


class Doubling(LocalComm):
    """Stands for two ranks that always send the same."""

    def __init__(self) -> None:
        super().__init__()
        self.world_size, self.messages = 2, 0

    def all_reduce_sum_(self, flat: torch.Tensor) -> None:
        self.messages += 1
        flat *= 2


def test_one_message_a_step_with_the_decoders_gradient_or_alone() -> None:
    comm, one, other = Doubling(), torch.ones(2, 3), torch.arange(4.0)
    comm.all_reduce_sums_([one, other])
    assert torch.equal(one, torch.full((2, 3), 2.0)) and torch.equal(other, 2 * torch.arange(4.0))
    comm.all_reduce_sums_([])
    assert comm.messages == 1
    for decoders, appearance, wanted in (
        (SharedDecoder(Config(), CPU, 1.0), learner(), 1),
        (SharedDecoder(Config(), CPU, 1.0), NO_APPEARANCE, 1),
        (PerBlockDecoders(), learner(), 1),
        (PerBlockDecoders(), NO_APPEARANCE, 0),
    ):
        comm.messages = 0
        decoders.begin_step(True, 1)
        appearance.begin_step(True, 1)
        decoders.finish_step(comm, *appearance.gradients)
        assert comm.messages == wanted


@pytest.mark.slow
def test_blocks_start_from_the_coarse_runs_corrections(scene_folder: Path, learnt: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path, AFFINE, f"partition.coarse={learnt}")
    names = [camera.name for camera in load_scene(config.scene).train]
    found = make_appearance(config, names, CPU, 1.0, fresh=True)
    assert found.table is not None
    torch.testing.assert_close(found.table.rows, table_of(learnt).rows)
    grids = make_config(scene_folder, tmp_path, "appearance.model=bilateral", f"partition.coarse={learnt}")
    with pytest.raises(UserError, match=r"corrections of shape \(3, 4\), expected \(12, 8, 16, 16\)"):
        make_appearance(grids, names, CPU, 1.0, fresh=True)
    alone = make_appearance(make_config(scene_folder, tmp_path, AFFINE), names, CPU, 1.0, fresh=True)
    assert alone.table is not None and not alone.table.rows.any()
    assert make_appearance(make_config(scene_folder, tmp_path), names, CPU, 1.0, fresh=True) is NO_APPEARANCE


MODES = {
    "shared": (),
    "bilateral": ("appearance.model=bilateral",),
    "per_block": (
        *("blocks.decoder=per_block", "teacher.enabled=false", "blocks.boundary_finetuning=false"),
        "blocks.decoder_freeze_rounds=0",
    ),
    "gaussians": (
        *("model.primitive=gaussians", "loss.volume=0", "teacher.enabled=false", "gaussians.from_coarse=false"),
        *("blocks.boundary_finetuning=false", "blocks.offset_clamping=false", "blocks.decoder_freeze_rounds=0"),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "ranks"), [("shared", 2), ("shared", 3), ("per_block", 2), ("gaussians", 2), ("bilateral", 2)]
)
def test_ranks_do_not_change_model_or_corrections(
    scene_folder: Path, runs: Runs, tmp_path: Path, mode: str, ranks: int
) -> None:
    overrides = [AFFINE, "blocks.active=3", *MODES[mode]]
    one = runs.whole(*overrides)
    run_ranks(scene_folder, tmp_path, ranks, *overrides)
    assert_same_bits(everything(one), everything(tmp_path))
    assert table_of(one).rows.any()


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoint", "ranks"), [(37, 1), (37, 2), (97, 1)])
def test_resume_is_bit_for_bit(scene_folder: Path, runs: Runs, tmp_path: Path, checkpoint: int, ranks: int) -> None:
    # Scores, and so the weights of blocks, are of corrected renders: they depend on the corrections too.
    whole, parts = runs.whole(AFFINE), shutil.copytree(runs.interrupted(checkpoint, AFFINE), tmp_path / "parts")
    if ranks == 1:
        train(make_config(scene_folder, parts, AFFINE, f"log.checkpoint_every={checkpoint}"), resume=True)
    else:
        run_ranks(scene_folder, parts, ranks, AFFINE, "--resume")
    assert_same_bits(everything(whole), everything(parts))


@pytest.mark.slow
def test_corrections_are_fixed_while_the_decoder_is_frozen(scene_folder: Path, runs: Runs, tmp_path: Path) -> None:
    out = shutil.copytree(runs.whole(AFFINE), tmp_path / "run")
    before = table_of(out)
    config = make_config(scene_folder, out, AFFINE, "steps=90")
    Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU, only=[1]).run(Observers())
    after = load_appearance(out / "point_cloud" / "iteration_90")
    assert after is not None and torch.equal(after.rows, before.rows)


def test_a_checkpoint_of_other_images_is_refused(scene_folder: Path, tmp_path: Path) -> None:
    config = coarse(scene_folder, tmp_path, AFFINE, "steps=20", "log.checkpoint_every=10")
    train_coarse(config)
    scene = load_scene(config.scene)
    fewer = replace(scene, train=scene.train[1:])
    with pytest.raises(UserError, match=r"corrections of 14 images, expected those of the 13 training images"):
        Training(config, fewer, None, LocalComm(), CPU, resume=True)
    off = coarse(scene_folder, tmp_path, "steps=20", "log.checkpoint_every=10")
    with pytest.raises(UserError, match=r"appearance.model = 'affine' there, 'none' now"):
        Training(off, scene, None, LocalComm(), CPU, resume=True)


@pytest.mark.slow
def test_off_writes_and_changes_nothing(scene_folder: Path, tmp_path: Path) -> None:
    """With learning rates of zero the corrections stay the identity, and the model is that without corrections."""
    train(make_config(scene_folder, tmp_path / "off"))
    train(make_config(scene_folder, tmp_path / "still", AFFINE, "appearance.lr=[0,0]"))
    assert_same_bits(model_of(tmp_path / "off"), model_of(tmp_path / "still"))
    assert not list((tmp_path / "off").rglob("appearance*"))
    assert list((tmp_path / "still").rglob("appearance*"))


def test_a_constant_grid_is_its_affine_map() -> None:
    image, row = torch.rand(3, 9, 11), torch.randn(3, 4)
    grid = row.flatten()[:, None, None, None].expand(12, 8, 16, 16)
    torch.testing.assert_close(correct(image, grid), correct(image, row))
    assert float(roughness(grid)) == 0
    assert torch.equal(correct(image, torch.zeros(12, 8, 16, 16)), image)


def test_a_grid_is_read_at_place_and_brightness() -> None:
    level, y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (8, 16, 16)), indexing="ij")
    image = torch.rand(3, 9, 11)
    found = sliced(torch.stack([x, y, level]), image)
    torch.testing.assert_close(found[0], ((torch.arange(11) + 0.5) / 11).expand(9, 11))
    torch.testing.assert_close(found[1], ((torch.arange(9) + 0.5) / 9)[:, None].expand(9, 11))
    torch.testing.assert_close(found[2], 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2])


def test_gradients_reach_the_render_and_the_grid() -> None:
    image = torch.rand(3, 2, 3, dtype=torch.float64, requires_grad=True)
    grid = torch.randn(12, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(correct, (image, grid))
