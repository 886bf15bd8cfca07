"""Blocks of anchors that start from the coarse model (blocks.from_coarse)."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import (
    CPU,
    InterruptAfter,
    assert_same_bits,
    make_config,
    model_of,
    write_table,
)
from tiny_scene import write_tiny_scene

from momentum_gs.config.load import dump_config
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_any_view
from momentum_gs.data.scene import load_scene
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder
from momentum_gs.model.io import load_model
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.blocks.packed import unpack
from momentum_gs.train.blocks.views import plan_blocks
from momentum_gs.train.events import Observers
from momentum_gs.train.initialization import load_initialization
from momentum_gs.train.loop import Training

pytestmark = pytest.mark.usefixtures("one_thread")

ON = ("blocks.from_coarse=true", "teacher.enabled=true", "weighting.enabled=false")
WINDOWS = ("blocks.windows=true",)


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"), points=400)


def trained(scene: Path, out: Path, *settings: str) -> Path:
    """OUT of a coarse model of a few steps."""
    config = make_config(scene, out, "stage=coarse", "steps=12", *settings)
    Training(config, load_scene(config.scene), None, LocalComm(), CPU).run(Observers())
    (out / "config.yaml").write_text(dump_config(config))
    return out


@pytest.fixture(scope="module")
def coarse(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = trained(scene_folder, tmp_path_factory.mktemp("coarse"))
    torch.set_num_threads(threads)
    return out


def started(config: Config) -> Training:
    return Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU)


def coarse_model(coarse: Path) -> tuple[Anchors, GaussianDecoder]:
    anchors, decoder = load_model(next((coarse / "point_cloud").iterdir()) / "point_cloud.ply")
    assert isinstance(anchors, Anchors) and isinstance(decoder, GaussianDecoder)
    return anchors, decoder


@pytest.mark.parametrize("windows", [False, True])
def test_blocks_start_from_the_coarse_models_rows(
    scene_folder: Path, coarse: Path, tmp_path: Path, windows: bool
) -> None:
    config = make_config(scene_folder, tmp_path, *ON, *WINDOWS * windows, f"partition.coarse={coarse}")
    training = started(config)
    scene, table = load_scene(config.scene), write_table(config)
    anchors, decoder = coarse_model(coarse)
    position = anchors.position.detach().double()
    # With windows a block also has the rows of its cell that only views of its neighbours see.
    seen = in_any_view(position, scene.train)
    times = torch.zeros(len(anchors), dtype=torch.int64)
    for block, cameras in enumerate(plan_blocks(scene, table).train):
        mine = (table.cell_of(position) == block) & seen if windows else in_any_view(position, cameras)
        state = unpack(training._store.packed(block), config, CPU)
        assert isinstance(state, AnchorBlock)
        assert 0 < int(mine.sum()) < len(anchors)
        for name, row in anchors.rows().items():
            assert torch.equal(state.model.rows()[name], row[mine]), name
        assert (state.step, state.voxel_size) == (0, pytest.approx(config.model.voxel_size))
        assert not any(row.any() for row in state.stats.rows().values())
        times += mine
    assert torch.equal(times, seen.long()) if windows else (times[seen] > 0).any()

    tensors = training._decoders.to_tensors()
    for name, value in decoder.state_dict().items():
        assert torch.equal(tensors[f"student.{name}"], value), name
        assert torch.equal(tensors[f"teacher.{name}"], value), name
    assert training._decoders.updates == 0 and not any(name.startswith("adam.") for name in tensors)


def test_per_block_decoders_start_from_the_coarse_models(scene_folder: Path, coarse: Path, tmp_path: Path) -> None:
    mode = ["blocks.decoder=per_block", "blocks.boundary_finetuning=false", "blocks.decoder_freeze_rounds=0"]
    settings = ("blocks.from_coarse=true", "weighting.enabled=false", "teacher.enabled=false", *mode)
    config = make_config(scene_folder, tmp_path, *settings, f"partition.coarse={coarse}")
    training, (_, decoder) = started(config), coarse_model(coarse)
    for block in range(len(training._plan)):
        state = unpack(training._store.packed(block), config, CPU)
        assert state.own is not None
        for name, value in decoder.state_dict().items():
            assert torch.equal(state.own.module.state_dict()[name], value), name


@pytest.mark.slow
def test_a_run_is_resumed_without_the_coarse_model(scene_folder: Path, coarse: Path, tmp_path: Path) -> None:
    whole, broken, copied = tmp_path / "whole", tmp_path / "broken", tmp_path / "coarse"
    shutil.copytree(coarse, copied)
    settings = (*ON, *WINDOWS, "steps=30", f"partition.coarse={copied}", "log.checkpoint_every=20")
    started(make_config(scene_folder, whole, *settings)).run(Observers())
    with pytest.raises(KeyboardInterrupt):
        started(make_config(scene_folder, broken, *settings)).run(Observers([InterruptAfter(27)]))
    shutil.rmtree(copied)
    config = make_config(scene_folder, broken, *settings)
    again = Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU, resume=True)
    again.run(Observers())
    assert_same_bits(model_of(broken), model_of(whole))


def test_without_a_coarse_model_the_error_says_how_to_get_one(scene_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no coarse model.*stage=coarse.*blocks\.from_coarse=false"):
        started(make_config(scene_folder, tmp_path, *ON))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.n_offsets=5", "trained with model.n_offsets=4, expected model.n_offsets=5"),
        ("model.feature_dim=8", "trained with model.feature_dim=32, expected model.feature_dim=8 as"),
        ("model.use_feature_bank=true", "trained with model.use_feature_bank=False, expected .*=True as"),
        ("model.add_color_dist=true", "trained with model.add_color_dist=False, expected .*=True as"),
        ("model.background=constant", "trained with model.background=fixed, expected model.background=constant"),
        ("scene.unit=2", "scene.unit, scene.offset and scene.axes are 1.*expected 2.0"),
        ("scene.offset=[1,0,0]", r"expected 1.0, \(1.0, 0.0, 0.0\) and"),
    ],
)
def test_a_coarse_model_of_other_settings_is_refused(
    scene_folder: Path, coarse: Path, tmp_path: Path, setting: str, message: str
) -> None:
    config = make_config(scene_folder, tmp_path, *ON, f"partition.coarse={coarse}", setting)
    with pytest.raises(UserError, match=message) as caught:
        load_initialization(config)
    assert str(coarse) in str(caught.value) and "train the coarse model with the same settings" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_no_coarse_model_of_anchors_is_refused(
    scene_folder: Path, coarse: Path, tmp_path: Path
) -> None:
    gaussians = ("model.primitive=gaussians", "loss.volume=0", "teacher.enabled=false", "weighting.enabled=false",
                 "blocks.boundary_finetuning=false", "blocks.offset_clamping=false")  # fmt: skip
    of_gaussians = trained(scene_folder, tmp_path / "gaussians", *gaussians)
    with pytest.raises(UserError, match="expected anchors with one decoder"):
        load_initialization(make_config(scene_folder, tmp_path, *ON, f"partition.coarse={of_gaussians}"))
    with pytest.raises(UserError, match="anchors, expected Gaussians"):
        load_initialization(make_config(scene_folder, tmp_path, *gaussians, f"partition.coarse={coarse}"))
