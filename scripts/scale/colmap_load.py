"""Measures how long reading a large COLMAP model takes, and how much memory.

    python scripts/scale/colmap_load.py [--images 5000] [--observations 2000] [--points 5000000] [--folder DIR]

Fabricates a scene with a binary model (every image one file under many names) and loads it in a process of its own,
first the model alone, then the whole scene with every image's header. Peak memory is the resident set of that process,
mapped files and the libraries included; what the libraries alone take is measured in another process.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from momentum_gs.data.images import write_png

WIDTH, HEIGHT = 1600, 1064
_POINT_BYTES, _TRACK_BYTES = 51, 8
_PIECE = 500_000

MEASURE = """
import json, resource, sys, time
from momentum_gs.config.schema import SceneConfig
from momentum_gs.data.colmap.model import read_model
from momentum_gs.data.scene import load_scene
from pathlib import Path
seconds, found = [], {}
for what in sys.argv[2:]:
    begin = time.perf_counter()
    if what == "model":
        model = read_model(Path(sys.argv[1]) / "sparse" / "0")
        found[what] = (len(model.cameras), len(model.points))
        del model
    else:
        scene = load_scene(SceneConfig(path=sys.argv[1]))
        found[what] = (len(scene.train) + len(scene.test), len(scene.points))
    seconds.append(time.perf_counter() - begin)
print(json.dumps([seconds, found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""


def write_scene(root: Path, images: int, observations: int, points: int) -> None:
    """A flight over a plane; every observation belongs to some point, so tracks have as many entries."""
    import torch

    sparse = root / "sparse" / "0"
    sparse.mkdir(parents=True)
    camera = struct.pack("<iiQQ4d", 1, 1, WIDTH, HEIGHT, 1200.0, 1200.0, WIDTH / 2, HEIGHT / 2)
    (sparse / "cameras.bin").write_bytes(struct.pack("<Q", 1) + camera)
    draw = np.random.default_rng(0)
    image = root / "image.png"
    write_png(image, torch.zeros(3, HEIGHT, WIDTH))
    seen = np.zeros(observations, np.dtype([("xy", "<f8", 2), ("point", "<i8")]))
    with (sparse / "images.bin").open("wb") as file:
        file.write(struct.pack("<Q", images))
        for i in range(images):
            name = f"strip_{i // 100:03d}/DJI_{i:05d}.png"
            target = root / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(image, target)
            seen["xy"] = draw.uniform((0, 0), (WIDTH, HEIGHT), (observations, 2))
            seen["point"] = draw.integers(0, points, observations)
            pose = (0.0, 1.0, 0.0, 0.0, float(i % 100), float(i // 100), 4.0)
            file.write(struct.pack("<i7di", i + 1, *pose, 1) + name.encode() + b"\0")
            file.write(struct.pack("<Q", observations) + seen.tobytes())
    mean = images * observations / points
    with (sparse / "points3D.bin").open("wb") as file:
        file.write(struct.pack("<Q", points))
        for start in range(0, points, _PIECE):
            count = min(_PIECE, points - start)
            length = draw.poisson(mean, count)
            ends = np.cumsum(_POINT_BYTES + _TRACK_BYTES * length)
            data = np.zeros(int(ends[-1]), np.uint8)
            heads = np.zeros((count, _POINT_BYTES), np.uint8)
            heads[:, :8] = np.arange(start + 1, start + count + 1, dtype="<u8")[:, None].view(np.uint8)
            heads[:, 8:32] = draw.normal(size=(count, 3)).astype("<f8").view(np.uint8)
            heads[:, 43:51] = length.astype("<u8")[:, None].view(np.uint8)
            at = np.concatenate([[0], ends[:-1]])
            data[at[:, None] + np.arange(_POINT_BYTES)] = heads
            file.write(data.tobytes())


def measure(root: Path, *what: str) -> tuple[list[float], dict[str, list[int]], float]:
    """Seconds, the result, and peak memory (GiB) of a process that reads the model."""
    done = subprocess.run([sys.executable, "-c", MEASURE, str(root), *what], check=True, capture_output=True, text=True)
    seconds, found, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, found, peak


def main() -> None:
    """Writes the model, reads it and prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--observations", type=int, default=2000, help="2D points of an image")
    parser.add_argument("--points", type=int, default=5_000_000)
    parser.add_argument("--folder", help="where to put the scene for a while (default: the system's temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        write_scene(root, args.images, args.observations, args.points)
        size = sum(file.stat().st_size for file in (root / "sparse" / "0").iterdir()) / 2**30
        print(f"{args.images} images of {args.observations} observations, {args.points} points: {size:.2f} GiB")
        libraries = measure(root)[2]
        (model,), found, peak = measure(root, "model")
        assert found["model"] == [args.images, args.points], found
        print(f"model: {model:.1f} s, peak {peak:.2f} GiB (libraries alone {libraries:.2f})")
        (scene,), found, peak = measure(root, "scene")
        assert found["scene"] == [args.images, args.points], found
        print(f"scene: {scene:.1f} s, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
