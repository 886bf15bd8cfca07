"""Writes a COLMAP scene in other coordinates, to test how training depends on unit, position and orientation.

    python scripts/move_scene.py SCENE OUT --scale 20 --shift 1e6,0,0 --quarter-turns 1

Every point p becomes rotation(p) * scale + shift. Images and lists of held-out views are links to those of the scene.
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import torch

from momentum_gs.core.types import PointCloud
from momentum_gs.data.colmap.model import find_model, read_points, read_views, write_model


def move_scene(
    scene: Path,
    out: Path,
    scale: float = 1.0,
    shift: tuple[float, ...] = (0.0, 0.0, 0.0),
    turns: int = 0,
    up: str = "z",
) -> Path:
    """Writes the scene to ``out``, rotated by multiples of 90 degrees about the axis ``up``, scaled and shifted.

    Raises:
        UserError: for scenes that are not a COLMAP model of undistorted images.
    """
    model = find_model(scene)
    a, b = (axis for axis in range(3) if axis != "xyz".index(up))
    quarter = torch.eye(3, dtype=torch.float64)
    quarter[[a, b], [a, b]], quarter[a, b], quarter[b, a] = 0.0, -1.0, 1.0
    turn, by = torch.linalg.matrix_power(quarter, turns), torch.tensor(shift, dtype=torch.float64)
    views = []
    for view, _ in read_views(model):
        rotation, center = view.rotation @ turn.T, turn @ view.center * scale + by
        views.append(replace(view, rotation=rotation, translation=-rotation @ center))
    points = read_points(model)
    write_model(out / "sparse" / "0", views, PointCloud(points.xyz @ turn.T * scale + by, points.rgb))
    for path in scene.iterdir():
        if path.name != "sparse":
            (out / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())
    for path in model.glob("test.txt"):
        os.symlink(path.resolve(), out / "sparse" / "0" / path.name)
    return out


def main() -> None:
    """Parses the command line and writes the scene."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--shift", type=lambda text: tuple(map(float, text.split(","))), default=(0.0, 0.0, 0.0),
                        metavar="X,Y,Z")  # fmt: skip
    parser.add_argument("--quarter-turns", type=int, default=0, metavar="N")
    parser.add_argument("--up", choices="xyz", default="z", help="axis of the rotation (default: z)")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    move_scene(args.scene, args.out, args.scale, args.shift, args.quarter_turns, args.up)


if __name__ == "__main__":
    main()
