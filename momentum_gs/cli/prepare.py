"""``momentum-gs prepare``: photographs, or a published data set, to a scene that trains."""

import argparse
from pathlib import Path

from momentum_gs.core.errors import UserError
from momentum_gs.core.log import say
from momentum_gs.data.colmap import find_model, read_cameras
from momentum_gs.data.images import image_size
from momentum_gs.data.prepare_files import SourceView, check_pictures, place_model, write_pictures, write_scene_json
from momentum_gs.data.prepare_matrixcity import UNIT_METRES, read_matrixcity
from momentum_gs.data.prepare_meganerf import read_mega_nerf

HELP = "photographs, or a published data set, to a scene that trains"
DESCRIPTION = """\
Photographs:

  momentum-gs prepare PHOTOS OUT

finds out where each was taken from (features, matching, mapping; needs pycolmap), turns the scene upright, scales it to
metres where the photographs have GPS, removes the lens' distortion and writes a COLMAP scene: OUT/images, OUT/sparse/0
and OUT/scene.json. Photographs in one folder and of one size are taken to come from one camera. Run it again after an
interruption: what is complete is not repeated.

Published data sets, from their original folders (docs/prepare_data.md says where to get them):

  momentum-gs prepare mill19       SRC OUT        Mega-NeRF's Building and Rubble
  momentum-gs prepare urbanscene3d SRC OUT --photos PHOTOS
                                                  Mega-NeRF's poses of Residence, Sci-Art and Campus
  momentum-gs prepare matrixcity   SRC OUT        small_city/aerial, 1600 pixels wide

They become OUT/train and OUT/val, each with images and sparse/0: the published split.
"""
SETS = ("mill19", "urbanscene3d", "matrixcity")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.usage = "momentum-gs prepare PHOTOS OUT [flags] | prepare {" + ",".join(SETS) + "} SRC OUT [flags]"
    add = parser.add_argument
    add("words", nargs="+", metavar="WORD", help="the folders, after the data set's name where it is one")
    add("-r", "--resolution", type=float, metavar="R",
        help="size of the pictures that are written: 1, 2, 4, 8 divide it, another number is the width, -1 caps the "
        "width at 1600 (default 1: as they are; matrixcity 1600)")  # fmt: skip
    sets = parser.add_argument_group("data sets")
    sets.add_argument("--colmap", type=Path, metavar="FOLDER",
                      help="published COLMAP models to take poses and points from: FOLDER/train and FOLDER/val (or "
                      "test), each with sparse/0")  # fmt: skip
    sets.add_argument("--photos", type=Path, metavar="FOLDER",
                      help="original photographs, where SRC has poses only (urbanscene3d)")  # fmt: skip
    sets.add_argument("--pose", default="block_all", metavar="NAME",
                      help="matrixcity: use the selection SRC/pose/NAME if it is there (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Prepare, and say what came out."""
    if len(args.words) == 3 and args.words[0] in SETS:
        kind, source, out = args.words
        _convert(kind, Path(source), Path(out), args)
    else:
        raise UserError(
            f"prepare: {' '.join(args.words)!r}, expected 'PHOTOS OUT' or one of {', '.join(SETS)} with 'SRC OUT'; see "
            "momentum-gs prepare --help"
        )


def _convert(kind: str, source: Path, out: Path, args: argparse.Namespace) -> None:
    if kind == "matrixcity":
        parts, unit, resolution = read_matrixcity(source, args.pose), UNIT_METRES, 1600.0
    else:
        parts, unit, resolution = read_mega_nerf(source, args.photos), 1.0, 1.0
    resolution = resolution if args.resolution is None else args.resolution
    models = {part: None if args.colmap is None else _published(args.colmap, part) for part in parts}
    for part, views in parts.items():
        check_pictures([view.picture for view in views])
        model = models[part]
        if model is not None:
            _check_names(model, views)
    for part, views in parts.items():
        cameras = write_pictures(out / part, views, resolution)
        place_model(out / part / "sparse" / "0", models[part] or cameras)
        width, height = image_size(out / part / "images" / views[0].camera.name)
        say(f"{part}: {len(views)} views, {width}x{height}, in {out / part}")
    write_scene_json(out, {"source": kind, "unit_metres": unit, "georeference": None})
    if args.colmap is None:
        say("no points: these poses come without; give a published model with --colmap")


def _published(folder: Path, part: str) -> Path:
    """The model of one part of a published archive, which says test or val."""
    for name in (part, "test") if part == "val" else (part,):
        if (folder / name).is_dir():
            return find_model(folder / name)
    raise UserError(f"prepare: {folder} has no {part}, expected {part}/sparse/0; name the scene's folder (--colmap)")


def _check_names(model: Path, views: list[SourceView]) -> None:
    """Raises UserError where the model has a view that the data set has no picture of."""
    named = {camera.name for camera in read_cameras(model)}
    known = {view.camera.name for view in views}
    strange = sorted(named - known)
    if strange:
        raise UserError(
            f"prepare: {len(strange)} of {len(named)} views of {model} have no picture in the data set, first: "
            f"{strange[0]} (the data set has {views[0].camera.name} and so on); the model is of another scene or split"
        )
    if known - named:
        say(f"{len(known - named)} pictures are not in {model} and are left out, first: {min(known - named)}")
