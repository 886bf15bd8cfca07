"""Checkpoints: damage is found, as many are kept as wanted, by steps or time; and the ways to resume from one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import (
    BASE,
    CPU,
    SETTINGS,
    InterruptAfter,
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
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.data.scene import load_scene
from momentum_gs.model.io import load_ply
from momentum_gs.train.blocks.file import FileRecord, write_tensors
from momentum_gs.train.checkpoint import checkpoints
from momentum_gs.train.events import Event, GrowthCapped, Observers, RoundEnded
from momentum_gs.train.loop import Training
from momentum_gs.train.outcome import Outcome

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(scene_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The model of an uninterrupted run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    train(make_config(scene_folder, out))
    torch.set_num_threads(threads)
    return model_of(out)


def steps(out: Path) -> list[int]:
    return [step for step, _ in checkpoints(out / "checkpoint")]


@pytest.mark.slow
@pytest.mark.parametrize(("link", "every"), [(True, "5"), (False, "4.2%")])
def test_as_many_as_wanted_are_kept(scene_folder: Path, tmp_path: Path, link: bool, every: str) -> None:
    """At multiples of 5 steps: also as a share of all 120 global steps, not of the 60 that a block makes."""
    overrides = [f"log.checkpoint_every={every}", "log.keep_checkpoints=3", f"log.link_checkpoints={link}"]
    train(make_config(scene_folder, tmp_path, *overrides))
    assert steps(tmp_path) == [120, 115, 110]
    assert not (tmp_path / "store").exists()

    def same(block: int) -> bool:
        first, last = (tmp_path / f"checkpoint/step_{step}/block_{block}.safetensors" for step in (110, 120))
        return first.samefile(last)

    assert sum(map(same, range(4))) == (2 if link else 0), "two of the four are inactive from step 105 on"


@pytest.mark.slow
def test_checkpoints_by_time(scene_folder: Path, tmp_path: Path) -> None:
    # 6e-6 minutes are over at once, so the ranks, which agree on it every 10th step, write one each time.
    config = make_config(scene_folder, tmp_path, "log.checkpoint_minutes=6e-6", "log.keep_checkpoints=100")
    train(config)
    assert steps(tmp_path) == list(range(120, 0, -10))


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut", "changed", "missing", "state"])
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(
    scene_folder: Path, tmp_path: Path, whole: dict[str, torch.Tensor], capfd: pytest.CaptureFixture[str], harm: str
) -> None:
    config = make_config(scene_folder, tmp_path, "log.checkpoint_every=25")
    interrupt(config, 80)
    assert steps(tmp_path) == [75, 50]
    newest = tmp_path / "checkpoint" / "step_75"
    block, state = newest / "block_2.safetensors", newest / "state.json"
    if harm == "cut":
        block.write_bytes(block.read_bytes()[:1000])
    elif harm == "changed":
        data = bytearray(block.read_bytes())
        data[-1] ^= 1
        block.unlink()  # It may be a hard link to the file of the older checkpoint.
        block.write_bytes(data)
    elif harm == "missing":
        block.unlink()
    else:
        state.write_text(state.read_text()[:100])
    assert train(config, resume=True).step == 120
    printed = capfd.readouterr().err
    assert f"{newest} is damaged ({'state.json' if harm == 'state' else 'block_2.safetensors'}" in printed
    assert_same_bits(model_of(tmp_path), whole)


@pytest.mark.slow
def test_without_a_valid_checkpoint_there_is_an_error(scene_folder: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path, "log.checkpoint_every=25", "log.keep_checkpoints=1")
    interrupt(config, 30)
    state = tmp_path / "checkpoint" / "step_25" / "state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps(content | {"format": 1}))
    with pytest.raises(UserError, match=r"every checkpoint is damaged \(step_25\)"):
        train(config, resume=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_keeps_earlier_checkpoints(
    scene_folder: Path, tmp_path: Path, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(scene_folder, tmp_path, "log.checkpoint_every=25")

    def onto_a_full_disk(path: Path, *rest: Any) -> FileRecord:
        if path.parent.name == ".step_50.part":
            path.symlink_to("/dev/full")  # Every write to it finds no space.
        return write_tensors(path, *rest)

    monkeypatch.setattr("momentum_gs.train.checkpoint.write_tensors", onto_a_full_disk)
    with pytest.raises(UserError, match=r"step_50.part: the disk is full, .* wanted for decoder.safetensors"):
        train(config)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "checkpoint").iterdir()] == ["step_25"]
    assert train(config, resume=True).step == 120
    assert_same_bits(model_of(tmp_path), whole)


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_writes_a_checkpoint(
    scene_folder: Path, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    config = make_config(scene_folder, tmp_path)
    training = Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU)
    asked = iter([False, False, True])
    outcome = training.run(Observers(), stop=lambda: next(asked))
    assert (outcome.step, outcome.interrupted) == (30, True)
    assert steps(tmp_path) == [30]
    assert not (tmp_path / "point_cloud").exists()
    done = train(config, resume=True)
    assert done.step == 120
    assert done.work.pixels == 4 * outcome.work.pixels, "the work of both processes, 30 of 120 steps in the first"
    assert done.work.seconds > outcome.work.seconds
    assert done.work.cpu_seconds > outcome.work.cpu_seconds
    assert_same_bits(model_of(tmp_path), whole)


@pytest.mark.slow
@pytest.mark.parametrize("ram_gb", [0, 1e-4])
def test_little_memory_changes_nothing(
    scene_folder: Path, tmp_path: Path, whole: dict[str, torch.Tensor], ram_gb: float
) -> None:
    train(make_config(scene_folder, tmp_path, f"store.ram_gb={ram_gb}"))
    assert_same_bits(model_of(tmp_path), whole)


@pytest.mark.slow
def test_little_memory_on_two_ranks_changes_nothing(
    scene_folder: Path, tmp_path: Path, whole: dict[str, torch.Tensor]
) -> None:
    assert_same_bits(run_ranks(scene_folder, tmp_path, 2, "store.ram_gb=0"), whole)


def train_on(config: Config, only: list[int]) -> Outcome:
    training = Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU, only=only)
    return training.run(Observers())


@pytest.mark.slow
def test_chosen_blocks_train_on_and_the_others_stay(scene_folder: Path, tmp_path: Path) -> None:
    train(make_config(scene_folder, tmp_path))
    before = model_of(tmp_path)
    config = make_config(scene_folder, tmp_path, "steps=90")
    assert train_on(config, [3, 1]).step == 150
    after = model_of(tmp_path, 90)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"point_cloud_block1", "point_cloud_block3"}
    # Blocks can be trained further again, and an interrupted run of this kind continues.
    config = make_config(scene_folder, tmp_path, "steps=120", "log.checkpoint_every=10")
    training = Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU, only=[0])
    with pytest.raises(KeyboardInterrupt):
        training.run(Observers([InterruptAfter(165)]))
    assert train_on(config, [0]).step == 180


@pytest.mark.slow
def test_training_on_changes_the_merged_model_inside_its_cell_only(scene_folder: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path)
    table = write_table(config)
    train_command = ["train", *BASE, "-s", str(scene_folder), "-m", str(tmp_path), *SETTINGS]
    merged = []
    for extra in ([], ["steps=90", "--only-blocks", "2"]):
        assert main([*train_command, *extra]) == 0
        assert main(["merge", str(tmp_path)]) == 0
        merged.append(load_ply(tmp_path / "point_cloud" / f"iteration_{90 if extra else 60}" / "point_cloud.ply"))
    before, after = ({tuple(p): f for p, f in zip(m.position.tolist(), m.feature, strict=True)} for m in merged)
    assert before.keys() == after.keys(), "blocks do not grow while their borders are fine-tuned"
    moved = torch.tensor([p for p in before if not torch.equal(before[p], after[p])], dtype=torch.float64)
    assert set(table.cell_of(moved).tolist()) == {2}


@pytest.mark.slow
def test_impossible_requests_to_train_further_are_refused(scene_folder: Path, tmp_path: Path) -> None:
    config = make_config(scene_folder, tmp_path, "log.checkpoint_every=25")
    interrupt(config, 30)
    longer = make_config(scene_folder, tmp_path, "steps=90")
    with pytest.raises(UserError, match=r"its run is not finished; finish it first with --resume and steps=60"):
        train_on(longer, [1])
    train(config, resume=True)
    with pytest.raises(UserError, match=r"steps = 60, but the run has reached steps = 60 already"):
        train_on(config, [1])
    with pytest.raises(UserError, match=r"--only-blocks: \[1, 4\], expected distinct blocks of 0 to 3"):
        train_on(longer, [1, 4])
    train_on(longer, [1])
    with pytest.raises(UserError, match=r"written with --only-blocks 1; resume with the same"):
        train(longer, resume=True)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_k(scene_folder: Path, tmp_path: Path) -> None:
    # Without blocks.active k is the number of ranks that started the run.
    config = make_config(scene_folder, tmp_path / "one", "blocks.active=null", "log.checkpoint_every=25")
    interrupt(config, 30)
    assert train(config, resume=True).step == 240, "4 blocks, one at a time, 60 steps each"
    one = model_of(tmp_path / "one")
    interrupt(make_config(scene_folder, tmp_path / "two", "blocks.active=1", "log.checkpoint_every=25"), 30)
    train(make_config(scene_folder, tmp_path / "two", "blocks.active=1"), resume=True)
    assert_same_bits(model_of(tmp_path / "two"), one)


class Listener:
    """Keeps the events of one kind."""

    def __init__(self, kind: type) -> None:
        self.kind, self.heard = kind, list[Any]()

    def on_event(self, event: Event) -> None:
        if isinstance(event, self.kind):
            self.heard.append(event)

    def close(self) -> None: ...


@pytest.mark.slow
def test_a_block_at_its_cap_is_reported_and_trains_on(
    scene_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(scene_folder, tmp_path, "anchors.max_per_block=100")
    capped, rounds = Listener(GrowthCapped), Listener(RoundEnded)
    training = Training(config, load_scene(config.scene), write_table(config), LocalComm(), CPU)
    assert training.run(Observers([capped, rounds])).step == 120
    assert capped.heard
    assert all(event.refused > 0 for event in capped.heard)
    assert "stops growing at" in capfd.readouterr().err
    assert [event.step for event in rounds.heard] == list(range(15, 121, 15))
