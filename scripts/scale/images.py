"""Reads 10,000 images of mixed sizes with the prefetching loader and reports memory and open files.

    python scripts/scale/images.py [--images 10000] [--cache-mb 64]

Writes a few JPEG and PNG files of 0.08 to 1.2 megapixels, gives them 10,000 names (hard links), and shows all names in
random order as training does: four are decoded ahead. Prints resident memory and open files every tenth of the way.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.scene import Scene
from momentum_gs.data.views import Views

AHEAD = 4
SIZES = [(320, 240), (480, 640), (640, 480), (800, 533), (1000, 751), (960, 1280), (1280, 960)]


def make_scene(folder: Path, count: int) -> Scene:
    """``count`` views of the same few images, each with its own file name."""
    draw = np.random.default_rng(0)
    cameras, paths = [], {}
    for i in range(count):
        kind = i % (2 * len(SIZES))
        (width, height), suffix = SIZES[kind // 2], (".jpg", ".png")[kind % 2]
        source, name = folder / f"kind{kind}{suffix}", f"{i:06d}{suffix}"
        if not source.exists():
            # Smooth, so that the files are as small as images.
            coarse = draw.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
            cv2.imwrite(str(source), cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
        paths[name] = folder / name
        os.link(source, paths[name])
        identity, zero = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        cameras.append(Camera(name, width, height, width, width, width / 2, height / 2, identity, zero))
    points = PointCloud(torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.uint8))
    return Scene(folder, cameras, [], points, paths)


def main() -> None:
    """Reads all of them once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--cache-mb", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scene = make_scene(Path(folder), args.images)
        names = list(scene.image_paths)
        random.Random(0).shuffle(names)
        begin = time.perf_counter()
        print(f"{'images':>8}{'resident MiB':>14}{'open files':>12}{'seconds':>9}")
        with Views(scene, args.cache_mb << 20, torch.device("cpu")) as views:
            for i, name in enumerate(names, 1):
                views.prefetch(names[i : i + AHEAD])
                views.image(name)
                if i % (args.images // 10) == 0:
                    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
                    files, seconds = len(os.listdir("/proc/self/fd")), time.perf_counter() - begin
                    print(f"{i:>8}{resident / 2**20:>14.1f}{files:>12}{seconds:>9.0f}", flush=True)


if __name__ == "__main__":
    main()
