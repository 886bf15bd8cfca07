"""How far a prepared scene's metres are from ground control points.

  python scripts/ground_control.py SCENE GCP_LIST [--divide 5]

GCP_LIST is OpenDroneMap's: a line with the projection, then east, north, height, pixel column, pixel row and image name
in each line. Each point is triangulated from its marks with the lens and poses of SCENE/sfm, and taken to the scene's
metres. The files' images may be reduced copies of those that were marked: --divide says by how much.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import pycolmap
import torch

from momentum_gs.data.colmap.model import read_cameras
from momentum_gs.data.prepare.align import fit_similarity


def main() -> None:
    """Prints the points' number, the scale of their distances and what is left after the best similarity."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("marks", type=Path)
    parser.add_argument("--divide", type=float, default=1.0, metavar="N")
    args = parser.parse_args()
    models = [pycolmap.Reconstruction(str(folder)) for folder in (args.scene / "sfm" / "models").iterdir()]
    model = max(models, key=lambda model: model.num_reg_images())
    images = {image.name.lower(): image for image in model.images.values() if image.has_pose}

    rows = defaultdict(list)  # Of the linear equations of a point: each mark gives two.
    for line in args.marks.read_text(encoding="utf-8").splitlines()[1:]:
        *numbers, name = line.split()
        east, north, height, column, row = map(float, numbers)
        if name.lower() in images:
            image = images[name.lower()]
            x, y = model.cameras[image.camera_id].cam_from_img(np.array([column, row]) / args.divide)
            pose = image.cam_from_world().matrix()
            rows[east, north, height] += [x * pose[2] - pose[0], y * pose[2] - pose[1]]
    solved = {point: np.linalg.svd(np.array(four))[2][-1] for point, four in rows.items() if len(four) > 3}
    points = torch.tensor(np.array([h[:3] / h[3] for h in solved.values()]))
    truth = torch.tensor(list(solved), dtype=torch.float64)

    placed = {camera.name: camera.center for camera in read_cameras(args.scene / "sparse" / "0")}
    shared = [image for image in images.values() if image.name in placed]
    before = torch.tensor(np.array([image.projection_center() for image in shared]))
    metres = fit_similarity(before, torch.stack([placed[image.name] for image in shared])).apply(points)
    fit = fit_similarity(metres, truth)
    left = (fit.apply(metres) - truth).norm(dim=1).square().mean().sqrt()
    ratio = (torch.pdist(metres) / torch.pdist(truth)).mean()
    print(f"{len(truth)} points; the scene's distances are {ratio:.4f} of theirs; {left:.2f} m remain (RMS)")


if __name__ == "__main__":
    main()
