"""One image of several meshes of a scene from one viewpoint: a row each, shaded and with its normals as colours.

    python scripts/figures/meshes.py SCENE FILE.jpg MESH.ply...

The viewpoint looks down at the scene's middle by 40 degrees. Surfaces are drawn as points, many to every pixel.
"""

import math
import sys
from pathlib import Path

import cv2
import numpy as np
import trimesh

from momentum_gs.config.schema import SceneConfig
from momentum_gs.data.frame import normalized_frame
from momentum_gs.data.scene import load_scene

WIDTH, HEIGHT = 640, 400
FOCAL = 700.0
"""In pixels: a field of view of 49 degrees."""
POINTS = 6_000_000
QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 85]
LIGHT = np.array([0.35, 0.25, 0.9])


def viewpoint(scene: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Camera centre, rotation (rows: right, down, ahead) and upright axes (rows; the last points up) in the scene's
    coordinates."""
    loaded = load_scene(SceneConfig(path=str(scene)))
    up = normalized_frame([*loaded.train, *loaded.test], loaded.points).rotation[2].numpy()
    points = loaded.points.xyz.double().numpy()
    middle = np.median(points, axis=0)
    size = np.linalg.norm(points - middle, axis=1).mean()
    level = np.cross(up, [0.0, 1.0, 0.0] if abs(up[1]) < 0.9 else [1.0, 0.0, 0.0])
    level /= np.linalg.norm(level)
    tilt = math.radians(40)
    ahead = math.cos(tilt) * level - math.sin(tilt) * up
    right = np.cross(ahead, up) / math.cos(tilt)
    upright = np.stack([-level, np.cross(up, -level), up])
    return middle - 2.6 * size * ahead, np.stack([right, np.cross(ahead, right), ahead]), upright


def pixels(points: np.ndarray, centre: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, ...]:
    """Column, row, whether that is in the image, and depth of each point."""
    x, y, depth = ((points - centre) @ rotation.T).T
    ahead = np.where(depth > 0, depth, np.inf)
    x = np.floor(x / ahead * FOCAL + WIDTH / 2).astype(int)
    y = np.floor(y / ahead * FOCAL + HEIGHT / 2).astype(int)
    return x, y, (depth > 0) & (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT), depth


def draw(path: Path, centre: np.ndarray, rotation: np.ndarray, upright: np.ndarray) -> np.ndarray:
    """A mesh, shaded and beside it its normals; BGR."""
    mesh = trimesh.load(path, process=False)
    mesh.update_faces(pixels(mesh.triangles_center, centre, rotation)[2])
    points, faces = trimesh.sample.sample_surface(mesh, POINTS, seed=0)
    normals = mesh.face_normals[faces]
    normals = np.where((normals * (points - centre)).sum(1, keepdims=True) > 0, -normals, normals)  # Seen from here.
    normals = normals @ upright.T
    x, y, inside, depth = pixels(points, centre, rotation)
    far_first = depth.argsort()[::-1]  # The nearest point of a pixel is written last.
    far_first = far_first[inside[far_first]]
    x, y, normals = x[far_first], y[far_first], normals[far_first]
    light = 0.25 + 0.75 * np.clip(normals @ (LIGHT / np.linalg.norm(LIGHT)), 0, 1)
    images = [np.full((HEIGHT, WIDTH, 3), 255, np.uint8) for _ in range(2)]
    images[0][y, x] = (230 * light).astype(np.uint8)[:, None]
    images[1][y, x] = ((normals[:, ::-1] + 1) * 127.5).astype(np.uint8)
    return cv2.medianBlur(np.hstack(images), 3)  # Fills the pixels that no point has hit.


def main(scene: Path, image: Path, meshes: list[Path]) -> None:
    """Draws and writes."""
    view = viewpoint(scene)
    if not cv2.imwrite(str(image), np.vstack([draw(mesh, *view) for mesh in meshes]), QUALITY):
        raise SystemExit(f"{image}: could not be written")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
