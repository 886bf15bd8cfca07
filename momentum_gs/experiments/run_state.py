"""The state of ``momentum-gs run`` in ``OUT/run.json``: the command, the chosen settings and the finished stages."""

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
    """A stage that has begun."""

    seconds: float = 0.0
    """Time of all attempts together."""
    done: bool = False


@dataclass
class RunState:
    """The content of ``run.json``. The file is never incomplete: ``save`` replaces it as a whole."""

    folder: Path
    """OUT."""
    command: dict[str, Any]
    """What the user asked for; a different command cannot continue this run."""
    choices: list[Choice] = field(default_factory=list)
    warnings: int = 0
    """Number of the doctor's warnings."""
    reserve: float = 0.0
    """Seconds that the stages after training are expected to take."""
    stages: dict[str, Stage] = field(default_factory=dict)
    """In the order in which they began."""
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def open(cls, folder: Path, command: dict[str, Any], clock: Callable[[], float] = time.perf_counter) -> "RunState":
        """Reads the state of an output folder, or makes a new one.

        Raises:
            UserError: if the folder holds the run of another command, or anything else.
        """
        file = folder / FILE
        if not file.is_file():
            if folder.is_dir() and any(folder.iterdir()):
                raise UserError(
                    f"run: {folder} exists already and holds no {FILE}, expected a new folder or one of an earlier "
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
                f"run: {folder} holds a run of another command ({'; '.join(differing)}); repeat that command to "
                "continue it, or choose another folder"
            )
        return found

    @property
    def seconds(self) -> float:
        """Time of all stages so far."""
        return sum(stage.seconds for stage in self.stages.values())

    def done(self, name: str) -> bool:
        """Whether a stage is over."""
        return name in self.stages and self.stages[name].done

    def add(self, name: str, seconds: float) -> None:
        """Adds time that was spent outside the stages, under a name of its own."""
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
        """Prints a stage's heading and measures its time, also that of a failed attempt; without an error it is done.

        Yields a function to be called now and then: it saves the time so far and returns the seconds of all stages.
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
        """A table of the stages with their seconds and shares of the total."""
        total = max(self.seconds, 1e-9)
        rows = [(name, stage.seconds) for name, stage in self.stages.items()]
        lines = [f"{name:<12}{seconds:>9.1f} s{seconds / total:>7.0%}" for name, seconds in rows]
        return "\n".join([*lines, f"{'all':<12}{total:>9.1f} s"])
