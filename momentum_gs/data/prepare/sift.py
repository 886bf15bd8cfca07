"""SIFT features by OpenCV, in COLMAP's format.

OpenCV finds the same features as COLMAP (VLFeat, at the same contrast threshold) in a quarter of the time on a CPU;
scripts/sfm_speed.py compares the reconstructions.
"""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from momentum_gs.data.images import decode_image

MAX_SIDE = 1600
"""Longer side to which larger images are reduced: 3DGS codebases train on at most 1600 pixels, and time and memory grow
with the area."""
CONTRAST = 0.02
"""COLMAP's peak threshold, 0.02 / 3; OpenCV divides its own by the three layers per octave."""


def sift(path: Path, count: int) -> tuple[Float32[np.ndarray, "n 2"], UInt8[np.ndarray, "n 128"]]:
    """Features of an image; if there are more than ``count``, those of the largest scale, as in COLMAP.

    Args:
        path: The image; EXIF orientation is ignored, as in COLMAP.
        count: Largest number of features.

    Returns:
        Positions in pixels of the full image, with pixel centres at .5, and descriptors: 512 times the square roots of
        the histograms of unit sum (RootSIFT, Arandjelovic and Zisserman 2012).

    Raises:
        UserError: the file is missing, damaged or truncated.
    """
    pixels = decode_image(path, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    height, width = pixels.shape
    factor = min(1.0, MAX_SIDE / max(width, height))
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    detector = cv2.SIFT.create(contrastThreshold=CONTRAST, enable_precise_upscale=True)
    points, histograms = detector.detectAndCompute(pixels, None)
    if not points:
        return np.empty((0, 2), np.float32), np.empty((0, 128), np.uint8)
    largest = np.argsort([-point.size for point in points], kind="stable")[:count]
    places = np.array([points[i].pt for i in largest]) + 0.5  # OpenCV's pixel centres are at whole numbers.
    places *= np.array([width / pixels.shape[1], height / pixels.shape[0]])
    shares = histograms[largest] / np.maximum(histograms[largest].sum(axis=1, keepdims=True), 1)
    return places.astype(np.float32), np.rint(512 * np.sqrt(shares)).clip(0, 255).astype(np.uint8)
