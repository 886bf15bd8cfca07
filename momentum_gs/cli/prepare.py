"""``momentum-gs prepare``: makes a scene from images (structure from motion) or from a published data set."""

import argparse
from pathlib import Path
from typing import get_args

import torch

from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.data.colmap.model import ColmapModel, find_model, read_model, read_views
from momentum_gs.data.images import image_size
from momentum_gs.data.prepare.align import MIN_FIXES, Similarity, fit_gps, fit_places, geodetic_to_enu, local_origin
from momentum_gs.data.prepare.files import SourceView, check_images, place_model, write_images, write_scene_json
from momentum_gs.data.prepare.matrixcity import UNIT_METRES, read_matrixcity
from momentum_gs.data.prepare.meganerf import read_mega_nerf
from momentum_gs.data.prepare.pairs import EXHAUSTIVE, Matching
from momentum_gs.data.prepare.sfm import LENSES, Cameras, Reconstructed, Sfm, SfmSettings
from momentum_gs.data.prepare.triangulate import triangulate
from momentum_gs.partition.layout import ground_frame, points_near, up_axis

HELP = "make a scene from images (structure from motion) or from a published data set"
DESCRIPTION = """\
Images:

  momentum-gs prepare IMAGES OUT

estimates the camera poses (feature extraction, matching, mapping; needs pycolmap), undistorts the images, turns the
scene upright, scales it to metres if the images have GPS, and writes a COLMAP scene: OUT/images, OUT/sparse/0 and
OUT/scene.json. OUT/sfm holds intermediate results: after an interruption, run the same command again, and completed
steps are not repeated.

Published data sets, from their original folders (see docs/prepare_data.md for the downloads):

  momentum-gs prepare mill19       SRC OUT        Mega-NeRF's Building and Rubble
  momentum-gs prepare urbanscene3d SRC OUT --photos FOLDER
                                                  Mega-NeRF's poses of Residence, Sci-Art and Campus
  momentum-gs prepare matrixcity   SRC OUT        small_city/aerial, 1600 pixels wide

The output is OUT/train and OUT/val, each with images and sparse/0: the published split.
"""
SETS = ("mill19", "urbanscene3d", "matrixcity")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.usage = "momentum-gs prepare IMAGES OUT [flags] | prepare {" + ",".join(SETS) + "} SRC OUT [flags]"
    add = parser.add_argument
    add("words", nargs="+", metavar="WORD", help="the two folders; for a published data set, its name before them")
    add("-r", "--resolution", type=float, metavar="R",
        help="size of the written images: 1, 2, 4, 8 divide it, any other number is the width in pixels, -1 caps the "
        "width at 1600 (default 1: unchanged; matrixcity: 1600)")  # fmt: skip
    default = SfmSettings()
    photos = parser.add_argument_group("images")
    photos.add_argument("--matching", choices=get_args(Matching), default=default.matching,
                        help="image pairs to match: exhaustive: all; spatial: neighbours by GPS; sequential: "
                        "neighbours by name; retrieval: those that look alike; auto: spatial if 9 of 10 images have "
                        f"GPS, else exhaustive for up to {EXHAUSTIVE} images, else retrieval")  # fmt: skip
    photos.add_argument("--cameras", choices=get_args(Cameras), default=default.cameras,
                        help="which images share intrinsics: folder: those of one size in one folder; image: none "
                        "(default %(default)s)")  # fmt: skip
    photos.add_argument("--camera-model", choices=LENSES, default=default.camera_model, metavar="MODEL",
                        help="lens model: " + ", ".join(LENSES) + " (default %(default)s)")  # fmt: skip
    photos.add_argument("--features", type=int, default=default.max_features, metavar="N",
                        help="maximum number of features per image (default %(default)s)")  # fmt: skip
    sets = parser.add_argument_group("data sets")
    sets.add_argument("--colmap", type=Path, metavar="FOLDER",
                      help="published COLMAP models to take poses and points from: FOLDER/train and FOLDER/val (or "
                      "test), each with sparse/0")  # fmt: skip
    sets.add_argument("--triangulate", action="store_true",
                      help="triangulate sparse points from images and poses (needs pycolmap)")
    sets.add_argument("--photos", type=Path, metavar="FOLDER",
                      help="original images, if SRC has poses only (urbanscene3d)")  # fmt: skip
    sets.add_argument("--pose", default="block_all", metavar="NAME",
                      help="matrixcity: use the selection of views SRC/pose/NAME if it exists (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Makes the scene and prints a summary."""
    if len(args.words) == 3 and args.words[0] in SETS:
        kind, source, out = args.words
        _convert(kind, Path(source), Path(out), args)
    elif len(args.words) == 2:
        _reconstruct(Path(args.words[0]), Path(args.words[1]), args)
    else:
        raise UserError(
            f"prepare: {' '.join(args.words)!r}, expected 'IMAGES OUT', or 'SRC OUT' after one of {', '.join(SETS)}; "
            "see momentum-gs prepare --help"
        )


def _reconstruct(photos: Path, out: Path, args: argparse.Namespace) -> None:
    settings = SfmSettings(
        matching=args.matching, cameras=args.cameras, camera_model=args.camera_model, max_features=args.features
    )
    sfm = Sfm(photos, out, settings)
    result = sfm.reconstruct()
    _report_registered(result)
    folder = sfm.undistort(result, 1.0 if args.resolution is None else args.resolution)
    model = read_model(folder)
    similarity, georeference = _frame(model, sfm.fixes())
    sfm.place(folder, similarity, out / "sparse" / "0")
    record = {
        "source": "images",
        "unit_metres": None if georeference is None else 1.0,
        "up": [0, 0, 1],
        "georeference": georeference,
        "registered": len(result.registered),
        "not_registered": result.missing,
    }
    write_scene_json(out, record)
    info(f"scene: {len(model.cameras)} views and {len(model.points)} points in {out}")


def _report_registered(result: Reconstructed) -> None:
    total = len(result.registered) + len(result.missing)
    info(f"registered: {len(result.registered)} of {total} images")
    printed: set[str] = set()
    for names in result.other_models:
        names = [name for name in names if name not in printed]
        printed.update(names)
        if names:
            info(f"left out, another model: {len(names)} images that overlap each other but not the scene enough: "
                f"{_listed(names)}")  # fmt: skip
    if result.apart:
        info(f"left out, alone: {len(result.apart)} images that overlap no other image enough: "
            f"{_listed(result.apart)}")  # fmt: skip
    rest = sorted(set(result.missing) - printed - set(result.apart))
    if rest:
        info(f"left out, without a pose: {len(rest)} images that overlap others, but too little: {_listed(rest)}")
    if result.other_models:
        info(f"the scene is the largest of {1 + len(result.other_models)} models; to use another, prepare a folder "
            "with only its images; to join them, add images that connect them")  # fmt: skip
    if 2 * len(result.registered) < total:
        info("fewer than half of the images are registered: do they show one place, and do neighbours overlap by half "
            "or more? --matching exhaustive also finds pairs that GPS, name order and retrieval miss")  # fmt: skip


def _listed(names: list[str]) -> str:
    """The names; of more than 20, the first 20 and the number of the others."""
    return ", ".join(names) if len(names) <= 20 else ", ".join(names[:20]) + f" and {len(names) - 20} more (scene.json)"


def _frame(
    model: ColmapModel, fixes: dict[str, tuple[float, float, float]]
) -> tuple[Similarity, dict[str, object] | None]:
    """The transform from COLMAP's frame to local metres if GPS allows it, else to an upright frame of arbitrary unit.

    Also returns the georeference for scene.json; None without usable GPS.
    """
    located = [camera for camera in model.cameras if camera.name in fixes]
    if len(located) >= MIN_FIXES:
        geodetic = torch.tensor([fixes[camera.name] for camera in located], dtype=torch.float64)
        origin = local_origin(geodetic)
        centers, metres = torch.stack([camera.center for camera in located]), geodetic_to_enu(geodetic, origin)
        fit, heights = fit_gps(centers, metres), True
        if not fit.usable:
            fit, heights = fit_places(centers, metres, _upright(model)), False
        used = int(fit.inliers.sum())
        info(f"GPS: {len(located)} fixes, {used} used; median error {fit.error:.2f} m, spread {fit.spread:.0f} m"
            + ("" if heights else "; heights not used, upright by the ground"))  # fmt: skip
        if fit.usable:
            latitude, longitude, height = origin.tolist()
            return fit.similarity, {
                "latitude": latitude, "longitude": longitude, "height": height, "datum": "WGS 84",
                "axes": "x east, y north, z up of this origin, metres", "fixes": len(located), "used": used,
                "median_error": fit.error, "heights_used": heights,
            }  # fmt: skip
        info("GPS is not used, its error is too large for so small an area: the scene is upright, its unit arbitrary")
    else:
        info(f"no GPS ({len(located)} fixes): the scene is upright, its unit arbitrary")
    return _upright(model), None


def _upright(model: ColmapModel) -> Similarity:
    """The transform to a frame with z up, x along the longer side of the ground that the cameras cover, and the mean
    of the camera centres as origin; the unit is kept."""
    up = up_axis(model.cameras, points_near(model.cameras, model.points.xyz), snap=False)
    rotation = ground_frame(model.cameras, up)
    center = torch.stack([camera.center for camera in model.cameras]).mean(dim=0)
    return Similarity(1.0, rotation, -rotation @ center)


def _convert(kind: str, source: Path, out: Path, args: argparse.Namespace) -> None:
    if kind == "matrixcity":
        parts, unit, up, resolution = read_matrixcity(source, args.pose), UNIT_METRES, [0, 0, 1], 1600.0
    else:
        parts, unit, up, resolution = read_mega_nerf(source, args.photos), 1.0, [0, -1, 0], 1.0
    if args.triangulate and args.colmap is not None:
        raise UserError("prepare: --triangulate and --colmap are both given, expected one source of points; omit one")
    resolution = resolution if args.resolution is None else args.resolution
    models = {part: None if args.colmap is None else _published(args.colmap, part) for part in parts}
    for part, views in parts.items():
        check_images([view.image for view in views])
        model = models[part]
        if model is not None:
            _check_names(model, views)
    for part, views in parts.items():
        cameras = write_images(out / part, views, resolution)
        place_model(out / part / "sparse" / "0", models[part] or cameras)
        width, height = image_size(out / part / "images" / views[0].camera.name)
        info(f"{part}: {len(views)} views, {width}x{height}, in {out / part}")
    write_scene_json(out, {"source": kind, "unit_metres": unit, "up": up, "georeference": None})
    if args.triangulate:
        info(f"points: {triangulate(out / 'train', args.features)}")
    elif args.colmap is None:
        info("these poses have no sparse points: --triangulate makes some, --colmap takes those of a published model")


def _published(folder: Path, part: str) -> Path:
    """The COLMAP model of one part of a published archive, which may call 'val' 'test'."""
    for name in (part, "test") if part == "val" else (part,):
        if (folder / name).is_dir():
            return find_model(folder / name)
    raise UserError(f"prepare: {folder} has no {part}, expected {part}/sparse/0; give --colmap the scene's folder")


def _check_names(model: Path, views: list[SourceView]) -> None:
    """Raises UserError if the model has a view without an image in the data set; prints how many images it lacks."""
    named = {camera.name for camera, _ in read_views(model, distorted=True)}
    known = {view.camera.name for view in views}
    strange = sorted(named - known)
    if strange:
        raise UserError(
            f"prepare: {len(strange)} of {len(named)} views of {model} have no image in the data set, first: "
            f"{strange[0]} (the data set's names look like {views[0].camera.name}); the model is of another scene or "
            "split"
        )
    if known - named:
        info(f"{len(known - named)} images are not in {model} and are left out, first: {min(known - named)}")
