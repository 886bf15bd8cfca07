"""``momentum-gs eval-mesh``: scores a mesh against a reference cloud."""

import argparse
import json
from pathlib import Path

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.log import info
from momentum_gs.data.colmap.model import find_model, read_cameras
from momentum_gs.data.point_files import read_point_file
from momentum_gs.mesh.mesh import read_mesh
from momentum_gs.mesh.score import PROTOCOLS, score_mesh

HELP = "score a mesh against a reference: precision, recall, F1, distances"
DESCRIPTION = """\
Compares points of a mesh with those of a reference, such as a laser scan, in the same coordinates, and writes
MESH.json beside the mesh: precision, recall and F1 at a threshold; accuracy (mesh to reference), completeness
(reference to mesh) and Chamfer distance (their mean). Needs the extra 'mesh'.

Protocols (--protocol): own; gauu and matrixcity as CityGaussianV2 has them; tnt-barn, tnt-truck, ... for Tanks and
Temples. They differ in how a mesh becomes points and in the threshold (docs/surfaces.md). None registers the mesh.

  momentum-gs eval-mesh OUT/mesh/mesh.ply --reference SCENE/reference.ply --threshold 0.5
  momentum-gs eval-mesh mesh.ply --reference cloud.ply --protocol gauu --crop SCENE
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("mesh", metavar="MESH", type=Path, help="a mesh: .ply, .glb, .obj, ...")
    parser.add_argument("--reference", type=Path, required=True, metavar="CLOUD",
                        help="points of the true surface: .ply, .las or .laz")  # fmt: skip
    parser.add_argument("--protocol", choices=PROTOCOLS, default="own", help="how to score (default: own)")
    parser.add_argument("--threshold", type=float, metavar="T", help="distance that counts as correct, scene units "
                        "(default: the protocol's)")  # fmt: skip
    parser.add_argument("--crop", type=Path, metavar="SCENE",
                        help="compare only what at least three images of this scene have in view")  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write (default: MESH.json)")


def run(args: argparse.Namespace) -> None:
    """Scores, prints and writes."""
    if args.threshold is not None and not args.threshold > 0:
        raise UserError(f"eval-mesh: --threshold is {args.threshold}, expected a distance above 0; correct it")
    mesh = read_mesh(args.mesh)
    reference = read_point_file(args.reference).xyz.numpy()
    cameras = read_cameras(find_model(args.crop)) if args.crop is not None else []
    scores = score_mesh(mesh, reference, PROTOCOLS[args.protocol], args.threshold, cameras)
    record = {
        "mesh": str(args.mesh), "reference": str(args.reference), "protocol": args.protocol,
        "crop": None if args.crop is None else str(args.crop), **scores.record(),
    }  # fmt: skip
    output = args.output or args.mesh.with_suffix(".json")
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    info(f"{'threshold':>10}{'precision':>11}{'recall':>9}{'F1':>9}{'accuracy':>11}{'complete':>11}{'Chamfer':>11}")
    info(f"{scores.threshold:>10.4g}{scores.precision:>11.4f}{scores.recall:>9.4f}{scores.f1:>9.4f}"
         f"{scores.accuracy:>11.4g}{scores.completeness:>11.4g}{scores.chamfer:>11.4g}")  # fmt: skip
    info(f"eval-mesh: {scores.points:,} points of the mesh, {scores.reference:,} of the reference -> {output}")
