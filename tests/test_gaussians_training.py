"""Explicit Gaussians: coarse model, blocks that start from it, resume, ranks, merge, renders, scores."""

import json
from pathlib import Path

import pytest
import torch
from tiny_run import (
    BASE,
    CPU,
    SETTINGS,
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
from momentum_gs.config.load import config_to_dict, flat_settings, load_config, load_settings
from momentum_gs.config.run import OWN_FILE
from momentum_gs.config.schema import NEEDS_ANCHORS
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_any_view
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.eval.results import read_json
from momentum_gs.model.splat_io import load_splats
from momentum_gs.train.blocks.packed import unpack
from momentum_gs.train.blocks.splat_block import SplatBlock, sh_degree_at
from momentum_gs.train.blocks.views import plan_blocks
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training

pytestmark = pytest.mark.usefixtures("one_thread")

MODE = Path(__file__).parents[1] / "configs" / "modes" / "gaussians.yaml"
GAUSSIANS = (
    *("model.primitive=gaussians", "loss.volume=0", "teacher.enabled=false", "weighting.enabled=false"),
    *("blocks.boundary_finetuning=false", "blocks.offset_clamping=false", "blocks.decoder_freeze_rounds=0"),
    # Densified at steps 10, 20 and 30; opacities are reset at 20, and the rate lets them recover until step 60.
    *("gaussians.sh_every=10", "gaussians.from_step=5", "gaussians.interval=10", "gaussians.until=31"),
    *("gaussians.reset_every=20", "gaussians.opacity_lr=0.4", "gaussians.grad_threshold=1e-3"),
)  # fmt: skip


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"), points=400)


@pytest.fixture(scope="module")
def whole(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a finished run with its coarse model in OUT/coarse, k = 2 of 4, as the commands write it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    write_table(make_config(scene_folder, out, *GAUSSIANS))
    for folder, stage in ((out / "coarse", "coarse"), (out, "blocks")):
        settings = [*SETTINGS, *GAUSSIANS, f"stage={stage}", "log.every=1"]
        assert main(["train", *BASE, "-s", str(scene_folder), "-m", str(folder), *settings]) == 0
    torch.set_num_threads(threads)
    return out


def test_the_mode_loads_over_a_scene_in_both_stages() -> None:
    demo = MODE.parents[1] / "demo.yaml"
    blocks, coarse = load_config([demo, MODE]), load_config([demo, MODE], ["stage=coarse"])
    assert blocks.model.primitive == coarse.model.primitive == "gaussians"
    # As in CityGaussian, Gaussians that start from a trained model have a lower rate.
    assert blocks.gaussians.position_lr[0] < coarse.gaussians.position_lr[0]
    assert (blocks.starts_from_coarse, coarse.starts_from_coarse) == (True, False)
    assert (blocks.partition, blocks.steps) == (load_config(demo).partition, load_config(demo).steps)


@pytest.mark.parametrize("path", [None, *sorted(MODE.parents[1].glob("scenes/*.yaml")), OWN_FILE], ids=str)
def test_the_primitive_alone_switches_off_what_needs_anchors(path: Path | None) -> None:
    on = ["teacher.enabled=true", "blocks.boundary_finetuning=true", "model.background=constant"]
    for stage in ("coarse", "blocks"):
        settings = load_settings(path, ["model.primitive=gaussians", *on, f"stage={stage}"])
        config = settings.config({"steps": 9, "scene.resolution": 1.0, "model.voxel_size": 0.1})
        flat = flat_settings(config_to_dict(config))
        assert {name: flat[name] for name in NEEDS_ANCHORS} == NEEDS_ANCHORS
        assert all(name in config.switched_off for name in NEEDS_ANCHORS)
    assert not load_config(None).switched_off


def test_what_is_switched_off_is_printed_once_and_recorded(
    scene_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["steps=2", "model.primitive=gaussians", "stage=coarse", "scene.resolution=1", "log.tensorboard=false"]
    assert main(["train", *BASE, "-s", str(scene_folder), "-m", str(tmp_path), *settings]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "teacher.enabled=false" in line]
    assert len(printed) == 1
    assert printed[0].removeprefix("train: ") in (tmp_path / "config.yaml").read_text()
    assert not load_config(tmp_path / "config.yaml").teacher.enabled


@pytest.mark.slow
def test_blocks_start_from_what_they_see_of_the_coarse_model(scene_folder: Path, whole: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path, *GAUSSIANS, f"partition.coarse={whole / 'coarse'}")
    scene, table = load_scene(config.scene), write_table(config)
    training = Training(config, scene, table, LocalComm(), CPU)
    coarse = load_splats(whole / "coarse/point_cloud/iteration_60/point_cloud.ply")
    for block, cameras in enumerate(plan_blocks(scene, table).train):
        seen = in_any_view(coarse.position.detach().double(), cameras)
        state = unpack(training._store.packed(block), config, CPU)
        assert isinstance(state, SplatBlock) and sh_degree_at(state.step, config) == 3
        assert 0 < int(seen.sum()) < len(coarse)
        for name, row in coarse.rows().items():
            assert torch.equal(state.model.rows()[name], row[seen]), name


@pytest.mark.slow
def test_a_coarse_model_of_other_harmonics_is_refused(scene_folder: Path, whole: Path, tmp_path: Path) -> None:
    coarse = f"partition.coarse={whole / 'coarse'}"
    with pytest.raises(UserError, match=r"of degree 3, expected gaussians.sh_degree = 1"):
        train(make_config(scene_folder, tmp_path, *GAUSSIANS, coarse, "gaussians.sh_degree=1"))


def test_without_a_coarse_model_blocks_start_from_points_if_told_to(scene_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no coarse model.*gaussians.from_coarse=false"):
        train(make_config(scene_folder, tmp_path, *GAUSSIANS))
    config = make_config(scene_folder, tmp_path, *GAUSSIANS, "gaussians.from_coarse=false")
    training = Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU)
    state = unpack(training._store.packed(0), config, CPU)
    assert isinstance(state, SplatBlock) and sh_degree_at(state.step, config) == 0
    state.step = 25
    assert sh_degree_at(state.step, config) == 2


@pytest.mark.slow
def test_training_learns_densifies_and_raises_the_degree(whole: Path) -> None:
    coarse = load_splats(whole / "coarse/point_cloud/iteration_60/point_cloud.ply")
    assert len(coarse) > 400, "more than the points that it began with"
    assert coarse.sh_rest[:, 8:].any(), "degree 3 is in use"
    records = [json.loads(line) for line in (whole / "coarse" / "events.jsonl").read_text().splitlines()]
    l1 = [record["losses"]["0"]["l1"] for record in records if record.get("losses")]
    assert len(l1) == 60
    assert sum(l1[20:23]) > 1.2 * sum(l1[17:20]), "opacities are reset after step 20"
    assert sum(l1[-8:]) < 0.8 * sum(l1[:8])
    model = model_of(whole)
    assert all(bool(value.isfinite().all()) for value in model.values())
    assert model.keys() == {f"point_cloud_block{b}.{name}" for b in range(4) for name in coarse.rows()}, "no decoder"


@pytest.mark.slow
def test_resume_is_bit_for_bit_the_uninterrupted_run(scene_folder: Path, whole: Path, tmp_path: Path) -> None:
    # Step 37 is within a round, between two densifications and after a reset.
    coarse = f"partition.coarse={whole / 'coarse'}"
    config = make_config(scene_folder, tmp_path, *GAUSSIANS, coarse, "log.checkpoint_every=37")
    interrupt(config, 42)
    train(config, resume=True)
    assert_same_bits(model_of(tmp_path), model_of(whole))


@pytest.mark.slow
def test_ranks_do_not_change_the_model(scene_folder: Path, whole: Path, tmp_path: Path) -> None:
    many = run_ranks(scene_folder, tmp_path, 2, *GAUSSIANS, f"partition.coarse={whole / 'coarse'}")
    assert_same_bits(many, model_of(whole))


def test_a_cap_holds(scene_folder: Path, tmp_path: Path) -> None:
    settings = (*GAUSSIANS, "stage=coarse", "gaussians.max_per_block=450", "gaussians.reset_every=0")
    config = make_config(scene_folder, tmp_path, *settings)
    Training(config, load_scene(config.scene), None, LocalComm(), CPU).run(Observers())
    assert len(load_splats(tmp_path / "point_cloud/iteration_60/point_cloud.ply")) == 450


@pytest.mark.slow
def test_merged_rendered_and_scored(whole: Path) -> None:
    assert main(["merge", str(whole)]) == 0
    folder = whole / "point_cloud" / "iteration_60"
    table = PartitionTable.load(folder / "partition.json")
    blocks = [load_splats(folder / f"point_cloud_block{b}.ply") for b in range(4)]
    inside = [table.cell_of(splats.position.detach().double()) == b for b, splats in enumerate(blocks)]
    merged = load_splats(folder / "point_cloud.ply")
    for name, row in merged.rows().items():
        wanted = torch.cat([splats.rows()[name][mask] for splats, mask in zip(blocks, inside, strict=True)])
        assert torch.equal(row, wanted), name
    for arguments in ([], ["--blocks"]):
        assert main(["render", str(whole), *arguments]) == 0
    assert main(["eval", str(whole), "--lpips", "none"]) == 0
    results = read_json(whole / "results.json")
    # Two held-out views with bright colours: a black image, like the render after the reset, would have 5 dB.
    assert all(results[method]["PSNR"] > 7 for method in ("ours_60", "ours_60_blocks")), results
    assert "decoder" not in " ".join(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("assign", ["ssim", "contribution"])
def test_a_coarse_model_of_gaussians_assigns_views(
    scene_folder: Path, whole: Path, tmp_path: Path, assign: str
) -> None:
    settings = [f"partition.coarse={whole / 'coarse'}", f"partition.assign={assign}", "partition.dim=2,2,1"]
    assert main(["partition", *BASE, str(scene_folder), "-m", str(tmp_path), *GAUSSIANS, *settings]) == 0
    table = PartitionTable.load(tmp_path / "partition.json")
    names = {camera.name for camera in load_scene(make_config(scene_folder, tmp_path, *GAUSSIANS).scene).train}
    assert set().union(*table.views) == names
    assert all(0 < len(views) < len(names) for views in table.views), "a block is seen by some, not by all"
