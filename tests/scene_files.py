"""Small scenes on disk for tests."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.colmap.model import write_model

REAL_SCENES = Path(os.environ.get("MOMENTUM_GS_SHARED", Path(__file__).parents[2] / "shared")) / "scenes"


def camera(name: str, width: int = 40, height: int = 30, angle: float = 0.3, x: float = 0.0) -> Camera:
    """A camera rotated about y, with its principal point off the middle."""
    c, s = math.cos(angle), math.sin(angle)
    rotation = torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]], dtype=torch.float64)
    center = torch.tensor([x, 0.25, -2.0], dtype=torch.float64)
    return Camera(
        name, width, height, fx=35.5, fy=36.25, cx=19.0, cy=16.0, rotation=rotation, translation=-rotation @ center
    )


def points(n: int = 20, seed: int = 0) -> PointCloud:
    """Random points with random colours."""
    draw = np.random.default_rng(seed)
    return PointCloud(
        torch.from_numpy(draw.normal(size=(n, 3))), torch.from_numpy(draw.integers(0, 256, (n, 3), dtype=np.uint8))
    )


def random_image(name: str, width: int, height: int) -> np.ndarray:
    """BGR pixels that differ from name to name."""
    draw = np.random.default_rng(list(name.encode()))
    return draw.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Writes with cv2.imencode, which unlike cv2.imwrite allows any path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def write_scene(root: Path, names: Sequence[str], width: int = 40, height: int = 30, images: str = "images") -> Path:
    """A COLMAP scene with random images of these names."""
    write_model(root / "sparse" / "0", [camera(n, width, height, x=0.1 * i) for i, n in enumerate(names)], points())
    for name in names:
        write_image(root / images / name, random_image(name, width, height))
    return root
