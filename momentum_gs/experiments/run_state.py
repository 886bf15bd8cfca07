"""What ``momentum-gs run`` keeps in ``OUT/run.json``: the command, what was chosen, the stages that are over."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import info
from momentum_gs.experiments.choose import Choice

FILE = "run.json"


@dataclass
class Stage:
    """One stage that has begun."""

    seconds: float = 0.0
    """All attempts together."""
    done: bool = False


@dataclass
class RunState:
    """The file, and the same in memory. Whole at any moment: each change replaces it."""

    folder: Path
    command: dict[str, Any]
    """What the user asked for; another command does not go on with this run."""
    choices: list[Choice] = field(default_factory=list)
    warnings: int = 0
    """Of the doctor."""
    reserve: float = 0.0
    """Seconds that the stages after training are expected to take."""
    stages: dict[str, Stage] = field(default_factory=dict)
    """In the order in which they began."""
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def open(cls, folder: Path, command: dict[str, Any], clock: Callable[[], float] = time.perf_counter) -> "RunState":
        """That of an output folder, or a new one.

        Raises:
            UserError: where the folder holds another run, or something else.
        """
        file = folder / FILE
        if not file.is_file():
            if folder.is_dir() and any(folder.iterdir()):
                raise UserError(
                    f"run: {folder} is there already and holds no {FILE}, expected a new folder or one of an earlier "
                    "'momentum-gs run'; choose another"
                )
            return cls(folder, command, clock=clock)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            choices = [Choice(**choice) for choice in data["choices"]]
            stages = {name: Stage(**stage) for name, stage in data["stages"].items()}
            found = cls(folder, data["command"], choices, data["warnings"], data["reserve"], stages, clock)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"run: {file} cannot be read ({error!r}), expected what 'momentum-gs run' wrote; remove {folder}, or "
                "choose another"
            ) from error
        differing = [
            f"{key}: {found.command.get(key)!r} there, {value!r} now"
            for key, value in command.items()
            if found.command.get(key) != value
        ]
        if differing:
            raise UserError(
                f"run: {folder} holds a run of another command ({'; '.join(differing)}); repeat that one to go on, or "
                "choose another folder"
            )
        return found

    @property
    def seconds(self) -> float:
        """All stages so far."""
        return sum(stage.seconds for stage in self.stages.values())

    def done(self, name: str) -> bool:
        """Whether a stage is over."""
        return name in self.stages and self.stages[name].done

    def add(self, name: str, seconds: float) -> None:
        """Counts time that no stage of the run's own has."""
        stage = self.stages.setdefault(name, Stage(done=True))
        stage.seconds += seconds

    def save(self) -> None:
        """Writes the file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {
            "command": self.command,
            "choices": [asdict(choice) for choice in self.choices],
            "warnings": self.warnings,
            "reserve": self.reserve,
            "stages": {name: asdict(stage) for name, stage in self.stages.items()},
        }
        with replacing(self.folder / FILE) as part:
            part.write_text(json.dumps(data, indent=1, ensure_ascii=False), encoding="utf-8")

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[], float]]:
        """Heads a stage and counts its time, also that of an attempt that fails; it is over where the block ends.

        Yields a function to be called on the way: it notes the time so far, and gives the seconds of all stages.
        """
        info(f"\n== {name}")
        stage = self.stages.setdefault(name, Stage())
        before, begun = stage.seconds, self.clock()

        def note() -> float:
            stage.seconds = before + self.clock() - begun
            self.save()
            return self.seconds

        note()
        try:
            yield note
            stage.done = True
        finally:
            note()

    def table(self) -> str:
        """Stages with their seconds and their share of the whole."""
        total = max(self.seconds, 1e-9)
        rows = [(name, stage.seconds) for name, stage in self.stages.items()]
        lines = [f"{name:<12}{seconds:>9.1f} s{seconds / total:>7.0%}" for name, seconds in rows]
        return "\n".join([*lines, f"{'all':<12}{total:>9.1f} s"])
