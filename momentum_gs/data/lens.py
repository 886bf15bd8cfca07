"""Lens distortion of the COLMAP camera models, and its inverse.

A ray (x, y) is the direction (x, y, 1) in camera axes. A model distorts either the ray itself or, for fisheye lenses,
the point in the same direction from the centre at distance theta, the ray's angle to the optical axis; then
pixel = focal * distorted + centre. Names and parameter order are COLMAP's (https://colmap.github.io/cameras.html).
Sources: RAD_TAN_THIN_PRISM_FISHEYE is Fisheye624 of Project Aria, EUCM is from Khomutenko et al. 2016, the division
models from Fitzgibbon 2001, FOV from Devernay and Faugeras 2001.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Points = Float[np.ndarray, "n 2"]

# Newton's method on smooth maps near the identity needs about five iterations; lenses of 180 degrees need more.
_ITERATIONS = 50
# In units of the focal length: less than a millionth of a pixel for any focal length in use.
_RESIDUAL = 1e-10
# Rays at 90 degrees to the axis or more do not meet the image plane; their angle is limited to this.
_STEEPEST = math.radians(89.9)


class _Kind(NamedTuple):
    focals: int
    """1: one focal length for both axes."""
    extra: int
    """Number of distortion parameters."""
    by_angle: bool
    bend: Callable[[Points, Sequence[float]], Points]


def _squares(q: Points) -> np.ndarray:
    return (q * q).sum(axis=1, keepdims=True)


def _series(s: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    """1 + k1 s + k2 s^2 + ..."""
    total = np.zeros_like(s)
    for k in reversed(factors):
        total = (total + k) * s
    return 1 + total


def _decentered(q: Points, p1: float, p2: float) -> Points:
    """The tangential distortion alone (Brown 1966)."""
    s, cross = _squares(q), 2 * q[:, :1] * q[:, 1:]
    return cross * np.array([p1, p2]) + (s + 2 * q * q) * np.array([p2, p1])


def _radial(q: Points, k: Sequence[float]) -> Points:
    return q * _series(_squares(q), k)


def _opencv(q: Points, k: Sequence[float]) -> Points:
    return q * _series(_squares(q), k[:2]) + _decentered(q, k[2], k[3])


def _full_opencv(q: Points, k: Sequence[float]) -> Points:
    k1, k2, p1, p2, k3, *below = k
    s = _squares(q)
    return q * (_series(s, (k1, k2, k3)) / _series(s, below)) + _decentered(q, p1, p2)


def _thin_prism(q: Points, k: Sequence[float]) -> Points:
    k1, k2, p1, p2, k3, k4, *prism = k
    s = _squares(q)
    return q * _series(s, (k1, k2, k3, k4)) + _decentered(q, p1, p2) + s * np.array(prism)


def _rad_tan_thin_prism(q: Points, k: Sequence[float]) -> Points:
    scaled = _radial(q, k[:6])
    p0, p1, s0, s1, s2, s3 = k[6:]
    s = _squares(scaled)
    return scaled + _decentered(scaled, p1, p0) + s * np.array([s0, s2]) + s * s * np.array([s1, s3])


def _fov(q: Points, k: Sequence[float]) -> Points:
    (omega,) = k
    if omega == 0:
        return q
    slope, r = 2 * math.tan(omega / 2), np.sqrt(_squares(q))
    at_center = r < 1e-9  # Here the quotient loses all digits, but its limit is exact to round-off.
    r = np.where(at_center, 1.0, r)
    return q * np.where(at_center, slope, np.arctan(r * slope) / r) / omega


def _division(q: Points, k: Sequence[float]) -> Points:
    # The inverse of d / (1 + k |d|^2) for the distorted point d; NaN if there is no such point.
    return q * (2 / (1 + np.sqrt(1 - 4 * k[0] * _squares(q))))


def _eucm(q: Points, k: Sequence[float]) -> Points:
    alpha, beta = k
    return q / (alpha * np.sqrt(beta * _squares(q) + 1) + 1 - alpha)


_KINDS = {
    "SIMPLE_PINHOLE": _Kind(1, 0, False, _radial),
    "PINHOLE": _Kind(2, 0, False, _radial),
    "SIMPLE_RADIAL": _Kind(1, 1, False, _radial),
    "RADIAL": _Kind(1, 2, False, _radial),
    "OPENCV": _Kind(2, 4, False, _opencv),
    "OPENCV_FISHEYE": _Kind(2, 4, True, _radial),
    "FULL_OPENCV": _Kind(2, 8, False, _full_opencv),
    "FOV": _Kind(2, 1, False, _fov),
    "SIMPLE_RADIAL_FISHEYE": _Kind(1, 1, True, _radial),
    "RADIAL_FISHEYE": _Kind(1, 2, True, _radial),
    "THIN_PRISM_FISHEYE": _Kind(2, 8, True, _thin_prism),
    "RAD_TAN_THIN_PRISM_FISHEYE": _Kind(2, 12, True, _rad_tan_thin_prism),
    "SIMPLE_DIVISION": _Kind(1, 1, False, _division),
    "DIVISION": _Kind(2, 1, False, _division),
    "SIMPLE_FISHEYE": _Kind(1, 0, True, _radial),
    "FISHEYE": _Kind(2, 0, True, _radial),
    "EUCM": _Kind(2, 2, False, _eucm),
}
MODELS = tuple(_KINDS)
"""Camera models in the order of COLMAP's ids, from 0. Models with higher ids are no lenses (EQUIRECTANGULAR)."""


def parameter_count(model: str) -> int:
    """Number of parameters that COLMAP writes for a model."""
    kind = _KINDS[model]
    return kind.focals + 2 + kind.extra


@dataclass(frozen=True)
class Lens:
    """A camera's intrinsics with its distortion."""

    model: str
    """One of ``MODELS``."""
    width: int
    height: int
    focal: tuple[float, float]
    """Pixels."""
    center: tuple[float, float]
    """Principal point, COLMAP pixels."""
    extra: tuple[float, ...]
    """Parameters of the distortion; they do not depend on the image's size."""

    @classmethod
    def from_parameters(cls, model: str, width: int, height: int, parameters: Sequence[float]) -> "Lens":
        """From COLMAP's list, ``parameter_count(model)`` numbers."""
        focals = _KINDS[model].focals
        cx, cy, *extra = parameters[focals:]
        return cls(model, width, height, (parameters[0], parameters[focals - 1]), (cx, cy), tuple(extra))

    @property
    def is_pinhole(self) -> bool:
        """Whether there is no distortion, so that images need no undistortion."""
        return not (_KINDS[self.model].by_angle or any(self.extra))

    def resized(self, width: int, height: int) -> "Lens":
        """The same lens for images of another size."""
        sx, sy = width / self.width, height / self.height
        (fx, fy), (cx, cy) = self.focal, self.center
        return replace(self, width=width, height=height, focal=(fx * sx, fy * sy), center=(cx * sx, cy * sy))

    def to_pixels(self, rays: Points) -> Points:
        """Pixels of rays, float64; NaN for rays that the model maps to no pixel."""
        return self._bend(_to_angle(rays) if _KINDS[self.model].by_angle else rays) * self.focal + self.center

    def to_rays(self, pixels: Points) -> Points:
        """Rays of pixels, the inverse of ``to_pixels``, float64 to about 1e-10.

        NaN for pixels that no ray reaches before the radius at which the model folds back onto itself.
        """
        target = (pixels - self.center) / self.focal
        q = target.copy()
        with np.errstate(all="ignore"):  # Diverging values end as NaN.
            for _ in range(_ITERATIONS):
                error = self._bend(q) - target
                if not (np.abs(error) > _RESIDUAL).any():
                    break
                a, b, c, d = self._slopes(q)
                x, y = error.T
                q = q - np.stack([d * x - b * y, a * y - c * x], axis=1) / (a * d - b * c)[:, None]
            # The condition is written so that NaN fails it.
            good = (np.abs(self._bend(q) - target) < 10 * _RESIDUAL).all(axis=1) & self._near_side(q)
        q[~good] = np.nan
        return _from_angle(q) if _KINDS[self.model].by_angle else q

    def unfolded(self, rays: Points) -> np.ndarray:
        """Whether each ray is inside the radius at which the model folds back onto itself, [n]."""
        with np.errstate(all="ignore"):
            return self._near_side(_to_angle(rays) if _KINDS[self.model].by_angle else rays)

    def _bend(self, q: Points) -> Points:
        with np.errstate(all="ignore"):
            return _KINDS[self.model].bend(q, self.extra)

    def _near_side(self, q: Points) -> np.ndarray:
        """Whether the derivative at each point neither mirrors nor rotates by more than 90 degrees, [n]."""
        a, b, c, d = self._slopes(q)
        return (a * d - b * c > 0) & (a + d > 0)

    def _slopes(self, q: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The four entries of the derivative of the distortion, row by row, by central differences."""
        step = 1e-6
        columns = [(self._bend(q + h) - self._bend(q - h)) / (2 * step) for h in np.eye(2) * step]
        (a, c), (b, d) = columns[0].T, columns[1].T
        return a, b, c, d


def _to_angle(rays: Points) -> Points:
    """The point in the ray's direction at distance theta, the ray's angle to the axis."""
    r = np.sqrt(_squares(rays))
    at_center = r < 1e-9
    r = np.where(at_center, 1.0, r)
    return rays * np.where(at_center, 1.0, np.arctan(r) / r)


def _from_angle(q: Points) -> Points:
    theta = np.sqrt(_squares(q))
    at_center = theta < 1e-9
    theta = np.where(at_center, 1.0, theta)
    return q * np.where(at_center, 1.0, np.tan(np.minimum(theta, _STEEPEST)) / theta)
