"""Times the variants of the CPU kernels against each other: ``python scripts/cpu_variants.py [NAME=FOLDER...]``.

It starts a process for each variant of the installed extensions, and for each FOLDER with another build of them, such
as one with NATIVE=1 (``NATIVE=1 pip install --no-build-isolation --no-deps --target FOLDER ./submodules/...``). Their
calls alternate, on one thread each. It prints medians of the CPU time in milliseconds, which depends less on other
programs than the wall-clock time, and in brackets their ratio to the first.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stages() -> dict[str, Callable[[], object]]:
    """The calls to time, on the loads of docs/kernels.md."""
    import torch
    from fused_ssim import fused_ssim
    from rasterizer_scenes import screen_scene
    from simple_knn._C import distCUDA2

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    ops = torch.ops.diff_gaussian_rasterization
    import diff_gaussian_rasterization  # noqa: F401  (loads the operators)

    scene = screen_scene(100_000, 960, 540)
    camera = [scene[key] for key in ("fx", "fy", "cx", "cy", "width", "height")]
    shape = (scene["means"], scene["scales"], scene["quats"], None, scene["world_view"])
    projected = ops.project(*shape, None, *camera, 1.0, 0.2)
    blend = (*projected, scene["opacities"], scene["colors"], scene["background"], *camera[4:])
    drawn = ops.composite(*blend)
    grad = torch.randn(drawn[0].shape, generator=generator)
    back = ops.composite_backward(grad, None, None, *drawn, 100_000)
    tail = (*shape, projected[1], projected[3], *camera, 1.0, 0.2, False)
    image, other = torch.rand(2, 1, 3, 540, 960, generator=generator)
    image.requires_grad_()
    points = torch.randn(200_000, 3, generator=generator)
    return {
        "rasterizer, projection": lambda: ops.project(*shape, None, *camera, 1.0, 0.2),
        "rasterizer, binning + forward": lambda: ops.composite(*blend),
        "rasterizer, backward": lambda: ops.composite_backward(grad, None, None, *drawn, 100_000),
        "rasterizer, backward of the projection": lambda: ops.project_backward(back[0], back[1], None, *tail),
        "SSIM, forward": lambda: fused_ssim(image, other, train=False),
        "SSIM, forward + backward": lambda: fused_ssim(image, other).backward(),
        "nearest neighbours, 200,000 points": lambda: distCUDA2(points),
    }


def work() -> None:
    """Reads names of stages from stdin and prints for each the CPU time of one call, milliseconds."""
    calls = stages()
    print("\t".join(calls), flush=True)
    for line in sys.stdin:
        start = time.process_time()
        calls[line.strip()]()
        print((time.process_time() - start) * 1e3, flush=True)


def main() -> None:
    """Starts a process for each variant, alternates between them and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work()
    wanted = {"v4": {"MOMENTUM_GS_CPU": "v4"}, "v3": {"MOMENTUM_GS_CPU": "v3"}}
    folders = {name: folder for name, _, folder in (build.partition("=") for build in options.builds)}
    tests = str(ROOT / "submodules/diff-gaussian-rasterization/tests")
    workers = {}
    for name in (*wanted, *folders):
        path = [folders.get(name, ""), os.environ.get("PYTHONPATH", ""), tests]
        environment = {**os.environ, **wanted.get(name, {}), "PYTHONPATH": os.pathsep.join(filter(None, path))}
        workers[name] = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
    names = [worker.stdout.readline().strip().split("\t") for worker in workers.values()][0]
    print("| ms, and beside v4 | " + " | ".join(workers) + " |\n|---|" + "---|" * len(workers))
    for stage in names:
        times: dict[str, list[float]] = {name: [] for name in workers}
        for call in range(options.repeats + 2):
            for name, worker in workers.items():
                print(stage, file=worker.stdin, flush=True)
                if (answer := worker.stdout.readline()) and call > 1:  # the first two are warm-up
                    times[name].append(float(answer))
        medians = [statistics.median(spent) for spent in times.values()]
        print(f"| {stage} | " + " | ".join(f"{m:.1f} ({m / medians[0]:.2f})" for m in medians) + " |", flush=True)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()


if __name__ == "__main__":
    main()
