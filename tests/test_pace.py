"""A run with a time limit: the test provides the clock, so that no step takes real time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import CPU, make_config, model_of, write_table
from tiny_scene import write_tiny_scene

from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.errors import UserError
from momentum_gs.data.scene import load_scene
from momentum_gs.model.appearance import load_appearance
from momentum_gs.model.poses import load_poses
from momentum_gs.train.events import Observers
from momentum_gs.train.loop import Training
from momentum_gs.train.pace import Pace


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_scene(tmp_path_factory.mktemp("plane"))


class Machine:
    """A run whose step n takes ``cost(n)`` seconds; it asks ``Pace`` every ten steps, as training does."""

    def __init__(self, cost: Callable[[int], float]) -> None:
        self.now, self.step = 100.0, 0
        self._cost = cost
        self.revisions = 0

    def run(self, seconds: float, planned: int, least: int = 1) -> float:
        """Seconds that the run took."""
        pace = Pace(seconds, lambda steps: replace(Config(), steps=steps), least, clock=lambda: self.now)
        total, begun = planned, self.now
        while self.step < total:
            if self.step % 10 == 0:
                config = pace(self.step, total)
                if config is not None:
                    total = config.steps
                    self.revisions += 1
                    continue
            self.now += self._cost(self.step)
            self.step += 1
        return self.now - begun


@pytest.mark.parametrize("planned", [50, 1000, 100_000])
def test_the_run_ends_in_time_whatever_was_planned(planned: int) -> None:
    machine = Machine(lambda step: 0.1)
    assert machine.run(100.0, planned) == pytest.approx(100.0, rel=0.03)
    assert machine.step == pytest.approx(1000, rel=0.03)


def test_a_run_whose_steps_become_slower_ends_in_time() -> None:
    machine = Machine(lambda step: 0.05 + 0.0002 * step)
    assert machine.run(100.0, 2000) == pytest.approx(100.0, rel=0.03)


def test_a_run_that_is_slow_for_a_while_ends_in_time() -> None:
    machine = Machine(lambda step: 0.3 if 200 < step < 400 else 0.1)
    assert machine.run(100.0, 1000) == pytest.approx(100.0, rel=0.03)


def test_the_least_number_of_steps_is_done_although_time_is_over() -> None:
    machine = Machine(lambda step: 1.0)
    machine.run(0.0, 1000, least=300)
    assert machine.step == 300


def test_a_run_that_goes_as_planned_is_not_revised() -> None:
    machine = Machine(lambda step: 0.1)
    machine.run(100.0, 1000)
    assert machine.revisions == 0


def test_a_run_is_revised_seldom() -> None:
    machine = Machine(lambda step: 0.001 * (1 + step % 7))
    machine.run(100.0, 1000)
    assert machine.revisions <= 45


@pytest.mark.slow
class TestPacedTraining:
    """A run of one block whose number of steps changes while it trains."""

    def config(self, scene: Path, out: Path, steps: int, *overrides: str) -> Config:
        return make_config(scene, out, "stage=coarse", f"steps={steps}", f"optim.lr_steps={steps}", *overrides)

    def training(self, config: Config, pace: Callable[[int, int], Config | None] | None, resume: bool) -> Training:
        return Training(config, load_scene(config.scene), None, LocalComm(), CPU, resume=resume, pace=pace)

    def test_it_ends_at_the_step_that_was_set_during_training(self, plane: Path, tmp_path: Path) -> None:
        shorter = self.config(plane, tmp_path, 40)
        training = self.training(
            self.config(plane, tmp_path, 60), lambda step, total: shorter if (step, total) == (20, 60) else None, False
        )
        assert training.run(Observers()).step == 40
        assert training.config == shorter
        assert (tmp_path / "point_cloud" / "iteration_40").is_dir()

    @pytest.mark.usefixtures("one_thread")
    def test_a_number_set_before_the_first_step_gives_that_run(self, plane: Path, tmp_path: Path) -> None:
        learned = ("appearance.model=affine", "optim.pose=1e-3")
        wanted = self.config(plane, tmp_path / "a", 40, *learned)
        told = self.training(
            self.config(plane, tmp_path / "a", 60, *learned), lambda step, total: wanted if total == 60 else None, False
        )
        told.run(Observers())
        self.training(self.config(plane, tmp_path / "b", 40, *learned), None, False).run(Observers())
        ours, theirs = model_of(tmp_path / "a"), model_of(tmp_path / "b")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        for load in (load_appearance, load_poses):
            mine, its = (load(tmp_path / out / "point_cloud" / "iteration_40") for out in "ab")
            assert mine is not None and its is not None
            assert torch.equal(mine.rows, its.rows) and its.rows.any()

    @pytest.mark.usefixtures("one_thread")
    @pytest.mark.parametrize("at", [0, 30])
    def test_several_blocks_do_more_or_fewer_rounds(self, plane: Path, tmp_path: Path, at: int) -> None:
        def config(out: str, steps: int) -> Config:
            windows = ("blocks.windows=true", "teacher.enabled=false", "weighting.enabled=false")
            return make_config(plane, tmp_path / out, f"steps={steps}", f"optim.lr_steps={steps}", *windows)

        def training(out: str, steps: int, pace: Callable[[int, int], Config | None] | None = None) -> Training:
            start = config(out, steps)
            return Training(start, load_scene(start.scene), write_table(start), LocalComm(), CPU, pace=pace)

        asked: list[tuple[int, int]] = []

        def pace(step: int, total: int) -> Config | None:
            asked.append((step, total))
            return config("told", 75) if step == at else None

        told = training("told", 60, pace)
        before = [told.schedule[i] for i in range(len(told.schedule)) if told.schedule[i].first_step < 2 * at]
        assert told.run(Observers()).step == 150, "two rounds of two blocks for each of 75 block steps"
        # Asked between epochs of 15 block steps, and not before the last, in which the decoder is frozen.
        totals = [75 if step > at else 60 for step in range(0, 60, 15)]
        assert asked == list(zip(range(0, 60, 15), totals, strict=True))
        assert told.schedule[: len(before)] == before
        plain = training("plain", 75)
        plain.run(Observers())
        assert list(told.schedule) == list(plain.schedule)
        ours, theirs = model_of(tmp_path / "told"), model_of(tmp_path / "plain")
        assert at or all(torch.equal(ours[name], theirs[name]) for name in theirs)

    def test_it_resumes_with_another_number_of_steps(self, plane: Path, tmp_path: Path) -> None:
        first = self.training(self.config(plane, tmp_path, 60), None, False)
        assert first.run(Observers(), stop=lambda: first._step >= 20).interrupted
        other = self.config(plane, tmp_path, 30)
        with pytest.raises(UserError, match="other settings"):
            self.training(other, None, True)
        with pytest.raises(UserError, match="other settings"):
            self.training(replace(other, seed=1), lambda step, total: None, True)
        assert self.training(other, lambda step, total: None, True).run(Observers()).step == 30

    def test_it_ends_at_once_if_it_has_more_steps_already(self, plane: Path, tmp_path: Path) -> None:
        first = self.training(self.config(plane, tmp_path, 60), None, False)
        assert first.run(Observers(), stop=lambda: first._step >= 20).interrupted
        again = self.training(self.config(plane, tmp_path, 10), lambda step, total: None, True)
        assert again.run(Observers()).step == 20
        assert (tmp_path / "point_cloud" / "iteration_20").is_dir()
