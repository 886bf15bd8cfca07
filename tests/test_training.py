"""Block training: it learns, and swaps, resume and the number of ranks change no bit of the model."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import CPU, Runs, assert_same_bits, make_config, model_of, run_ranks, train, write_table
from tiny_scene import write_tiny_scene

from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import in_any_view
from momentum_gs.data.scene import load_scene
from momentum_gs.model.io import load_ply
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.blocks.packed import pack, unpack
from momentum_gs.train.blocks.schedule import Schedule
from momentum_gs.train.blocks.store import BlockStore
from momentum_gs.train.blocks.views import plan_blocks
from momentum_gs.train.events import BlocksMeasured, Event, Observers, StepDone
from momentum_gs.train.loop import Training

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def runs(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(scene_folder, tmp_path_factory.mktemp("runs"))


class _Learning:
    """Block -> L1 of each of its steps, and the PSNR of its training views at each measurement."""

    def __init__(self) -> None:
        self.l1: dict[int, list[float]] = {}
        self.psnr: dict[int, list[float]] = {}

    def on_event(self, event: Event) -> None:
        if isinstance(event, StepDone):
            for block, terms in (event.losses or {}).items():
                self.l1.setdefault(block, []).append(terms["l1"])
        if isinstance(event, BlocksMeasured):
            for block, psnr in event.psnr.items():
                self.psnr.setdefault(block, []).append(psnr)

    def close(self) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_training_learns_and_grows(scene_folder: Path, tmp_path: Path, seed: int) -> None:
    """With seeds 0 to 4, in the worst block the loss fell to 0.55 of its start and the PSNR ended at 12.8 dB."""
    config = make_config(scene_folder, tmp_path, f"seed={seed}", "log.every=1", "weighting.smoothing=0")
    training, learning = Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU), _Learning()
    store = training._store
    before = {b: len(store.packed(b).tensors["rows.position"]) for b in store.held()}
    outcome = training.run(Observers([learning]))
    assert outcome.step == 120, "4 blocks, 2 at a time, 60 steps each"
    model = model_of(tmp_path)
    after = {b: len(model[f"point_cloud_block{b}.position"]) for b in range(4)}
    assert all(after[b] > before[b] for b in range(4)), (before, after)
    assert all(bool(value.isfinite().all()) for value in model.values())
    assert learning.l1.keys() == learning.psnr.keys() == set(range(4))
    for l1 in learning.l1.values():
        assert len(l1) == 60
        assert sum(l1[-8:]) < 0.65 * sum(l1[:8])
    # One decibel below the worst block; an untrained render has 9.
    assert min(psnr[-1] for psnr in learning.psnr.values()) > 11.8


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "checkpoint"), [(1, 37), (2, 37), (1, 97), (2, 97)])
def test_resume_is_bit_for_bit_the_uninterrupted_run(
    scene_folder: Path, runs: Runs, tmp_path: Path, ranks: int, checkpoint: int
) -> None:
    # Step 37 is within a round, so the checkpoint has blocks in the middle of it; step 97 is in the boundary
    # fine-tuning. With 2 ranks, one process starts the run and two resume it: a sum of two gradients does not depend on
    # its order.
    whole, parts = runs.whole(), shutil.copytree(runs.interrupted(checkpoint), tmp_path / "parts")
    if ranks == 1:
        config = make_config(scene_folder, parts, f"log.checkpoint_every={checkpoint}")
        assert train(config, resume=True).step == 120
    else:
        run_ranks(scene_folder, parts, ranks, "--resume")
    assert_same_bits(model_of(whole), model_of(parts))


@pytest.mark.slow
def test_boundary_fine_tuning_is_amid_what_the_merge_keeps(scene_folder: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path, "blocks.active=1")
    scene, table = load_scene(config.scene), write_table(config)
    train(config)
    folder = tmp_path / "point_cloud" / "iteration_60"
    blocks = [load_ply(folder / f"point_cloud_block{b}.ply") for b in range(4)]
    inside = [table.cell_of(anchors.position.double()) == b for b, anchors in enumerate(blocks)]
    # The block that trained last has around it the final anchors of all others that its views see.
    last = Schedule(4, 1, 60, config.blocks, config.seed)[-1].blocks[0]
    cameras = plan_blocks(scene, table).train[last]
    for name, rows in blocks[last].rows().items():
        others = []
        for b in set(range(4)) - {last}:
            seen = in_any_view(blocks[b].position.double(), cameras)
            others.append(blocks[b].rows()[name][inside[b] & seen])
        assert torch.equal(rows[~inside[last]], torch.cat(others)), name
    assert inside[last].any()
    assert not inside[last].all()


@pytest.mark.slow
def test_resume_refuses_other_settings(scene_folder: Path, runs: Runs, tmp_path: Path) -> None:
    out = shutil.copytree(runs.whole(), tmp_path / "run")
    config = make_config(scene_folder, out, "loss.dssim=0.5")
    with pytest.raises(UserError, match=r"loss.dssim = 0.2 there, 0.5 now"):
        train(config, resume=True)
    # Settings without effect on this primitive may differ.
    assert train(make_config(scene_folder, out, "gaussians.until=70"), resume=True).step == 120
    with pytest.raises(UserError, match="no checkpoint to resume"):
        train(make_config(scene_folder, tmp_path / "other"), resume=True)


def test_swaps_through_the_store_change_nothing(scene_folder: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path)
    scene = load_scene(config.scene)
    state = AnchorBlock.from_points(0, scene.points, scene.train, config, CPU)
    for parameter in state.optimizer.param_groups:
        parameter["params"][0].grad = torch.randn_like(parameter["params"][0])
    state.optimizer.step()
    state.stats.opacity_accum.uniform_()
    state.step = 17
    wanted = {k: v.clone() for k, v in pack(state).tensors.items()}
    store = BlockStore(1, config, CPU, LocalComm(), tmp_path / "store")
    store.put(0, pack(state))
    for _ in range(3):
        store.rest(store.activate((0,)))
    packed = store.packed(0)
    assert_same_bits(packed.tensors, wanted)
    assert any(k.startswith("adam.feature.exp_avg") for k in wanted), "moments are swapped, too"
    assert unpack(packed, config, CPU).step == 17


@pytest.mark.slow
@pytest.mark.parametrize(("k", "ranks"), [(2, 2), (3, 2), (4, 4)])
def test_ranks_do_not_change_the_model(scene_folder: Path, tmp_path: Path, k: int, ranks: int) -> None:
    # 150 steps of every block, growth included, also where k does not divide n and R does not divide k. Every operator
    # has one thread, and the decoder's gradients are summed block by block in a fixed order.
    overrides = ["steps=150", "blocks.interval=50", "growth.interval=25", f"blocks.active={k}"]
    train(make_config(scene_folder, tmp_path / "one", *overrides))
    many = run_ranks(scene_folder, tmp_path / "many", ranks, *overrides, launcher=k == ranks == 2)
    assert_same_bits(model_of(tmp_path / "one"), many)


class _Consistency:
    """Global step -> whether its loss had consistency terms."""

    def __init__(self) -> None:
        self.seen: dict[int, bool] = {}

    def on_event(self, event: Event) -> None:
        if isinstance(event, StepDone) and event.losses:
            self.seen[event.step] = any(terms.get("consistency_color", 0) > 0 for terms in event.losses.values())

    def close(self) -> None:
        pass


@pytest.mark.slow
def test_the_teacher_starts_when_it_is_told_to(scene_folder: Path, tmp_path: Path) -> None:
    train(make_config(scene_folder, tmp_path / "alone", "teacher.enabled=false"))
    train(make_config(scene_folder, tmp_path / "never", "teacher.start=1"))
    assert_same_bits(model_of(tmp_path / "alone"), model_of(tmp_path / "never"))
    # All blocks at once, so that a block's steps are the global ones.
    together = ("teacher.start=0.5", "blocks.active=all", "blocks.decoder_freeze_rounds=0", "log.every=1")
    config, consistency = make_config(scene_folder, tmp_path / "late", *together), _Consistency()
    Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU).run(Observers([consistency]))
    assert consistency.seen == {step: step > 30 for step in range(1, 61)}


@pytest.mark.slow
def test_no_scale_exceeds_its_bound(scene_folder: Path, tmp_path: Path) -> None:
    free, bound = tmp_path / "free", tmp_path / "bound"
    train(make_config(scene_folder, free, "growth.max_log_scale=null"))
    train(make_config(scene_folder, bound, "growth.max_log_scale=null", "optim.max_scale=0.1"))
    largest = [
        max(float(load_ply(ply).log_scale.detach()[:, 3:].max().exp()) for ply in out.rglob("*block?.ply"))
        for out in (free, bound)
    ]
    assert largest[0] > 0.2 and largest[1] <= 0.1 * (1 + 1e-6)
