"""Training modes: what each of configs/modes changes, and blocks with a decoder each."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import (
    CPU,
    assert_same_bits,
    interrupt,
    make_config,
    model_of,
    run_ranks,
    train,
    write_table,
)
from tiny_scene import write_tiny_scene

from momentum_gs.cli.main import main
from momentum_gs.config.load import dump_config, load_config
from momentum_gs.config.schema import Config, GaussiansConfig
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.image import psnr, ssim
from momentum_gs.core.types import TargetImage
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.decoder_bank import DecoderBank
from momentum_gs.model.io import load_model
from momentum_gs.render.view import render_image
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.blocks.running_score import RunningScore
from momentum_gs.train.blocks.views import initial_points, plan_blocks
from momentum_gs.train.events import BlocksMeasured, Event, Observers
from momentum_gs.train.loop import Training

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = Path(__file__).parents[1] / "configs"
MODES = ("single", "independent", "parallel", "alternating", "momentum", "full")
OWN = (
    "blocks.decoder=per_block", "teacher.enabled=false", "weighting.enabled=false", "blocks.boundary_finetuning=false",
    "blocks.decoder_freeze_rounds=0",
    # Offsets are also clamped whenever a round ends, and rounds depend on k.
    "blocks.offset_clamping=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def independent(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with per-block decoders, k = 2 of 4."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("independent")
    train(make_config(scene_folder, out, *OWN))
    torch.set_num_threads(threads)
    return out


@pytest.mark.parametrize("scene", [*sorted(CONFIGS.glob("scenes/*.yaml")), CONFIGS / "demo.yaml"], ids=lambda p: p.stem)
def test_a_mode_sets_active_blocks_and_decoder(scene: Path) -> None:
    own = load_config(scene)
    found = {mode: load_config([scene, CONFIGS / "modes" / f"{mode}.yaml"]) for mode in MODES}
    # (teacher, weighting): the columns of Table 7.
    assert {mode: (c.teacher.enabled, c.weighting.enabled) for mode, c in found.items()} == {
        "single": (False, False), "independent": (False, False), "parallel": (False, False),
        "alternating": (False, False), "momentum": (True, False), "full": (True, True),
    }  # fmt: skip
    assert {mode for mode, c in found.items() if c.blocks.decoder == "per_block"} == {"independent"}
    assert found["single"].partition.dim == (1, 1, 1)
    assert found["parallel"].blocks.active == "all"
    for mode in ("independent", "alternating", "momentum", "full"):
        assert found[mode].blocks.active == own.blocks.active
        assert found[mode].partition == own.partition
    assert found["full"] == own, "the method as a whole is what a scene's file describes"


def test_gaussians_with_windows_have_the_rates_of_3dgs() -> None:
    """Those of ``modes/gaussians`` alone are lower, for blocks that have whole views (docs/lab_log.md)."""
    modes = [CONFIGS / "demo.yaml", CONFIGS / "modes/gaussians.yaml", CONFIGS / "modes/windows.yaml"]
    alone, together = (load_config(files).gaussians for files in (modes[:2], modes))
    usual = GaussiansConfig()
    assert (together.position_lr, together.scaling_lr) == (usual.position_lr, usual.scaling_lr)
    assert alone.position_lr < usual.position_lr and alone.scaling_lr < usual.scaling_lr


def test_later_files_win_and_the_stages_settings_too(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("steps: 5\nseed: 3\nstages: {coarse: {steps: 7}}\n")
    second.write_text("steps: 6\n")
    assert (load_config([first, second]).steps, load_config([first, second]).seed) == (6, 3)
    assert load_config([second, first]).steps == 5
    assert load_config([first, second], ["stage=coarse"]).steps == 7
    assert load_config([first, second], ["steps=9"]).steps == 9


@pytest.mark.parametrize(
    "setting", ["teacher.enabled=true", "blocks.boundary_finetuning=true", "blocks.decoder_freeze_rounds=1"]
)
def test_what_needs_a_shared_decoder_is_refused_without(setting: str) -> None:
    with pytest.raises(UserError, match=setting.split("=")[0] + r".*blocks\.decoder=per_block"):
        load_config(None, [*OWN, setting])
    # The coarse model has one decoder, so a config for blocks serves its stage too.
    assert not load_config(None, [*OWN, setting, "stage=coarse"]).per_block_decoders


@pytest.mark.slow
def test_independent_blocks_do_not_affect_each_other(scene_folder: Path, independent: Path, tmp_path: Path) -> None:
    """Which blocks train beside a block, and when, changes no bit of it."""
    train(make_config(scene_folder, tmp_path / "all", *OWN, "blocks.active=all"))
    assert_same_bits(model_of(independent), model_of(tmp_path / "all"))
    one_by_one = ("blocks.active=1", "blocks.schedule=sequential", "blocks.interval=20")
    train(make_config(scene_folder, tmp_path / "sequential", *OWN, *one_by_one))
    assert_same_bits(model_of(independent), model_of(tmp_path / "sequential"))


@pytest.mark.slow
def test_independent_decoders_differ_and_shared_ones_do_not(independent: Path) -> None:
    tensors = model_of(independent)
    heads = [tensors[f"decoder_block{block}.color.0.weight"] for block in range(4)]
    assert all(not torch.equal(heads[0], head) for head in heads[1:])
    assert not any(name.startswith("decoder.") for name in tensors), "there is one for all blocks"


@pytest.mark.slow
def test_independent_training_resumes_to_the_same_bits(scene_folder: Path, independent: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path, *OWN, "log.checkpoint_every=20")
    interrupt(config, 47)
    train(config, resume=True)
    assert_same_bits(model_of(independent), model_of(tmp_path))


@pytest.mark.slow
def test_independent_training_on_two_ranks_gives_the_same_bits(
    scene_folder: Path, independent: Path, tmp_path: Path
) -> None:
    assert_same_bits(model_of(independent), run_ranks(scene_folder, tmp_path, 2, *OWN))


@pytest.mark.slow
def test_a_merged_model_keeps_each_blocks_decoder(
    scene_folder: Path, independent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(scene_folder, independent, *OWN)
    (independent / "config.yaml").write_text(dump_config(config))
    assert main(["merge", str(independent)]) == 0
    folder = independent / "point_cloud" / "iteration_60"
    merged, bank = load_model(folder / "point_cloud.ply")
    assert isinstance(bank, DecoderBank)
    table = PartitionTable.load(folder / "partition.json")
    assert torch.equal(bank.block, table.cell_of(merged.position.detach().double()))
    camera, black = load_scene(config.scene).train[0], torch.zeros(3)
    for block in range(4):
        # The block's anchors in the merged model render as in the block's own files.
        alone, own = load_model(folder / f"point_cloud_block{block}.ply")
        inside = table.cell_of(alone.position.detach().double()) == block
        cropped = merged.subset(bank.block == block)
        of_block = DecoderBank(list(bank.decoders), torch.full((len(cropped),), block))
        assert torch.equal(
            render_image(alone.subset(inside), own, camera, black), render_image(cropped, of_block, camera, black)
        )
    assert main(["render", str(independent), "--device", "cpu"]) == 0
    assert main(["render", str(independent), "--blocks", "--device", "cpu"]) == 0
    assert main(["eval", str(independent), "--lpips", "none", "--device", "cpu"]) == 0
    assert "ours_60_blocks" in capsys.readouterr().out


def test_a_bank_of_equal_decoders_is_one_decoder() -> None:
    """In value and gradient, in any order of the anchors, and with a block that has none."""
    torch.manual_seed(0)
    one = GaussianDecoder(8, 3)
    copies = [GaussianDecoder(8, 3) for _ in range(3)]
    for copy in copies:
        copy.load_state_dict(one.state_dict())
    feature = torch.randn(20, 8, requires_grad=True)
    view = torch.nn.functional.normalize(torch.randn(20, 3)), torch.rand(20, 1)
    block = torch.tensor([2, 0] * 10)

    def gradient(decode: Callable) -> tuple[torch.Tensor, torch.Tensor]:
        heads = decode(feature, *view)
        total = torch.stack([(head * torch.linspace(-1, 1, head.numel()).view_as(head)).sum() for head in heads]).sum()
        (grad,) = torch.autograd.grad(total, feature)
        return heads.color, grad

    expected = gradient(one)
    found = gradient(DecoderBank(copies, block).at(torch.arange(20)))
    # Matrix products with another number of rows may round differently in the last bits.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_block_starts_from_the_same_decoder_as_all_others(scene_folder: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path, *OWN)
    scene = load_scene(config.scene)
    plan = plan_blocks(scene, write_table(config))
    states = [
        AnchorBlock.from_points(b, initial_points(scene, plan.train[b], config), plan.train[b], config, CPU)
        for b in (0, 3)
    ]
    first, last = (state.own.module.state_dict() for state in states if state.own is not None)
    assert_same_bits(first, last)


def test_a_running_score_is_the_mean_over_its_views() -> None:
    torch.manual_seed(0)
    truth, drawn = torch.rand(3, 3, 20, 20), torch.rand(3, 3, 20, 20)
    mask = (torch.rand(1, 20, 20) > 0.5).float()
    score = RunningScore()
    assert score.take() is None
    score.add(drawn[0], TargetImage(truth[0]))
    score.add(drawn[1] * 3 - 1, TargetImage(truth[1], mask))
    score.add(drawn[2], TargetImage(truth[2], torch.zeros(1, 20, 20)))  # Nothing in it counts.
    seen = (drawn[1] * 3 - 1).clamp(0, 1)
    pairs = [(drawn[0], truth[0], None), (seen, truth[1], mask)]
    expected = torch.tensor([[f(*pair) for f in (psnr, ssim)] for pair in pairs]).double().mean(0).tolist()
    # Float32 scores, summed in float64.
    assert score.take() == pytest.approx(expected, rel=1e-6)
    assert score.take() is None


class _Weights:
    def __init__(self) -> None:
        self.seen: list[BlocksMeasured] = []

    def on_event(self, event: Event) -> None:
        if isinstance(event, BlocksMeasured):
            self.seen.append(event)

    def close(self) -> None:
        pass


def _measured(config: Config, **more: bool) -> list[BlocksMeasured]:
    weights = _Weights()
    Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU, **more).run(Observers([weights]))
    return weights.seen


@pytest.mark.slow
def test_running_scores_weight_blocks_and_survive_an_interruption(scene_folder: Path, tmp_path: Path) -> None:
    settings = ("weighting.source=running", "weighting.every=10", "log.checkpoint_every=17")
    whole = _measured(make_config(scene_folder, tmp_path / "whole", *settings))
    assert len(whole) == 12, "every tenth of the 60 steps of four blocks, two at a time"
    assert max(whole[-1].weight.values()) > 1 == min(whole[-1].weight.values())
    config = make_config(scene_folder, tmp_path / "cut", *settings)
    interrupt(config, 39)  # The checkpoint of step 34 is between two measurements.
    again = _measured(config, resume=True)
    assert again == whole[-len(again) :]
    assert_same_bits(model_of(tmp_path / "whole"), model_of(tmp_path / "cut"))


def test_a_mode_is_a_file_given_after_that_of_the_scene(scene_folder: Path, tmp_path: Path) -> None:
    """On the command line too; settings given there still win over both files."""
    config = tmp_path / "scene.yaml"
    config.write_text(
        f"base: {CONFIGS / 'base.yaml'}\nsteps: 4\nmodel: {{voxel_size: 0.3}}\nlog: {{tensorboard: false}}\n"
        "blocks: {interval: 2}\n"
    )
    out = tmp_path / "out"
    both = ["-c", str(config), "-c", str(CONFIGS / "modes" / "single.yaml"), "-m", str(out)]
    assert main(["partition", str(scene_folder), *both]) == 0
    assert main(["train", "-s", str(scene_folder), *both, "seed=5"]) == 0
    resolved = load_config(out / "config.yaml")
    assert (resolved.steps, resolved.seed, resolved.partition.dim) == (4, 5, (1, 1, 1))
    assert not resolved.teacher.enabled
    assert replace(resolved.weighting, enabled=True) == Config().weighting
