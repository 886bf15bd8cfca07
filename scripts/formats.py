"""Writes a model of explicit Gaussians in every format, reads each file with an independent program and renders it.

    python scripts/formats.py RUN --folder FOLDER [--degree 0] [--formats .spz ...]

Prints a table for docs/formats.md: bytes per Gaussian, seconds, and the PSNR of the held-out views' renders against
those of the model itself. The readers are splat-transform, and for its own .sog gsply; both must be installed
(docs/formats.md).
"""

import argparse
import time
from pathlib import Path

import torch

from momentum_gs.config.run import load_run_config
from momentum_gs.core.device import pick_device
from momentum_gs.data.scene import load_scene
from momentum_gs.formats.converter import convert
from momentum_gs.formats.kinds import FORMATS
from momentum_gs.formats.sog import read_sog
from momentum_gs.formats.write import with_degree, write_splats
from momentum_gs.model.io import load_model, model_file, model_folder
from momentum_gs.model.splat_io import load_splats
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.view import render_image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of a run with explicit Gaussians")
    parser.add_argument("--folder", type=Path, required=True, help="where to write the files")
    parser.add_argument("--degree", type=int, help="harmonics of the model to keep (default: all)")
    parser.add_argument("--formats", nargs="+", default=[*FORMATS], choices=[*FORMATS])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    device = pick_device("cpu")
    splats, _ = load_model(model_file(model_folder(args.run)))
    assert isinstance(splats, Splats), "a model of explicit Gaussians"
    splats = splats if args.degree is None else with_degree(splats, args.degree)
    cameras = load_scene(load_run_config(args.run).scene).test
    black = torch.zeros(3, device=device)

    def renders(model: Splats) -> list[torch.Tensor]:
        return [render_image(model, Harmonics(model.sh_degree), camera, black) for camera in cameras]

    expected = renders(splats)
    print(f"{len(splats):,} Gaussians of degree {splats.sh_degree}, {len(cameras)} views")
    print("| format | bytes per Gaussian | seconds to write | reader | dB |\n|---|---|---|---|---|")
    for kind in args.formats:
        path = args.folder / f"model{kind}"
        begun = time.perf_counter()
        write_splats(path, splats)
        seconds = time.perf_counter() - begun
        if kind == ".sog":
            reader, found = "gsply", read_sog(path)
        else:
            reader = "splat-transform"
            convert(path, args.folder / "again.ply", path)
            found = load_splats(args.folder / "again.ply")
        errors = torch.stack([(a - b).pow(2).mean() for a, b in zip(renders(found), expected, strict=True)])
        psnr = float((-10 * errors.clamp_min(1e-12).log10()).mean())
        size = path.stat().st_size / len(splats)
        print(f"| `{kind}` | {size:.1f} | {seconds:.1f} | {reader} | {psnr:.1f} |", flush=True)


if __name__ == "__main__":
    main()
