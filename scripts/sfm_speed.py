"""Structure from motion as 'momentum-gs prepare' does it beside pycolmap's defaults, on one folder of images.

  python scripts/sfm_speed.py IMAGES OUT [--rounds N] [--only prepare|defaults]

The defaults are those of pycolmap 4.2.1: 8192 features, every pair, incremental mapping; both with one OPENCV camera
and the same number of threads. It prints the seconds of each stage, on the clock and of all cores (other work on the
machine stretches the first most), and what came out. Everything is made anew in OUT.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycolmap

from momentum_gs.data.prepare.files import find_images, workers
from momentum_gs.data.prepare.sfm import Sfm, SfmSettings

Spent = dict[str, tuple[float, float]]


def defaults(photos: Path, out: Path) -> tuple[Spent, Path]:
    """pycolmap as it comes: seconds of the stages, and the folder of the largest model."""
    database, models, spent = out / "database.db", out / "models", Spent()
    models.mkdir(parents=True)
    pycolmap.logging.minloglevel = 2
    pycolmap.set_random_seed(0)

    def timed(stage: str, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        found = work(*args, **options)
        spent[stage] = time.perf_counter() - start, time.process_time() - cpu
        return found

    extraction, matching = pycolmap.FeatureExtractionOptions(), pycolmap.FeatureMatchingOptions()
    mapping, reader = pycolmap.IncrementalPipelineOptions(), pycolmap.ImageReaderOptions()
    extraction.num_threads = matching.num_threads = mapping.num_threads = workers()
    reader.camera_model = "OPENCV"
    timed(
        "features", pycolmap.extract_features, database, photos, image_names=find_images(photos),
        reader_options=reader, camera_mode=pycolmap.CameraMode.SINGLE, extraction_options=extraction,
    )  # fmt: skip
    timed("matching", pycolmap.match_exhaustive, database, matching_options=matching)
    found = timed("mapping", pycolmap.incremental_mapping, database, photos, models, options=mapping)
    return spent, models / str(max(found, key=lambda i: found[i].num_reg_images()))


def ours(photos: Path, out: Path) -> tuple[Spent, Path]:
    """The same of 'prepare', up to the model."""
    sfm = Sfm(photos, out, SfmSettings())
    model = sfm.reconstruct().model
    return dict(sfm.spent), model


def report(name: str, spent: Spent, model: Path) -> tuple[float, float]:
    """Prints a line for each stage and one for the model; the seconds of all stages."""
    for stage, (clock, cores) in spent.items():
        print(f"{name:9} {stage:9} {clock:8.1f} s {cores:8.1f} s of cores")
    found = pycolmap.Reconstruction(str(model))
    total = tuple(sum(seconds) for seconds in zip(*spent.values(), strict=True))
    print(
        f"{name:9} {'all':9} {total[0]:8.1f} s {total[1]:8.1f} s of cores; {found.num_reg_images()} images, "
        f"{found.num_points3D()} points, error {found.compute_mean_reprojection_error():.4f} pixels, "
        f"track {found.compute_mean_track_length():.2f}, "
        f"{found.compute_mean_observations_per_reg_image():.0f} observations an image",
        flush=True,
    )
    return total[0], total[1]


def main() -> None:
    """Both, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    parser.add_argument("--only", choices=("prepare", "defaults"))
    args = parser.parse_args()
    print(f"{len(find_images(args.photos))} images, {workers()} threads, pycolmap {pycolmap.__version__}", flush=True)
    for turn in range(args.rounds):
        totals = {}
        for name, work in (("prepare", ours), ("defaults", defaults)):
            if args.only not in (None, name):
                continue
            folder = args.out / f"{name}{turn}"
            shutil.rmtree(folder, ignore_errors=True)
            totals[name] = report(name, *work(args.photos, folder))
        if len(totals) == 2:
            clock, cores = (d / p for d, p in zip(totals["defaults"], totals["prepare"], strict=True))
            print(f"defaults / prepare: {clock:.2f} on the clock, {cores:.2f} of cores", flush=True)


if __name__ == "__main__":
    main()
