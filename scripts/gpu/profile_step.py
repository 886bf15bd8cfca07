"""Launches, waits, memory and the longest kernels of a training step, from two short trainings of a scene: as they are,
and with every view counted before it is decoded and drawn, for the waits that this saves.

    python scripts/gpu/profile_step.py --scene SCENE --out OUT --device cuda --steps 40

``--emulated``: on a CPU, with the CUDA sources on the emulator, which counts what is read behind queued work.
"""

import argparse
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from momentum_gs.config.load import load_config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.device import device_use, pick_device
from momentum_gs.data.scene import load_scene
from momentum_gs.model.fused import Capacity as AnchorCapacity
from momentum_gs.render.rasterize import Capacity as PairCapacity
from momentum_gs.train.events import Event, Observers, StepDone
from momentum_gs.train.loop import Training

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "demo.yaml"
LONGEST = 12
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize")
"""The device is then out of work."""
LATE = ("cudaEventSynchronize",)
"""It then has work that was queued behind the event."""
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")


class Profiled:
    """Starts the profiler at the first of the steps to look at, and stops it behind the last."""

    def __init__(self, first: int, count: int, device: torch.device) -> None:
        self._first, self.count, self._device = first, count, device
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if device.type != "cpu":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(activities=kinds)
        self.caught: list[warnings.WarningMessage] = []
        self._catching = warnings.catch_warnings(record=True)
        self.emulated = 0
        """Waits with work behind them, on the emulator."""

    def on_event(self, event: Event) -> None:
        if not isinstance(event, StepDone):
            return
        if event.step == self._first:
            self.emulated = -self._emulated_waits()
            self.caught = self._catching.__enter__() or []
            warnings.simplefilter("always")
            self._watch("warn")
            self.profiler.start()
        elif event.step == self._first + self.count:
            self.profiler.stop()
            self.emulated += self._emulated_waits()
            self._watch("default")
            self._catching.__exit__(None, None, None)

    def _emulated_waits(self) -> int:
        """Those that the emulator has noted so far."""
        log = Path(os.environ.get("CUDA_EMULATOR_WAITS", ""))
        return len(log.read_text().splitlines()) if log.is_file() else 0

    def _watch(self, mode: str) -> None:
        if self._device.type != "cpu":
            torch.cuda.set_sync_debug_mode(mode)

    def close(self) -> None:
        pass


def figures(profiled: Profiled, device: torch.device) -> dict[str, Any]:
    events, steps = profiled.profiler.key_averages(), profiled.count

    def calls(names: tuple[str, ...]) -> float:
        return round(sum(e.count for e in events if e.key in names) / steps, 2)

    def time_of(event: Any) -> float:
        return event.self_cpu_time_total if device.type == "cpu" else event.self_device_time_total

    late = calls(LATE) + round(profiled.emulated / steps, 2)
    longest = sorted(events, key=time_of, reverse=True)[:LONGEST]
    waits = [str(w.message) for w in profiled.caught if "synchroniz" in str(w.message)]
    use = device_use(device)
    return {
        "launches a step": calls(LAUNCHES),
        "waits for all work, a step": calls(WAITS),
        "waits with work queued behind, a step": late,
        "waits that torch names, a step": round(len(waits) / steps, 2),
        "operators a step": round(sum(e.count for e in events if e.key.startswith("aten::")) / steps, 1),
        "peak memory, GiB": round(int(use["peak_memory_bytes"]) / 2**30, 3),
        "longest, ms a step": [
            f"{time_of(e) / 1e3 / steps:9.3f}  {e.count / steps:6.1f} x  {e.key[:90]}" for e in longest
        ],
    }


def know_nothing(capacity: Any, *seen: int) -> None:
    """In place of ``Capacity.after``: every view is counted before it is decoded and drawn."""


@contextmanager
def emulated(out: Path) -> Iterator[None]:
    """The operators that know of capacities are those of the CUDA sources."""
    sys.path.insert(0, str(ROOT / "tests"))
    import cuda_emulator

    out.parent.mkdir(parents=True, exist_ok=True)
    folders = {"anchor-decode": "anchor_decode", "diff-gaussian-rasterization": "diff_gaussian_rasterization"}
    with ExitStack() as stack:
        for folder, name in folders.items():
            cuda_emulator.load(ROOT / "submodules" / folder / "csrc")
            stack.enter_context(cuda_emulator.instead_of_cpu(name))
        stack.enter_context(patch.dict(os.environ, {"CUDA_EMULATOR_WAITS": str(out.with_suffix(".waits"))}))
        yield


def profile(scene: str, out: Path, device: torch.device, count: int) -> dict[str, Any]:
    """The figures of ``count`` steps behind as many others."""
    shutil.rmtree(out, ignore_errors=True)
    settings = [f"scene.path={scene}", f"out={out}", "stage=coarse", f"steps={2 * count + 1}"]
    config = load_config(CONFIG, settings)
    profiled = Profiled(count, count, device)
    Training(config, load_scene(config.scene), None, LocalComm(), device).run(Observers([profiled]))
    return figures(profiled, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--emulated", action="store_true")
    args = parser.parse_args()
    device = pick_device(args.device)
    with ExitStack() as stack:
        if args.emulated:
            stack.enter_context(emulated(args.out))
        found = profile(args.scene, args.out, device, args.steps)
        with patch.object(AnchorCapacity, "after", know_nothing), patch.object(PairCapacity, "after", know_nothing):
            before = profile(args.scene, args.out, device, args.steps)
    found |= {f"{name}, counted first": before[name] for name in before if "waits" in name}
    print("RESULT", json.dumps(found))


if __name__ == "__main__":
    main()
