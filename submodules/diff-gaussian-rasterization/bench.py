"""Timings of the rasterizer on this machine: ``python bench.py [--threads N] [--gaussians N] [--size WxH]``.

Prints medians of the stages on a synthetic scene (sizes log-normal around 2.5 px, opacities 0.02 to 0.92), the time of
a window of a quarter of the pixels as a share of the whole image's time, and, on a smaller scene, the ratio to the
readable reference. ``--memory`` instead rasterizes the scene once, with the gradients of everything, and prints the
peak resident memory: ``python bench.py --memory --gaussians 5000000 --size 1600x900``.
"""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# Python puts the folder of a script first; it has the package's source, but not the library of the installed package.
HERE = Path(__file__).resolve().parent
if sys.path[0] == str(HERE):
    del sys.path[0]
sys.path.insert(0, str(HERE / "tests"))
from diff_gaussian_rasterization import rasterize  # noqa: E402
from diff_gaussian_rasterization.reference import rasterize_reference  # noqa: E402
from rasterizer_scenes import Scene, make_scene, screen_scene  # noqa: E402


def median_ms(run: Callable[[], Any], repeats: int) -> float:
    """Median wall time in milliseconds; the first run warms caches and allocators and does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def bench_stages(scene: Scene, repeats: int) -> None:
    """Projection and compositing, forward and backward."""
    ops = torch.ops.diff_gaussian_rasterization
    camera = [scene[k] for k in ("fx", "fy", "cx", "cy", "width", "height")]
    shape = (scene["means"], scene["scales"], scene["quats"], None, scene["world_view"])
    means2d, conics, depths, radii = ops.project(*shape, None, *camera, 1.0, 0.2)
    blend = (means2d, conics, depths, radii, scene["opacities"], scene["colors"], scene["background"], *camera[4:])
    out = ops.composite(*blend)
    count = len(means2d)
    grad = torch.randn(out[0].shape, generator=torch.Generator().manual_seed(0))
    grad_depth = torch.randn(out[2].shape, generator=torch.Generator().manual_seed(0))
    back = ops.composite_backward(grad, None, None, *out, count)
    print(f"{count} Gaussians, {camera[4]}x{camera[5]}, {out[7].shape[1]} (tile, Gaussian) pairs")
    stages = {
        "project": lambda: ops.project(*shape, None, *camera, 1.0, 0.2),
        "composite (bin + blend)": lambda: ops.composite(*blend),
        "composite backward, image": lambda: ops.composite_backward(grad, None, None, *out, count),
        "composite backward, all": lambda: ops.composite_backward(grad, grad_depth, grad_depth, *out, count),
        "project backward": lambda: ops.project_backward(
            back[0], back[1], None, *shape, conics, radii, *camera, 1.0, 0.2, False
        ),
    }
    for name, run in stages.items():
        print(f"  {name:27s} {median_ms(run, repeats):8.2f} ms")


def bench_window(scene: Scene, repeats: int) -> None:
    """Times the window in the middle, half as wide and high, and the whole image alternately, forward and backward."""
    width, height = scene["width"], scene["height"]
    window = (width // 4, height // 4, width // 2, height // 2)
    names = ("means", "opacities", "colors", "scales", "quats")
    leaves = {name: scene[name].clone().requires_grad_() for name in names}

    def step(**options: Any) -> float:
        start = time.perf_counter()
        torch.autograd.grad(rasterize(**(scene | leaves), **options).image.sum(), list(leaves.values()))
        return (time.perf_counter() - start) * 1e3

    whole, part = zip(*[(step(), step(window=window)) for _ in range(repeats + 1)][1:], strict=True)
    whole_ms, part_ms = statistics.median(whole), statistics.median(part)
    share = window[2] * window[3] / (width * height)
    print(f"forward + backward: {whole_ms:.1f} ms, window of {share:.2f} of the pixels {part_ms:.1f} ms,", end=" ")
    print(f"{part_ms / whole_ms:.2f} of the time")


def bench_reference(repeats: int) -> None:
    """Forward and backward against the reference, on a scene small enough to evaluate every Gaussian at every pixel."""
    scene = make_scene(300, width=160, height=90, dtype=torch.float32)
    scene["means"].requires_grad_()
    fast = median_ms(lambda: rasterize(**scene).image.sum().backward(), repeats)
    slow = median_ms(lambda: rasterize_reference(**scene).image.sum().backward(), 3)
    print(f"300 Gaussians, 160x90, forward + backward: {fast:.2f} ms, reference {slow:.0f} ms, {slow / fast:.0f}x")


def measure_memory(scene: Scene) -> None:
    """Peak resident memory before and after one forward and backward pass; call it in a fresh process."""

    def peak_gb() -> float:
        # Kilobytes on Linux, bytes on macOS.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9

    names = ("means", "opacities", "colors", "scales", "quats")
    size = sum(scene[name].nbytes for name in names) / 1e9
    print(f"{len(scene['means'])} Gaussians, {scene['width']}x{scene['height']}: {size:.2f} GB of inputs")
    print(f"  peak before drawing     {peak_gb():.2f} GB")
    leaves = {name: scene[name].requires_grad_() for name in names}
    out = rasterize(**(scene | leaves))
    print(f"  after drawing           {peak_gb():.2f} GB")
    (out.image.sum() + out.alpha.sum() + out.depth.sum()).backward()
    print(f"  after the gradients     {peak_gb():.2f} GB")


def main() -> None:
    """Parses the command line and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--gaussians", type=int, default=100_000)
    parser.add_argument("--size", default="960x540")
    parser.add_argument("--pixels", type=float, default=2.5, help="median standard deviation on the screen")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--memory", action="store_true", help="peak memory of one pass instead of timings")
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads")
    scene = screen_scene(options.gaussians, width, height, options.pixels)
    if options.memory:
        return measure_memory(scene)
    bench_stages(scene, options.repeats)
    bench_window(scene, options.repeats)
    bench_reference(options.repeats)


if __name__ == "__main__":
    main()
