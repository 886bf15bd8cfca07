"""A GPU gives what the CPU gives: a training step, growth, swaps, resume, assignment, ranks.

Each test also runs on the CPU, so that the test itself is tried on every machine. Computations with a fixed order of
sums must repeat bit for bit on a GPU; comparisons between devices differ in rounding, and their tolerance has a reason.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from anchor_scene import random_anchors, random_decoder
from tiny_run import (
    CPU,
    InterruptAfter,
    assert_same_bits,
    make_config,
    model_of,
    run_ranks,
    train,
    write_table,
)
from tiny_scene import write_tiny_scene
from torch import Tensor

from momentum_gs.config.schema import Config, GrowthConfig
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.device import pick_device, pins_memory
from momentum_gs.core.seeds import keyed_generator, keyed_uniform
from momentum_gs.core.types import Camera
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene, load_scene
from momentum_gs.data.views import Views
from momentum_gs.partition.assign import assign_cameras, view_changes, view_contributions
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.blocks.packed import ROWS, PackedBlock, pack, unpack
from momentum_gs.train.blocks.store import BlockStore
from momentum_gs.train.decoders.shared import SharedDecoder
from momentum_gs.train.events import Observers
from momentum_gs.train.growth.anchors import GrowthStats, grow_and_prune
from momentum_gs.train.loop import Training
from momentum_gs.train.optim import anchor_optimizer
from momentum_gs.train.step import StepInputs, train_step

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHORT = ("steps=20", "blocks.interval=5", "growth.from_step=4", "growth.interval=5", "growth.start_stat=2")
"""20 steps of each of four blocks, two at a time, with growth and frozen rounds."""
FIRST_MOMENT = 0.1
"""Adam's first moment after one step is this share of the gradient (1 - beta1)."""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return pick_device(request.param)


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"))


def first_block(config: Config, scene: Scene, device: torch.device) -> AnchorBlock:
    return AnchorBlock.from_points(0, scene.points, scene.train, config, device)


def as_type(packed: PackedBlock, dtype: torch.dtype) -> PackedBlock:
    return replace(packed, tensors={k: v.to(dtype) for k, v in packed.tensors.items()})


# --- one step ---


def gradients_of_a_step(config: Config, scene: Scene, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Losses, statistics and gradients of the first training step of a block, on the host."""
    block = unpack(as_type(pack(first_block(config, scene, CPU)), dtype), config, device)
    assert isinstance(block, AnchorBlock)
    decoders = SharedDecoder(config, device, 1.0)
    decoders.student.to(dtype)
    decoders.teacher.to(dtype)
    background = torch.zeros(3, device=device, dtype=dtype)
    camera = scene.train[5]
    with Views(scene, 0, device) as views:
        target = views.target(camera.name)
        target = replace(target, image=target.image.to(dtype))
        inputs = StepInputs(config, LocalComm(), background, lambda block: (camera, None, target))
        report = train_step(inputs, decoders, [block], (0,), torch.ones(1), decoder_live=True)
    found = {f"loss {name}": value for name, value in report.losses[0].items()}
    found |= {f"seen {name}": value for name, value in block.stats.rows().items()}
    for name, row in block.model.rows().items():
        if moments := block.optimizer.state.get(row):
            found[f"gradient of {name}"] = moments["exp_avg"] / FIRST_MOMENT
    for name, value in decoders.to_tensors().items():
        if name.endswith(".exp_avg"):
            found[f"gradient of {name}"] = value / FIRST_MOMENT
    return {name: value.cpu().double() for name, value in found.items()}


@pytest.mark.slow
def test_a_training_step_in_float32_is_that_of_float64(
    scene_folder: Path, tmp_path: Path, device: torch.device
) -> None:
    """On both devices, so that they agree with each other to the same tolerance.

    A pixel whose error changes its sign, or that draws a Gaussian which float64 skips, changes a few gradients; so the
    largest error may be a hundredth of the largest gradient, and the mean error a thousandth of the mean.
    """
    config = make_config(scene_folder, tmp_path, "growth.start_stat=0", "teacher.start=0", "teacher.momentum=0.5")
    scene = load_scene(config.scene)
    wanted = gradients_of_a_step(config, scene, CPU, torch.float64)
    found = gradients_of_a_step(config, scene, device, torch.float32)
    assert found.keys() == wanted.keys()
    assert {"gradient of offset", "gradient of feature", "gradient of log_scale", "loss l1"} <= found.keys()
    for name, value in wanted.items():
        error, scale = (found[name] - value).abs(), value.abs()
        assert scale.max() > 0 or not name.startswith("gradient"), name
        if name.startswith("loss"):
            assert error <= 1e-4 * scale + 1e-9, (name, error, scale)
        elif name == "seen anchor_denom":
            assert torch.equal(found[name], value), "one count for each anchor in view"
        else:
            assert error.max() <= 1e-2 * scale.max(), (name, error.max(), scale.max())
            assert error.mean() <= 1e-3 * scale.mean(), (name, error.mean(), scale.mean())


# --- growth ---


def grown_on(device: torch.device, seed: int, cap: int | None) -> tuple[dict[str, Tensor], object]:
    """Rows, moments and statistics after growth and pruning on a device, on the host; and the report."""
    n, k = 200, 3
    rng = keyed_generator("devices", seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng)

    anchors = random_anchors(n, n_offsets=k, feature_dim=4, seed=seed)
    with torch.no_grad():
        anchors.position *= 0.3
    anchors = anchors.to(device).as_leaves()
    optimizer = anchor_optimizer(anchors, Config().optim, 1.0)
    for group in optimizer.param_groups:
        group["params"][0].grad = (rand(*group["params"][0].shape) - 0.5).to(device)
    optimizer.step()
    denom, shown = (10 * rand(n * k, 1)).floor(), (20 * rand(n, 1)).floor()
    stats = GrowthStats(denom * rand(n * k, 1) * 1.2e-3, denom, shown * rand(n, 1) * 0.01, shown)
    stats = GrowthStats.from_rows({name: row.to(device) for name, row in stats.rows().items()})
    config = GrowthConfig(interval=10, success_threshold=0.8, init_factor=16, hierarchy_factor=4, depth=3)
    anchors, stats, report = grow_and_prune(
        anchors, optimizer, stats, 0.01, config, lambda level, at: keyed_uniform(at, "devices", seed, level), cap
    )
    found = {name: row.detach() for name, row in (anchors.rows() | stats.rows()).items()}
    for name, row in anchors.rows().items():
        found |= {f"{name}.{key}": value for key, value in optimizer.state.get(row, {}).items()}
    assert all(row.device.type == device.type for name, row in found.items() if not name.endswith(".step"))
    return {name: row.cpu() for name, row in found.items()}, report


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cap", [None, 210])
def test_growth_is_the_same(device: torch.device, seed: int, cap: int | None) -> None:
    """The same anchors in the same order; logarithms and Adam's step differ by a few roundings."""
    wanted, report = grown_on(CPU, seed, cap)
    found, same = grown_on(device, seed, cap)
    assert same == report
    assert min(report.grown) > 0 and report.pruned > 0 and (report.refused > 0) == (cap is not None)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


# --- swaps ---


@pytest.mark.parametrize("ram_bytes", [None, 0])
def test_blocks_swap_through_the_host_without_a_change(
    scene_folder: Path, tmp_path: Path, device: torch.device, ram_bytes: int | None
) -> None:
    """In memory and on disk; tensors that are copied to and from a GPU are in page-locked memory."""
    config = make_config(scene_folder, tmp_path)
    scene = load_scene(config.scene)
    state = first_block(config, scene, device)
    for group in state.optimizer.param_groups:
        row = group["params"][0]
        row.grad = torch.randn(row.shape, generator=keyed_generator(group["name"])).to(device)
    state.optimizer.step()
    state.stats.opacity_accum += 0.25
    state.step = 17
    wanted = {name: tensor.clone() for name, tensor in pack(state).tensors.items()}
    assert {tensor.device.type for tensor in wanted.values()} == {"cpu"}
    store = BlockStore(1, config, device, LocalComm(), tmp_path / "store", ram_bytes)
    store.put(0, pack(state))
    for _ in range(3):
        active = store.activate((0,))
        store.look_ahead([])
        store.join()
        assert {row.device.type for row in active[0].model.rows().values()} == {device.type}
        store.rest(active)
    packed = store.packed(0)
    assert_same_bits(packed.tensors, wanted)
    rows = {name: tensor for name, tensor in packed.tensors.items() if name.startswith(ROWS)}
    assert {tensor.is_pinned() for tensor in rows.values()} == {pins_memory(device)}
    assert any(name.startswith("adam.feature.exp_avg") for name in wanted), "moments are swapped, too"
    assert unpack(packed, config, device).step == 17
    store.close()


# --- assignment ---


def test_cameras_are_assigned_to_the_same_blocks(scene_folder: Path, tmp_path: Path, device: torch.device) -> None:
    """By how much a block changes an image and by its contribution: both within 1e-4 of those on the CPU."""
    config = make_config(scene_folder, tmp_path, "model.voxel_size=0.5")
    scene, table = load_scene(config.scene), write_table(config)
    anchors, decoder = first_block(config, scene, CPU).model, random_decoder(config.model.feature_dim)
    with torch.no_grad():  # With features of zero an untrained decoder makes no difference between anchors.
        anchors.feature.copy_(10 * torch.randn(anchors.feature.shape, generator=keyed_generator("features")))
    block_of_row = table.cell_of(anchors.position.detach().double())
    assert set(block_of_row.tolist()) == {0, 1, 2, 3}

    def changes(camera: Camera, place: torch.device, contribution: bool) -> dict[int, float]:
        there = anchors.to(place), decoder.to(place), camera, block_of_row.to(place)
        return view_contributions(*there) if contribution else view_changes(*there, torch.zeros(3, device=place))

    for contribution in (False, True):
        by_cpu = {camera.name: changes(camera, CPU, contribution) for camera in scene.train}
        by_device = {camera.name: changes(camera, device, contribution) for camera in scene.train}
        values = [change for found in by_cpu.values() for change in found.values()]
        # The threshold is in the middle of the largest gap between changes, so that rounding does not decide.
        ordered = sorted(values)
        low, high = max(zip(ordered, ordered[1:], strict=False), key=lambda pair: pair[1] - pair[0])
        assert high - low > 1e-3
        assigned = partial(assign_cameras, scene.train, table, threshold=(low + high) / 2)
        names = assigned(lambda camera, by=by_cpu: by[camera.name])
        assert assigned(lambda camera, by=by_device: by[camera.name]) == names
        assert any(0 < len(of_block) < len(scene.train) for of_block in names)
        for name, found in by_cpu.items():
            for block in found.keys() | by_device[name].keys():
                assert by_device[name].get(block, 0.0) == pytest.approx(found.get(block, 0.0), abs=1e-4)


# --- runs ---


@pytest.mark.slow
def test_a_run_repeats_and_resumes_to_the_bit(scene_folder: Path, tmp_path: Path, device: torch.device) -> None:
    """Up to the interruption the second run repeats the first, so this also tests that a run repeats."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = train(make_config(scene_folder, whole, *SHORT), device=device).step
    config = make_config(scene_folder, parts, *SHORT, "log.checkpoint_every=13")  # Within a round.
    training = Training(config, load_scene(config.scene), write_table(config), LocalComm(), device)
    with pytest.raises(KeyboardInterrupt):
        training.run(Observers([InterruptAfter(16)]))
    assert train(config, resume=True, device=device).step == steps == 40
    first, second = model_of(whole), model_of(parts)
    assert_same_bits(first, second)
    begun = len(first_block(config, load_scene(config.scene), CPU).model)
    assert any(len(v) > begun / 4 for k, v in first.items() if k.endswith(".position")), "it has grown"


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu(2))])
def test_two_ranks_train_the_model_of_one(scene_folder: Path, tmp_path: Path, device: str) -> None:
    """With NCCL between GPUs: each row of the buffer of gradients is one rank's plus zeros, so no sum depends on R."""
    train(make_config(scene_folder, tmp_path / "one", *SHORT), device=pick_device(device))
    many = run_ranks(scene_folder, tmp_path / "two", 2, *SHORT, device=device)
    assert_same_bits(model_of(tmp_path / "one"), many)


def test_a_table_gives_the_same_blocks_on_any_device(device: torch.device) -> None:
    """The cell of a point is found where the point is."""
    table = PartitionTable((-4.0, -4.0, -1.0, 4.0, 4.0, 5.0), (2, 2, 1), torch.eye(3, dtype=torch.float64), [[]] * 4)
    points = (torch.rand(1000, 3, generator=keyed_generator("cells"), dtype=torch.float64) - 0.5) * 12
    found = table.cell_of(points.to(device))
    assert found.device.type == device.type
    assert torch.equal(found.cpu(), table.cell_of(points))
