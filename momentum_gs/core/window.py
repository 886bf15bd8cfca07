"""The part of a view that a block trains on.

A block owns squares of a fixed raster that is laid over every image, whatever its resolution. Squares that several
blocks make up are owned by one after the other, in passes over their views. A training step draws the rectangle around
the squares of a pass with a margin, in tiles. Pixels beside the squares count, too, where all that their loss needs is
drawn anyway.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from numpy.typing import NDArray
from torch import Tensor

from momentum_gs.core.types import Camera, TargetImage

RASTER = 32
"""Squares along either side of an image: ownership is known to 3 % of its width, 128 bytes a pass and block."""
PASSES = 3
"""A block's share in a square is rounded to thirds: in so many of three passes over its views it owns the square."""
MARGIN = 5
"""Pixels around one that counts that are drawn: as far as the 11x11 window of SSIM reaches."""
_BESIDE = 5 / 8
"""Of a square: how far from the owned pixels others are drawn, if that is farther than ``MARGIN``, so that in large
images, too, pixels beside the owned ones count: without, borders lost 0.2 to 0.4 dB at 480x360 (docs/lab_log.md)."""
TILE = 16
"""Edge in pixels of the squares that the rasterizer draws or leaves out."""

Owned = Bool[Tensor, "32 32"]
"""The squares of an image's raster that a block owns, row by row from the top."""
OwnedByPass = Bool[Tensor, "_ 32 32"]
"""The same in successive passes, at most ``PASSES``; each holds the squares of the next."""


_Places = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, and which of its pixels count."""

    x: int
    """Column of the first pixel."""
    y: int
    """Row of the first pixel."""
    weights: Float[Tensor, "h w"]
    """Above 0 where a pixel counts: in the owned squares, and where all pixels of the image within ``MARGIN`` are
    drawn. The mean over a view's passes is 1 for a pixel that counts in any of them."""
    tiles: Bool[Tensor, "th tw"]
    """Squares of ``TILE`` pixels, from the rectangle's corner, that are drawn: those within ``margin_of`` the image of
    an owned pixel."""
    share: float
    """Sum of the weights, as a share of the whole image's pixels."""
    counted: float
    """Pixels that count, as a share of the whole image's."""
    image_size: tuple[int, int]
    """Width and height of the whole image."""

    @property
    def rectangle(self) -> tuple[int, int, int, int]:
        """x, y, width and height in pixels."""
        height, width = self.weights.shape
        return self.x, self.y, width, height

    def crop(self, image: Num[Tensor, "*c height width"]) -> Num[Tensor, "*c h w"]:
        """The rectangle's part of an image of the whole view."""
        x, y, width, height = self.rectangle
        return image[..., y : y + height, x : x + width].contiguous()

    def target(self, whole: TargetImage) -> TargetImage:
        """The rectangle's part of a view's image, with the weights of its pixels."""
        maps = (whole.image, whole.mask, whole.depth_prior, whole.normal_prior)
        image, mask, depth, normal = (None if p is None else self.crop(p) for p in maps)
        assert image is not None
        unmasked = None if whole.mask is None else whole.mask.sum()
        return self.weigh(TargetImage(image, mask, depth_prior=depth, normal_prior=normal), unmasked)

    def weigh(self, part: TargetImage, unmasked: Tensor | None) -> TargetImage:
        """The rectangle's part of a view's image, given without the weights of its pixels.

        Args:
            part: What is to be compared with a render of the window.
            unmasked: Pixels of the whole image that its mask lets count; None without a mask.
        """
        if part.mask is None or unmasked is None:
            return replace(part, weights=self.weights, share=self.share)
        return replace(part, weights=self.weights, share=(part.mask * self.weights).sum() / unmasked.clamp_min(1))


def windows_of(owned: OwnedByPass, camera: Camera, device: torch.device) -> list[Window]:
    """The windows of a view in successive passes, without those that hold no pixel.

    A pixel that counts in fewer of them counts by so much more, so that on average the loss is that of all passes'
    pixels together.
    """
    windows = [window for squares in owned if (window := window_of(squares, camera, device)) is not None]
    if len(windows) < 2:
        return windows
    times = torch.zeros(camera.height, camera.width, device=device)
    for window in windows:
        x, y, width, height = window.rectangle
        times[y : y + height, x : x + width] += window.weights
    weights = [window.weights * len(windows) / window.crop(times).clamp_min(1) for window in windows]
    shares = [float(weight.sum()) / times.numel() for weight in weights]
    return [replace(w, weights=weight, share=share) for w, weight, share in zip(windows, weights, shares, strict=True)]


def window_of(owned: Owned, camera: Camera, device: torch.device) -> Window | None:
    """The window of the owned squares at the camera's resolution; None where none of them holds a pixel.

    Its weights are 0 or 1. A pixel belongs to the square that holds its centre. What is drawn follows from the owned
    pixels alone. Others count where that costs no drawing: they show the block's own Gaussians where these reach into
    what other blocks own.
    """
    raster = owned.numpy()
    rows, columns = _squares(camera.height), _squares(camera.width)
    top, bottom = _span(np.logical_or.reduce(raster, axis=1)[rows])
    left, right = _span(np.logical_or.reduce(raster, axis=0)[columns])
    if top == bottom or left == right:
        return None
    across, along = margin_of(camera.width), margin_of(camera.height)
    y0, y1 = max(top - along, 0), min(bottom + along, camera.height)
    x0, x1 = max(left - across, 0), min(right + across, camera.width)
    is_owned = raster[:, columns[x0:x1]][rows[y0:y1]]  # Columns first: there are few rows yet, and rows copy fast.
    # Sums over rectangles of the raster: how many owned squares a tile with its margin touches.
    sums = np.zeros((RASTER + 1, RASTER + 1), np.int32)
    sums[1:, 1:] = raster.cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
    above, below = _touched(rows, y0, y1, along)
    before, behind = _touched(columns, x0, x1, across)
    tiles = sums[below][:, behind] - sums[above][:, behind] - sums[below][:, before] + sums[above][:, before] > 0
    framed = np.pad(tiles, 1)
    up, down = _within_margin(y0, y1, camera.height)
    first, last = _within_margin(x0, x1, camera.width)
    # A tile is wider than twice MARGIN, so a pixel's neighbours lie in no tile but those of the first and the last.
    both = framed[:, first] & framed[:, last]
    weights = (is_owned | (both[up] & both[down])).astype(np.float32)
    share = float(weights.sum()) / (camera.width * camera.height)
    on = [torch.from_numpy(part).to(device) for part in (weights, tiles)]
    return Window(x0, y0, on[0], on[1], share, share, (camera.width, camera.height))


def margin_of(pixels: int) -> int:
    """Along a side of the image, how far from an owned pixel others are drawn."""
    return max(MARGIN, math.ceil(_BESIDE * pixels / RASTER))


def _squares(pixels: int) -> _Places:
    """The row or column of the raster that holds the centre of each pixel of a side of the image."""
    return ((np.arange(pixels, dtype=np.float32) + np.float32(0.5)) * np.float32(RASTER / pixels)).astype(np.int64)


def _span(flags: NDArray[np.bool_]) -> tuple[int, int]:
    """From the first to behind the last that is set; (0, 0) where none is."""
    places = flags.nonzero()[0]
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


def _touched(squares: _Places, begin: int, end: int, margin: int) -> tuple[_Places, _Places]:
    """First and behind-the-last square of the raster that each tile of [begin, end) touches with its margin."""
    first = np.arange(begin, end, TILE)
    low = squares[np.maximum(first - margin, 0)]
    high = squares[np.minimum(first + TILE + margin - 1, len(squares) - 1)] + 1
    return low, high


def _within_margin(begin: int, end: int, pixels: int) -> tuple[_Places, _Places]:
    """For each pixel of [begin, end) the tiles that hold the first and the last pixel of the image within ``MARGIN``.

    Tiles are counted from 1; 0 and the one behind the last stand for what lies outside of [begin, end).
    """
    places = np.arange(begin, end)
    first = np.maximum(places - MARGIN, 0) - begin
    last = np.minimum(places + MARGIN, pixels - 1) - begin
    behind = -(-(end - begin) // TILE) + 1
    return np.where(first < 0, 0, first // TILE + 1), np.where(last < end - begin, last // TILE + 1, behind)


def pack_owned(owned: OwnedByPass) -> str:
    """Ownership as text: 256 hexadecimal digits for each pass, row by row."""
    bits = owned.reshape(-1, 8).to(torch.int32) * torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.int32)
    return bytes(bits.sum(dim=1).tolist()).hex()


def unpack_owned(text: str) -> OwnedByPass:
    """The inverse of ``pack_owned``.

    Raises:
        ValueError: the text is not a multiple of 256 hexadecimal digits.
    """
    data = bytes.fromhex(text)
    if len(data) % (RASTER * RASTER // 8):
        raise ValueError(f"{len(text)} hexadecimal digits, expected a multiple of {RASTER * RASTER // 4}")
    values = torch.tensor(list(data), dtype=torch.uint8)
    bits = values[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1
    return bits.bool().view(-1, RASTER, RASTER)
