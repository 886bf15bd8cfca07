"""Times what memory bounds against a copy on the same device: ``python scripts/gpu/bandwidth.py [--device cuda]``.

The bound of an operation is the bytes that it must read and write once, at the rate of a large copy. Also the rates
between host and device, pinned and not.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

REPEATS = 9


def median_seconds(call: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type != "cpu":
            torch.cuda.synchronize(device)

    call()
    seconds = []
    for _ in range(REPEATS):
        wait()
        start = time.perf_counter()
        call()
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="of every load")
    args = parser.parse_args()
    device = torch.device(args.device)
    from diff_gaussian_rasterization import visible_radii
    from fused_ssim import fused_ssim

    def sized(count: int) -> int:
        return max(int(count * args.scale), 64)

    whole = torch.zeros(sized(2**28), device=device)
    copy = torch.empty_like(whole)
    rate = 2 * whole.nbytes / median_seconds(lambda: copy.copy_(whole), device)
    figures: dict[str, object] = {"copy, GB/s": round(rate / 1e9, 1)}

    def share(name: str, moved: int, call: Callable[[], object]) -> None:
        seconds = median_seconds(call, device)
        bound = f"{100 * moved / rate / seconds:.0f} % of the bound of {moved / 1e6:.0f} MB"
        figures[name] = f"{1e3 * seconds:.3f} ms, {bound}"

    parameter = torch.nn.Parameter(torch.zeros(sized(64_000_000), device=device))
    parameter.grad = torch.ones_like(parameter)
    adam = torch.optim.Adam([parameter], fused=True)
    share("Adam (torch, fused)", 7 * parameter.nbytes, adam.step)  # reads four tensors, writes three

    side = sized(4096 * 3)
    a, b = torch.rand(2, 1, 3, side // 3, 2048, device=device)
    share("SSIM, value", 2 * a.nbytes, lambda: fused_ssim(a, b, train=False))
    share("SSIM, value and gradient", 3 * a.nbytes, lambda: torch.ops.fused_ssim.mean_ssim_with_grad(a, b, False))

    count = sized(10_000_000)
    means = torch.rand(count, 3, device=device) + 1
    scales, quats = torch.rand(count, 3, device=device), torch.rand(count, 4, device=device)
    view = torch.eye(4, device=device)
    camera = {"fx": 500.0, "fy": 500.0, "cx": 480.0, "cy": 270.0, "width": 960, "height": 540}
    share("visible_radii", 44 * count, lambda: visible_radii(means, scales, quats, world_view=view, **camera))

    host = torch.empty(sized(2**26))
    for name, memory in {"pageable": host, "pinned": host if device.type == "cpu" else host.pin_memory()}.items():
        there = torch.empty_like(memory, device=device)
        up = median_seconds(lambda m=memory, t=there: t.copy_(m, non_blocking=True), device)  # type: ignore[misc]
        down = median_seconds(lambda m=memory, t=there: m.copy_(t, non_blocking=True), device)  # type: ignore[misc]
        figures[f"{name}, to and from the device, GB/s"] = [f"{memory.nbytes / s / 1e9:.1f}" for s in (up, down)]
    print("RESULT", json.dumps(figures))


if __name__ == "__main__":
    main()
