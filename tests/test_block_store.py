"""Inactive blocks: swaps through memory, disk or both change nothing; damaged files are named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_scene import write_tiny_scene

from momentum_gs.config.load import load_config
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.core.seeds import keyed_generator
from momentum_gs.data.scene import load_scene
from momentum_gs.train.blocks.anchor_block import AnchorBlock
from momentum_gs.train.blocks.file import read_block, read_rows, write_block, write_tensors
from momentum_gs.train.blocks.packed import PackedBlock, pack
from momentum_gs.train.blocks.schedule import Schedule
from momentum_gs.train.blocks.store import BlockStore

CPU = torch.device("cpu")
N = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = write_tiny_scene(tmp_path_factory.mktemp("tiny"), grid=2, points=200)
    return load_config(None, [f"scene.path={folder}", "model.voxel_size=0.3", "model.n_offsets=2"])


def first_state(config: Config, block: int) -> AnchorBlock:
    scene = load_scene(config.scene)
    return AnchorBlock.from_points(block, scene.points, scene.train, config, CPU)


def train_a_little(state: AnchorBlock, config: Config) -> None:
    """An Adam step, statistics and growth that differ by block and step: everything that a block holds changes."""
    generator = keyed_generator(state.block, state.step)
    for group in state.optimizer.param_groups:
        group["params"][0].grad = torch.randn(group["params"][0].shape, generator=generator)
    state.optimizer.step()
    state.stats.offset_denom += 30
    state.stats.anchor_denom += 30
    state.stats.opacity_accum += 1
    state.stats.offset_gradient_accum += torch.rand(state.stats.offset_gradient_accum.shape, generator=generator)
    state.step += 1
    state.grow(config)


def bits(packed: PackedBlock) -> dict[str, bytes]:
    return {k: v.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for k, v in packed.tensors.items()}


def assert_same(found: PackedBlock, wanted: PackedBlock) -> None:
    assert found.meta == wanted.meta
    assert bits(found) == bits(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("blocks_in_memory", [None, 0, 1.5, 3])
def test_swaps_through_memory_disk_or_both_change_nothing(
    config: Config, tmp_path: Path, blocks_in_memory: float | None
) -> None:
    wanted = {b: first_state(config, b) for b in range(N)}
    size = max(pack(state).nbytes for state in wanted.values())
    # Moments about double the size of a block once it has trained, and growth adds to it.
    bound = None if blocks_in_memory is None else int(3 * size * blocks_in_memory)
    store = BlockStore(N, config, CPU, LocalComm(), tmp_path / "store", bound)
    for block in range(N):
        store.put(block, pack(first_state(config, block)))
    rounds = [round_.blocks for round_ in Schedule(N, 2, 4, config.blocks.__class__(interval=1), seed=1)]
    for i, blocks in enumerate(rounds):
        active = store.activate(blocks)
        assert [state.block for state in active] == list(blocks)
        store.look_ahead(rounds[i + 1 :])
        for state in active:
            train_a_little(state, config)
            train_a_little(wanted[state.block], config)
        store.join()
        assert bound is None or store.ram_bytes <= bound
        store.rest(active)
    for block in range(N):
        assert_same(store.packed(block), pack(wanted[block]))
    on_disk = len(list((tmp_path / "store").glob("*")))
    assert (on_disk > 0) == (bound is not None)
    store.close()
    assert not (tmp_path / "store").exists(), "nothing is left behind"


def test_a_file_of_version_0_1_is_read_with_todays_names(config: Config, tmp_path: Path) -> None:
    wanted = pack(first_state(config, 0))
    old = {
        name.replace("rows.", "anchors.").replace("anchor_denom", "anchor_demon"): value
        for name, value in wanted.tensors.items()
    }
    assert old.keys() - wanted.tensors.keys() == {*(n for n in old if n.startswith("anchors.")), "stats.anchor_demon"}
    record = write_block(tmp_path / "old.safetensors", PackedBlock(old, wanted.meta))
    store = BlockStore(N, config, CPU, LocalComm(), tmp_path / "store")
    store.adopt(0, tmp_path / "old.safetensors", record)
    rows = store.rows(0)
    assert all(torch.equal(rows[name], wanted.tensors[f"rows.{name}"]) for name in rows)
    assert store.rows(0, ["position"]).keys() == {"position"}
    assert_same(store.packed(0), wanted)
    assert_same(pack(store.activate((0,))[0]), wanted)


def test_the_blocks_of_the_next_round_are_loaded_ahead(config: Config, tmp_path: Path) -> None:
    store = BlockStore(N, config, CPU, LocalComm(), tmp_path / "store", 0)
    states = [first_state(config, block) for block in range(N)]
    for state in states:
        store.put(state.block, pack(state))
    assert store.ram_bytes == 0
    size = pack(states[0]).nbytes
    store._bound = 2 * size + size // 2
    active = store.activate((0, 1))
    store.look_ahead([(2, 3), (4, 0)])
    store.join()
    assert store.ram_bytes == pytest.approx(2 * size, rel=0.01), "the next two, and no more than fit"
    store.rest(active)
    active = store.activate((2, 3))
    store.look_ahead([(4, 0), (1, 2)])
    store.join()
    # 0 and 1 have just trained; 4 is read from disk. 1 is needed last of them, so it was moved to disk.
    assert [b for b in (0, 1, 4) if store._inactive[b].packed is not None] == [0, 4]
    store.rest(active)


def test_an_error_of_the_background_thread_is_raised(config: Config, tmp_path: Path) -> None:
    store = BlockStore(2, config, CPU, LocalComm(), tmp_path / "store", 0)
    for block in range(2):
        store.put(block, pack(first_state(config, block)))
    active = store.activate((0,))
    file = next((tmp_path / "store").glob("block_1.*"))
    file.write_bytes(file.read_bytes()[:100])
    store._bound = 2**30
    store.look_ahead([(1,)])
    with pytest.raises(UserError, match=r"block_1.*damaged block file"):
        store.rest(active)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("bound", [None, 0])
def test_saved_blocks_stay_as_they_were(config: Config, tmp_path: Path, share: bool, bound: int | None) -> None:
    store = BlockStore(1, config, CPU, LocalComm(), tmp_path / "store", bound)
    store.put(0, pack(first_state(config, 0)))
    first = store.save(0, tmp_path / "a", share=share)
    second = store.save(0, tmp_path / "b", share=share)
    assert first == second
    assert (tmp_path / "a").samefile(tmp_path / "b") == share
    states = store.activate((0,))
    train_a_little(states[0], config)
    store.rest(states)
    assert store.save(0, tmp_path / "c", share=share) != first
    for name in ("a", "b"):
        assert first.mismatch(tmp_path / name) is None


def test_files_are_what_the_library_reads(config: Config, tmp_path: Path) -> None:
    state = first_state(config, 0)
    train_a_little(state, config)
    packed = pack(state)
    odd = {"mask": torch.tensor([True, False, True]), "empty": torch.empty(0, 6), "half": torch.ones(3).bfloat16()}
    packed = PackedBlock(packed.tensors | odd, packed.meta)
    record = write_block(tmp_path / "block", packed)
    assert_same(read_block(tmp_path / "block"), packed)
    assert_same(PackedBlock(load_file(tmp_path / "block"), packed.meta), packed)
    assert record.size == (tmp_path / "block").stat().st_size
    rows = read_rows(tmp_path / "block", ["position"])
    assert rows.keys() == {"position"}
    assert torch.equal(rows["position"], packed.tensors["rows.position"])


def test_damage_to_a_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x"
    record = write_tensors(path, {"a": torch.arange(100)}, {})
    assert record.mismatch(path) is None
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert record.mismatch(path) == f"x has {len(whole) - 1} bytes, expected {len(whole)}"
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert record.mismatch(path) == "x has another SHA-256 than when written"
    path.unlink()
    assert record.mismatch(path) == "x cannot be read (No such file or directory)"


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    full = tmp_path / "block_3"
    full.symlink_to("/dev/full")  # Every write to it finds no space.
    with pytest.raises(UserError, match=r"the disk is full, 0.0 MiB wanted for block_3, .* --resume"):
        write_tensors(full, {"a": torch.arange(100)}, {})
    assert not full.is_symlink()
