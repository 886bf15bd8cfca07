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
from jaxtyping import Bool, Float, Int64, Num
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


@dataclass(frozen=True)
class CompactWindow:
    """A window whose weights are kept once for neighbouring rows, and neighbouring columns, that are alike.

    Weights change at the edges of squares, and of tiles and their margins alone. At 1600x1200 the weights of a window
    of the whole image take 0.1 MB in place of 7.7.
    """

    x: int
    y: int
    weights: Float[Tensor, "r c"]
    """In half precision, which holds the weights of up to three passes, 1, 3/2, 2 and 3, exactly."""
    rows: Int64[Tensor, "h"]
    """The row of ``weights`` that each row of the window has."""
    columns: Int64[Tensor, "w"]
    """The column of ``weights`` that each column of the window has."""
    tiles: Bool[Tensor, "th tw"]
    share: float
    counted: float
    image_size: tuple[int, int]

    @property
    def nbytes(self) -> int:
        """Bytes that its tensors take."""
        return sum(part.nbytes for part in (self.weights, self.rows, self.columns, self.tiles))

    def expand(self) -> Window:
        """The window itself."""
        # Columns first: there are few rows yet, and rows copy fast.
        weights = self.weights.float().index_select(1, self.columns).index_select(0, self.rows)
        return Window(self.x, self.y, weights, self.tiles, self.share, self.counted, self.image_size)


def windows_of(owned: OwnedByPass, camera: Camera, device: torch.device) -> list[CompactWindow]:
    """The windows of a view in successive passes, without those that hold no pixel.

    A pixel that counts in fewer of them counts by so much more, so that on average the loss is that of all passes'
    pixels together.
    """
    outlines = [found for squares in owned.numpy() if (found := _Outline.of(squares, camera)) is not None]
    if not outlines:
        return []
    # From one edge to the next, rows and columns are alike in all passes.
    row_edges = np.unique(np.concatenate([o.y.edges() for o in outlines]))
    column_edges = np.unique(np.concatenate([o.x.edges() for o in outlines]))
    heights, widths = np.diff(row_edges), np.diff(column_edges)
    places = [(o.y.between(row_edges), o.x.between(column_edges)) for o in outlines]
    counts = [o.counts(row_edges[r], column_edges[c]) for o, (r, c) in zip(outlines, places, strict=True)]
    times = np.zeros((len(heights), len(widths)), np.float32)
    for place, count in zip(places, counts, strict=True):
        times[place] += count
    size, pixels = (camera.width, camera.height), camera.width * camera.height
    windows = []
    for outline, (r, c), count in zip(outlines, places, counts, strict=True):
        weights = count * (np.float32(len(outlines)) / np.maximum(times[r, c], 1))
        total, counted = (float(heights[r] @ part.astype(np.float64) @ widths[c]) for part in (weights, count))
        alike = (np.repeat(np.arange(len(runs)), runs) for runs in (heights[r], widths[c]))
        rows, columns, tiles = (torch.from_numpy(part).to(device) for part in (*alike, outline.tiles))
        half, corner = torch.from_numpy(weights).half().to(device), (outline.x.begin, outline.y.begin)
        windows.append(CompactWindow(*corner, half, rows, columns, tiles, total / pixels, counted / pixels, size))
    return windows


def window_of(owned: Owned, camera: Camera, device: torch.device) -> Window | None:
    """The window of a view with a single pass, whose weights are 0 or 1; None where it holds no pixel."""
    windows = windows_of(owned[None], camera, device)
    return windows[0].expand() if windows else None


def margin_of(pixels: int) -> int:
    """Along a side of the image, how far from an owned pixel others are drawn."""
    return max(MARGIN, math.ceil(_BESIDE * pixels / RASTER))


@dataclass(frozen=True)
class _Side:
    """A window along a side of the image, [begin, end) of its pixels."""

    begin: int
    end: int
    squares: _Places
    """The row or column of the raster that holds the centre of each pixel of the window."""
    touched: tuple[_Places, _Places]
    """First and behind-the-last row or column of the raster that each tile touches with its margin."""
    near: tuple[_Places, _Places]
    """For each pixel the tiles that hold the first and the last pixel of the image within ``MARGIN``. Tiles are counted
    from 1; 0 and the one behind the last stand for what lies outside of the window."""

    @classmethod
    def of(cls, owned: NDArray[np.bool_], pixels: int) -> "_Side | None":
        """The window around owned rows or columns of the raster; None where they hold no pixel."""
        half, width = np.float32(0.5), np.float32(RASTER / pixels)
        squares = ((np.arange(pixels, dtype=np.float32) + half) * width).astype(np.int64)
        inside = owned[squares].nonzero()[0]
        if not len(inside):
            return None
        margin = margin_of(pixels)
        begin, end = max(int(inside[0]) - margin, 0), min(int(inside[-1]) + 1 + margin, pixels)
        tiles = np.arange(begin, end, TILE)
        low = squares[np.maximum(tiles - margin, 0)]
        high = squares[np.minimum(tiles + TILE + margin - 1, pixels - 1)] + 1
        places = np.arange(begin, end)
        first = np.maximum(places - MARGIN, 0) - begin
        last = np.minimum(places + MARGIN, pixels - 1) - begin
        near = (
            np.where(first < 0, 0, first // TILE + 1),
            np.where(last < end - begin, last // TILE + 1, len(tiles) + 1),
        )
        return cls(begin, end, squares[begin:end], (low, high), near)

    def edges(self) -> _Places:
        """The first pixel, those that differ from the one before, and the one behind the last."""
        changes = np.logical_or.reduce([np.diff(values) != 0 for values in (self.squares, *self.near)])
        return self.begin + np.concatenate([[0], changes.nonzero()[0] + 1, [self.end - self.begin]])

    def between(self, edges: _Places) -> slice:
        """Which of the edges of all passes lie in [begin, end), where each begins a run of pixels that are alike."""
        return slice(int(np.searchsorted(edges, self.begin)), int(np.searchsorted(edges, self.end)))


@dataclass(frozen=True)
class _Outline:
    """What a window draws, and which pixels count in it.

    A pixel belongs to the square that holds its centre. What is drawn follows from the owned pixels alone. Others count
    where that costs no drawing: they show the block's own Gaussians where these reach into what other blocks own.
    """

    squares: NDArray[np.bool_]
    """[32,32] what is owned."""
    tiles: NDArray[np.bool_]
    y: _Side
    x: _Side

    @classmethod
    def of(cls, squares: NDArray[np.bool_], camera: Camera) -> "_Outline | None":
        """The outline around owned squares; None where they hold no pixel."""
        y = _Side.of(np.logical_or.reduce(squares, axis=1), camera.height)
        x = _Side.of(np.logical_or.reduce(squares, axis=0), camera.width)
        if y is None or x is None:
            return None
        # Sums over rectangles of the raster: how many owned squares a tile with its margin touches.
        sums = np.zeros((RASTER + 1, RASTER + 1), np.int32)
        sums[1:, 1:] = squares.cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
        (above, below), (before, behind) = y.touched, x.touched
        tiles = sums[below][:, behind] - sums[above][:, behind] - sums[below][:, before] + sums[above][:, before] > 0
        return cls(squares, tiles, y, x)

    def counts(self, rows: _Places, columns: _Places) -> NDArray[np.bool_]:
        """[r,c] which pixels count, of the image's rows and columns."""
        r, c = rows - self.y.begin, columns - self.x.begin
        framed = np.pad(self.tiles, 1)
        # A tile is wider than twice MARGIN, so a pixel's neighbours lie in no tile but those of the first and the last.
        (up, down), (first, last) = ([tiles[at] for tiles in side.near] for side, at in ((self.y, r), (self.x, c)))
        both = framed[:, first] & framed[:, last]
        own: NDArray[np.bool_] = self.squares[:, self.x.squares[c]][self.y.squares[r]]
        return own | (both[up] & both[down])


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
