"""Pairs of images and their sizes that several tests share."""

import torch
from torch import Tensor

# One pixel, less than a window, one window, widths around those of a vector, heights around a band of 64 rows, more
# than two bands; a CUDA tile, 32 x 32 (float64: 8 rows), and sizes around it.
SIZES = [(1, 1), (5, 7), (11, 11), (20, 16), (9, 33), (32, 32), (64, 40), (65, 17), (135, 50)]
BIG_ENOUGH = [size for size in SIZES if min(size) >= 11]
CASES = [(size, "same") for size in SIZES] + [(size, "valid") for size in BIG_ENOUGH]


def pair(
    size: tuple[int, int], dtype: torch.dtype = torch.float64, batch: int = 1, channels: int = 3, device: str = "cpu"
) -> list[Tensor]:
    """An image and a noisy copy: their SSIM is far from 0 and from 1."""
    generator = torch.Generator().manual_seed(size[0] * 1000 + size[1])
    image = torch.rand(batch, channels, *size, generator=generator, dtype=torch.float64)
    noise = torch.rand(batch, channels, *size, generator=generator, dtype=torch.float64)
    return [x.to(device, dtype) for x in (image, 0.6 * image + 0.4 * noise)]
