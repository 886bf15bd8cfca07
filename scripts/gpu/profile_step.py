"""Launches, waits, memory and the longest kernels of a training step, from a short training of a scene.

    python scripts/gpu/profile_step.py --scene SCENE --out OUT --device cuda --steps 40
"""

import argparse
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from momentum_gs.config.load import load_config
from momentum_gs.core.comm import LocalComm
from momentum_gs.core.device import device_use, pick_device
from momentum_gs.data.scene import load_scene
from momentum_gs.train.events import Event, Observers, StepDone
from momentum_gs.train.loop import Training

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
LONGEST = 12
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
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

    def on_event(self, event: Event) -> None:
        if not isinstance(event, StepDone):
            return
        if event.step == self._first:
            self.caught = self._catching.__enter__() or []
            warnings.simplefilter("always")
            self._watch("warn")
            self.profiler.start()
        elif event.step == self._first + self.count:
            self.profiler.stop()
            self._watch("default")
            self._catching.__exit__(None, None, None)

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

    longest = sorted(events, key=time_of, reverse=True)[:LONGEST]
    waits = [str(w.message) for w in profiled.caught if "synchroniz" in str(w.message)]
    use = device_use(device)
    return {
        "launches a step": calls(LAUNCHES),
        "calls that wait, a step": calls(WAITS),
        "waits that torch names, a step": round(len(waits) / steps, 2),
        "operators a step": round(sum(e.count for e in events if e.key.startswith("aten::")) / steps, 1),
        "peak memory, GiB": round(int(use["peak_memory_bytes"]) / 2**30, 3),
        "longest, ms a step": [
            f"{time_of(e) / 1e3 / steps:9.3f}  {e.count / steps:6.1f} x  {e.key[:90]}" for e in longest
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    first, device = args.steps, pick_device(args.device)
    total = first + args.steps + 1
    settings = [f"scene.path={args.scene}", f"out={args.out}", "stage=coarse", f"steps={total}"]
    config = load_config(CONFIG, settings)
    profiled = Profiled(first, args.steps, device)
    Training(config, load_scene(config.scene), None, LocalComm(), device).run(Observers([profiled]))
    print("RESULT", json.dumps(figures(profiled, device)))


if __name__ == "__main__":
    main()
