"""How much a block forgets while the shared decoder serves others, which is what the momentum teacher is for.

    python scripts/forgetting.py SCENE OUT --partition OUT/partition.json --seeds 0 \\
        --common "-c configs/ablations/city.yaml -c configs/modes/alternating.yaml" \\
        "alternating" "momentum teacher.enabled=true" "interval 1 blocks.interval=1"

A variant is a name and further words for 'momentum-gs train'. For every block, its PSNR on every --stride-th of its own
training views is measured when one of its rounds ends and when its next round begins. Nothing of the block has changed
in between, only the decoder: the difference is what the block forgot. With windows, only the pixels that the block owns
count, and it is rendered amid the other blocks as they were at the end of its round.

Prints a table and writes OUT/forgetting.json and OUT/forgetting.png.
"""

import argparse
import json
import shlex
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from momentum_gs.config.load import load_config
from momentum_gs.config.schema import Config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.device import pick_device
from momentum_gs.data.frame import recorded_frame
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import load_scene
from momentum_gs.data.views import Views
from momentum_gs.render.score import score_views
from momentum_gs.train.blocks.block import Block
from momentum_gs.train.blocks.packed import unpack
from momentum_gs.train.events import Event, Observers, RoundEnded, RoundStarted
from momentum_gs.train.loop import Training


class Watch:
    """Measures blocks when their rounds end and begin; an observer of one training."""

    def __init__(self, training: Training, views: Views, stride: int, every: int) -> None:
        self._training, self._views, self._stride, self._every = training, views, stride, every
        self._due = [0] * training._store.n
        self._active: tuple[int, ...] = ()
        self._at_end: dict[int, tuple[float, Block]] = {}
        self.found: list[tuple[int, int, float, float]] = []
        """(Step at which the round begins, block, PSNR at the end of its last round, PSNR now)."""

    def on_event(self, event: Event) -> None:
        """Measures the blocks whose round begins or has ended."""
        if isinstance(event, RoundStarted):
            for block in event.blocks:
                if block in self._at_end:
                    before, state = self._at_end.pop(block)
                    self.found.append((event.step, block, before, self._psnr(state)))
            self._active = event.blocks
        elif isinstance(event, RoundEnded):
            for block in self._active:
                if event.step < self._due[block]:
                    continue
                self._due[block] = event.step + self._every
                state = self._state(block)
                self._at_end[block] = (self._psnr(state), state)

    def close(self) -> None:
        """Does nothing."""

    def _state(self, block: int) -> Block:
        """An inactive block, with copies of the other blocks around it where it trains windows."""
        training = self._training
        state = unpack(training._store.packed(block), training.config, training._device)
        if training._plan.windows is not None:
            others = [training._store.rows(other) for other in range(training._store.n) if other != block]
            together = {name: torch.cat([rows[name] for rows in others]) for name in others[0]}
            state.around = state.MODEL.from_rows(together)
        return state

    def _psnr(self, state: Block) -> float:
        """Of every n-th of the block's training views, in dB."""
        training = self._training
        cameras = training._plan.train[state.block][:: self._stride]
        found = score_views(
            state.model, training._decoders.student_of(state), cameras, self._views, training._background,
            around=state.around, window=lambda camera: training._surroundings.window(state, camera),
        )  # fmt: skip
        assert found is not None, "images of the block can be read"
        return found.psnr


def main() -> None:
    """Trains, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="+", metavar="'NAME WORDS'")
    parser.add_argument("--partition", type=Path, required=True, help="partition.json of the scene's blocks")
    parser.add_argument("--common", default="", help="words that all variants have: -c FILE and settings")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--stride", type=int, default=5, help="every n-th view is measured (default: %(default)s)")
    parser.add_argument("--every", type=int, default=40, help="steps between measurements (default: %(default)s)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    record = args.out / "forgetting.json"
    rows: dict[str, dict[str, list[tuple[int, int, float, float]]]] = {}
    for seed in args.seeds.split(","):
        for variant in args.variants:
            name, *words = shlex.split(variant)
            config = settings(args, name, seed, [*shlex.split(args.common), *words])
            rows.setdefault(name, {})[seed] = measure(config, args)
            record.write_text(json.dumps(rows))
            draw(rows, args.out / "forgetting.png")
    print("\n".join(table_of(rows)))


def settings(args: argparse.Namespace, name: str, seed: str, words: list[str]) -> Config:
    """The settings of a variant."""
    files = [words[i + 1] for i, word in enumerate(words) if word == "-c"]
    overrides = [word for i, word in enumerate(words) if word != "-c" and (i == 0 or words[i - 1] != "-c")]
    run = args.out / f"{name}_s{seed}"
    return load_config(files, [f"scene.path={args.scene}", f"out={run}", f"seed={seed}", *overrides])


def measure(config: Config, args: argparse.Namespace) -> list[tuple[int, int, float, float]]:
    """Trains a variant and returns what was measured of its blocks."""
    table = PartitionTable.load(args.partition)
    config = replace(config, scene=recorded_frame(config.scene, table.meta))
    scene, device = load_scene(config.scene), pick_device(config.device)
    training = Training(config, scene, table, LocalComm(), device)
    with Views(scene, int(config.scene.cache_gb * 2**30), device) as views:
        watch = Watch(training, views, args.stride, args.every)
        training.run(Observers([watch]))
    return watch.found


def table_of(rows: dict[str, dict[str, list[tuple[int, int, float, float]]]]) -> list[str]:
    """Markdown: mean loss in dB while inactive, in the run's halves; PSNR of all blocks at their rounds' end."""
    lines = ["| | forgotten, dB | first half | second half | largest | PSNR at the end of a round, last quarter |",
             "|---" * 6 + "|"]  # fmt: skip
    for name, seeds in rows.items():
        found = [row for runs in seeds.values() for row in runs]
        half = max((step for step, *_ in found), default=0) / 2
        lost = [(step, before - now) for step, _, before, now in found]
        parts = [[v for _, v in lost], [v for s, v in lost if s < half], [v for s, v in lost if s >= half]]
        late = [before for step, _, before, _ in found if step >= 1.5 * half]
        cells = [f"{statistics.mean(part):.2f}" if part else "-" for part in [*parts, late]]
        cells.insert(3, f"{max(parts[0]):.2f}" if parts[0] else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def draw(rows: dict[str, dict[str, list[tuple[int, int, float, float]]]], path: Path) -> None:
    """Forgotten dB over the run, a line for each variant."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, seeds in rows.items():
        by_step: dict[int, list[float]] = {}
        for runs in seeds.values():
            for step, _, before, now in runs:
                by_step.setdefault(step, []).append(before - now)
        steps = sorted(by_step)
        axes.plot(steps, [statistics.mean(by_step[step]) for step in steps], label=name)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set(xlabel="step at which the block becomes active again", ylabel="PSNR lost while inactive, dB")
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
