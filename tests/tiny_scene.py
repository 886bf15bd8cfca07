"""A scene small enough to train in seconds: a coloured plane seen from above by a grid of cameras."""

from pathlib import Path

import numpy as np
import torch

from momentum_gs.core.types import Camera, PointCloud
from momentum_gs.data.colmap.model import write_model
from momentum_gs.data.images import write_png

SIZE = (48, 36)


def texture(xy: torch.Tensor) -> torch.Tensor:
    """[...,2] -> [...,3] smooth colours in (0, 1), different everywhere on the plane."""
    x, y = xy[..., 0], xy[..., 1]
    waves = [2.1 * x + torch.sin(1.3 * y), 1.7 * y + torch.cos(0.9 * x), 1.1 * (x + y)]
    return torch.stack([0.5 + 0.4 * torch.sin(w) for w in waves], -1)


def nadir_camera(name: str, x: float, y: float, height: float = 4.0) -> Camera:
    """Looks straight down (z up in the world) from (x, y, height)."""
    width, rows = SIZE
    rotation = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]], dtype=torch.float64)
    center = torch.tensor([x, y, height], dtype=torch.float64)
    return Camera(name, width, rows, 40.0, 40.0, width / 2, rows / 2, rotation, -rotation @ center)


def write_tiny_scene(folder: Path, grid: int = 4, points: int = 1500) -> Path:
    """grid x grid views of the plane as a COLMAP scene; returns the folder."""
    cameras = []
    for i, (x, y) in enumerate((x, y) for x in np.linspace(-4, 4, grid) for y in np.linspace(-4, 4, grid)):
        camera = nadir_camera(f"{i:03d}.png", float(x), float(y))
        u, v = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="xy")
        plane = torch.stack([x + (u - camera.cx) / camera.fx * 4, y - (v - camera.cy) / camera.fy * 4], -1)
        write_png(folder / "images" / camera.name, texture(plane).permute(2, 0, 1).float())
        cameras.append(camera)
    generator = torch.Generator().manual_seed(0)
    xy = (torch.rand(points, 2, generator=generator, dtype=torch.float64) - 0.5) * 13
    xyz = torch.cat([xy, torch.zeros(points, 1, dtype=torch.float64)], 1)
    write_model(folder / "sparse" / "0", cameras, PointCloud(xyz, (texture(xy) * 255).to(torch.uint8)))
    return folder
