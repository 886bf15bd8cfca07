"""``momentum-gs mesh``: the surface of a finished run as a triangle mesh."""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from momentum_gs.config.run import load_run_config
from momentum_gs.core.device import pick_device, print_device
from momentum_gs.core.errors import UserError
from momentum_gs.core.log import info
from momentum_gs.data.scene import load_scene
from momentum_gs.mesh.build import MeshSettings, build_mesh, clear
from momentum_gs.mesh.mesh import check_mesh_name, write_mesh
from momentum_gs.model.io import model_file, model_folder
from momentum_gs.model.poses import load_poses

HELP = "make a triangle mesh of a finished run's surface"
DESCRIPTION = """\
Renders depth maps of all training views from the merged model (anchors or Gaussians), fuses them cell by cell into a
truncated signed distance, and writes the surface as triangles with colours, in the coordinates of the scene. Memory
holds one cell; an interrupted command continues where it was. Needs the extra 'mesh'.

Surfaces of explicit Gaussians are better where they were trained for them: model.surface=planar (docs/surfaces.md).

  momentum-gs mesh OUT                              OUT/mesh/mesh.ply
  momentum-gs mesh OUT --output city.glb --triangles 500000
  momentum-gs mesh OUT --voxel 0.1                  in the scene's unit
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    default = MeshSettings()
    parser.add_argument("out", metavar="OUT", type=Path, help="output folder of a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help=".ply or .glb (default: OUT/mesh/mesh.ply)")
    parser.add_argument("--voxel", type=float, metavar="V",
                        help="edge of a voxel, scene units (default: what a pixel covers on the surface)")  # fmt: skip
    parser.add_argument(
        "--depth", choices=("median", "planar", "expected"), default=default.depth,
        help="depth of a pixel: that of the Gaussian at which half of its light is gone (default), where its ray meets "
        "the blended plane of the Gaussians, or their mean depth",
    )  # fmt: skip
    parser.add_argument("--triangles", type=int, metavar="N", help="simplify to about N triangles (default: no)")
    parser.add_argument("--small", type=int, default=default.small, metavar="N",
                        help="remove connected pieces of fewer than N triangles (default %(default)s)")  # fmt: skip
    parser.add_argument("--iteration", type=int, default=-1, metavar="N", help="model to use (default: the last)")
    parser.add_argument("-s", "--source_path", metavar="SCENE", help="scene folder, if it was moved after training")
    parser.add_argument("--device", help="auto, cpu or cuda (default: the run's own setting)")


def run(args: argparse.Namespace) -> None:
    """Makes and writes the mesh."""
    for flag, value in (("--voxel", args.voxel), ("--triangles", args.triangles)):
        if value is not None and not value > 0:
            raise UserError(f"mesh: {flag} is {value}, expected a number above 0; correct it")
    folder = args.out / "mesh"
    output = args.output or folder / "mesh.ply"
    check_mesh_name(output)
    config = load_run_config(args.out)
    if args.source_path is not None:
        config = replace(config, scene=replace(config.scene, path=args.source_path))
    print_device(args.device or config.device)
    device = pick_device(args.device or config.device)
    model = model_folder(args.out, args.iteration)
    scene = load_scene(config.scene)
    poses = load_poses(model)
    cameras = scene.train if poses is None else [poses.camera(camera) for camera in scene.train]
    background = torch.full((3,), float(config.scene.white_background), device=device)
    settings = MeshSettings(voxel=args.voxel, depth=args.depth, triangles=args.triangles, small=args.small)
    mesh = build_mesh(folder, model_file(model), cameras, scene.frame, background, settings)
    write_mesh(output, mesh)
    clear(folder)
    info(f"mesh: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} triangles -> {output}")
