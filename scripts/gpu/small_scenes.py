"""Every kernel on small loads, for compute-sanitizer: ``python scripts/gpu/small_scenes.py [--emulated]``.

Forward and backward pass in both precisions, with features that fill a chunk and that do not, lists of several batches,
windows, masks of tiles, and Gaussians that are broken. ``--emulated``: on the CUDA emulator.
"""

import argparse
import json
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "anchor_decode": "anchor-decode",
    "diff_gaussian_rasterization": "diff-gaussian-rasterization",
    "fused_ssim": "fused-ssim",
    "simple_knn": "simple-knn",
}
FOLDERS = ("diff-gaussian-rasterization", "anchor-decode")
sys.path[:0] = [str(ROOT / "tests"), *(str(ROOT / "submodules" / folder / "tests") for folder in FOLDERS)]


def draw(device: str, dtype: torch.dtype) -> None:
    """The rasterizer with all of its gradients and with several capacities, spherical harmonics, and Adam on some
    rows."""
    from diff_gaussian_rasterization import Capacity, adam_update, rasterize, spherical_harmonics
    from rasterizer_scenes import make_scene

    views = [
        {"channels": 3},
        {"channels": 3, "window": (5, 3, 30, 20)},
        {"channels": 9, "tiles": torch.tensor([[True, False, True, True]] * 3)},
    ]
    for view in views:
        scene = make_scene(150, channels=int(view.pop("channels")), dtype=dtype, max_opacity=0.5)  # type: ignore[call-overload]
        scene["scales"][::3] *= 6
        scene["means"][7] = float("nan")
        given = scene | view
        given = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
        leaves = {k: v.requires_grad_() for k, v in given.items() if isinstance(v, torch.Tensor) and k != "tiles"}
        leaves["means2d"] = torch.zeros(150, 4, dtype=dtype, device=device, requires_grad=True)
        for capacity in (None, Capacity(1), Capacity(10_000)):
            given |= {"means2d": leaves["means2d"], "antialiasing": "window" in view}
            out = rasterize(**given, capacity=capacity)
            loss = out.image.square().sum() + out.depth.sum() + out.alpha.sum()
            torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    sh = torch.randn(150, 16, 3, dtype=dtype, device=device, requires_grad=True)
    dirs = torch.randn(150, 3, dtype=dtype, device=device, requires_grad=True)
    torch.autograd.grad(spherical_harmonics(3, dirs, sh).sum(), [dirs, sh])
    rows = [[torch.rand(150, *shape, dtype=dtype, device=device) for shape in ((3,), (15, 3), ())] for _ in range(4)]
    adam_update(*rows, lrs=[0.1, 0.2, 0.3], steps=[1, 2, 3], visible=torch.rand(150, device=device) < 0.5)


def others(device: str, dtype: torch.dtype) -> None:
    """SSIM and the nearest neighbours."""
    from fused_ssim import fused_ssim
    from simple_knn._C import distCUDA2

    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 3, 45, 70, generator=generator, dtype=dtype).to(device)
    fused_ssim(a.requires_grad_(), b).backward()
    distCUDA2(torch.randn(700, 3, generator=generator, dtype=dtype).to(device))


def decoders(device: str, dtype: torch.dtype) -> None:
    """Anchors: several tiles, a teacher, a feature bank, an anchor that is broken, a list and a mask in several
    capacities."""
    from anchor_decode import Capacity, decode
    from decoders import LAYOUTS, scene, values_and_gradients

    for layout in LAYOUTS[:3]:
        given = scene(90, 70, layout, dtype)
        given["position"][int(given["visible"][7])] = float("nan")
        given = {name: tensor.to(device) for name, tensor in given.items()}
        values_and_gradients(decode, given, layout)
        given["visible"] = torch.zeros(90, dtype=torch.bool, device=device).index_fill_(0, given["visible"], True)
        for capacity in (Capacity(1, 1), Capacity(70, 10), Capacity(90, 1000)):
            values_and_gradients(partial(decode, capacity=capacity), given, layout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emulated", action="store_true")
    args = parser.parse_args()
    device = "cpu" if args.emulated else "cuda"
    with ExitStack() as emulated:
        if args.emulated:
            import anchor_decode  # noqa: F401  (loads the operators)
            import cuda_emulator
            import diff_gaussian_rasterization  # noqa: F401
            import fused_ssim  # noqa: F401
            import simple_knn._C  # noqa: F401

            for name, folder in NAMES.items():
                cuda_emulator.load(ROOT / "submodules" / folder / "csrc")
                emulated.enter_context(cuda_emulator.instead_of_cpu(name))
        for dtype in (torch.float32,) if args.emulated else (torch.float32, torch.float64):
            draw(device, dtype)
            others(device, dtype)
            decoders(device, dtype)
    if device == "cuda":
        torch.cuda.synchronize()
    print("RESULT", json.dumps({"kernels": "ran"}))


if __name__ == "__main__":
    main()
