"""Time and peak memory of baking and writing many Gaussians: random anchors, all seen by every camera.

  python scripts/scale/export_memory.py --gaussians 20000000

Contributions are given instead of rendered: rendering needs the memory of 'momentum-gs render'. The file is read back
in parts and removed.
"""

import argparse
import time
from pathlib import Path

import torch
from tqdm import tqdm

from momentum_gs.bake.baking import bake_parts
from momentum_gs.bake.contributions import Contributions, ViewContributions
from momentum_gs.core.memory import peak_memory
from momentum_gs.core.types import Camera
from momentum_gs.export.files import read_parts, write_parts
from momentum_gs.model.anchors import Anchors
from momentum_gs.model.decoder import GaussianDecoder

OFFSETS = 10


def main() -> None:
    """Prints one line for each part of the work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, default=20_000_000)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--sh", type=int, default=3)
    parser.add_argument("--file", type=Path, default=Path("export_memory.ply"))
    args = parser.parse_args()
    n = args.gaussians // OFFSETS
    anchors = Anchors.fresh(torch.randn(n, 3), torch.randn(n, 32), torch.full((n, 6), -3.0), OFFSETS)
    decoder = GaussianDecoder().requires_grad_(False)
    eye = torch.eye(3, dtype=torch.float64)
    cameras = [
        Camera(str(i), 64, 64, 64.0, 64.0, 32.0, 32.0, eye, torch.tensor([i, 0.0, 9.0], dtype=torch.float64))
        for i in range(args.views)
    ]
    chosen = torch.arange(n * OFFSETS)
    weight = torch.ones(len(chosen))
    seen = Contributions(weight, [ViewContributions(chosen, weight) for _ in cameras])
    print(f"model and contributions: {peak_memory() / 2**30:.2f} GiB")
    begun = time.perf_counter()
    parts = bake_parts(anchors, decoder, cameras, seen, chosen, sh_degree=args.sh)
    write_parts(args.file, (splats for _, splats in parts), len(chosen), args.sh)
    size = args.file.stat().st_size / 2**30
    print(
        f"{len(chosen):,} Gaussians baked and written: {size:.2f} GiB in {time.perf_counter() - begun:.0f} s, "
        f"peak memory {peak_memory() / 2**30:.2f} GiB"
    )
    read = sum(len(part) for part in tqdm(read_parts(args.file), disable=None))
    print(f"{read:,} read back, peak memory {peak_memory() / 2**30:.2f} GiB")
    args.file.unlink()


if __name__ == "__main__":
    main()
