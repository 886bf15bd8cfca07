"""Georeferencing of a reconstruction: local metres from GPS fixes, and similarities that ignore bad fixes.

Geodetic positions are latitude and longitude in degrees and the height above the WGS 84 ellipsoid in metres; local ones
are metres east, north and up (ENU) of an origin.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from momentum_gs.core.seeds import keyed_generator

# WGS 84 (NIMA TR8350.2): semi-major axis, metres, and flattening.
_AXIS, _FLATTENING = 6378137.0, 1 / 298.257223563

MIN_FIXES = 3
"""A similarity has seven unknowns, three points give nine numbers."""
SPREAD = 5.0
"""How many times their typical error the fixes must extend across their longest direction to determine the tilt."""
BEST_ERROR = 0.1
"""Smallest error of a fix in EXIF that is assumed, metres: three fixes may fit exactly by chance."""
SAMPLES = 500
"""Minimal samples of the robust fit: with half of the fixes wrong, the probability that all samples fail is 1e-29."""


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation @ x + translation; all float64."""

    scale: float
    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, "3"]

    def apply(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """The transformed points."""
        return self.scale * points @ self.rotation.T + self.translation

    def after(self, first: "Similarity") -> "Similarity":
        """The composition that applies ``first``, then this one."""
        translation = self.apply(first.translation[None])[0]
        return Similarity(self.scale * first.scale, self.rotation @ first.rotation, translation)


@dataclass(frozen=True)
class GpsFit:
    """How well GPS fixes and a reconstruction agree."""

    similarity: Similarity
    """Reconstruction to local metres."""
    inliers: Bool[Tensor, "n"]
    error: float
    """Median distance of all fixes from their cameras, metres."""
    spread: float
    """RMS extent of the fixes, metres: across their longest direction, or along it where they give no tilt."""

    @property
    def usable(self) -> bool:
        """Whether the fixes extend far enough, compared with their errors."""
        return self.spread > SPREAD * max(self.error, BEST_ERROR)


def geodetic_to_enu(positions: Float[Tensor, "n 3"], origin: Float[Tensor, "3"]) -> Float[Tensor, "n 3"]:
    """Local metres (east, north, up) of geodetic positions, float64."""
    latitude, longitude = torch.deg2rad(origin[:2].double()).tolist()
    lat, lon = torch.tensor(latitude, dtype=torch.float64), torch.tensor(longitude, dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    east = torch.stack([-lon.sin(), lon.cos(), zero])
    north = torch.stack([-lat.sin() * lon.cos(), -lat.sin() * lon.sin(), lat.cos()])
    up = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()])
    return (_earth_centred(positions) - _earth_centred(origin[None])) @ torch.stack([east, north, up]).T


def local_origin(positions: Float[Tensor, "n 3"]) -> Float[Tensor, "3"]:
    """Origin of the local metres for geodetic positions: their median, which is robust against bad fixes."""
    return positions.double().median(dim=0).values


def fit_similarity(source: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"]) -> Similarity:
    """The similarity that maps ``source`` to ``target`` with the least squared distance (Umeyama 1991)."""
    source, target = source.double(), target.double()
    from_center, to_center = source.mean(dim=0), target.mean(dim=0)
    a, b = source - from_center, target - to_center
    u, sizes, vt = torch.linalg.svd(b.T @ a)
    signs = torch.ones(3, dtype=torch.float64)
    signs[2] = torch.linalg.det(u @ vt).sign()  # The best fit without a reflection.
    rotation = u @ torch.diag(signs) @ vt
    # If all points coincide, any scale fits equally well.
    scale = float((sizes * signs).sum() / a.square().sum().clamp_min(1e-300))
    return Similarity(scale, rotation, to_center - scale * rotation @ from_center)


def fit_gps(centers: Float[Tensor, "n 3"], fixes: Float[Tensor, "n 3"], seed: int = 0) -> GpsFit:
    """The similarity from a reconstruction's cameras to their fixes; up to half of the fixes may be wrong.

    Least median of squares over minimal samples (Rousseeuw 1984), which needs no threshold; then least squares over the
    fixes within three robust standard deviations.

    Args:
        centers: Camera centres, the reconstruction's unit.
        fixes: Local metres of the same cameras; at least three.
        seed: Seed of the samples.
    """
    draw = keyed_generator(seed, "gps")

    def median_error(similarity: Similarity) -> float:
        return float((similarity.apply(centers) - fixes).norm(dim=1).median())

    candidates = [fit_similarity(centers, fixes)]
    for _ in range(SAMPLES):
        sample = torch.randperm(len(fixes), generator=draw)[:MIN_FIXES]
        candidates.append(fit_similarity(centers[sample], fixes[sample]))
    best = min(candidates, key=median_error)
    inliers = torch.ones(len(fixes), dtype=torch.bool)
    for _ in range(3):  # Converges after one or two iterations.
        distance = (best.apply(centers) - fixes).norm(dim=1)
        # 3 * 1.4826 times the median is three standard deviations of normal errors; 1e-6 allows for round-off.
        inliers = distance <= max(3 * 1.4826 * float(distance.median()), 1e-6)
        best = fit_similarity(centers[inliers], fixes[inliers])
    kept = fixes[inliers]
    across = torch.linalg.svdvals(kept - kept.mean(dim=0))[1] / len(kept) ** 0.5
    return GpsFit(best, inliers, median_error(best), float(across))


def fit_places(
    centers: Float[Tensor, "n 3"], fixes: Float[Tensor, "n 3"], level: Similarity, seed: int = 0
) -> GpsFit:
    """``fit_gps`` by east and north alone, for fixes on a line, or with heights that contradict the reconstruction.

    Heights have the largest errors: tens of metres where they restart from zero or mix two references.

    Args:
        centers: Camera centres, the reconstruction's unit.
        fixes: Local metres of the same cameras; at least three.
        level: Similarity that makes the reconstruction upright, from its ground plane.
        seed: Seed of the samples.

    Returns:
        The fit, upright as ``level``, with the median height of the cameras at 0. Its error is horizontal, and its
        spread is along the longest direction, since a line suffices for heading and scale.
    """
    upright = level.apply(centers.double())
    flat = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    fit = fit_gps(upright * flat, fixes.double() * flat, seed)
    # The fit of points in a horizontal plane rotates about the vertical only, up to round-off.
    above = level.translation - torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) * upright[:, 2].median()
    kept = (fixes * flat)[fit.inliers]
    along = torch.linalg.svdvals(kept - kept.mean(dim=0))[0] / len(kept) ** 0.5
    return replace(fit, similarity=fit.similarity.after(replace(level, translation=above)), spread=float(along))


def _earth_centred(positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """Earth-centred, Earth-fixed metres."""
    lat, lon = torch.deg2rad(positions[:, :2].double()).unbind(dim=1)
    height = positions[:, 2].double()
    squared = _FLATTENING * (2 - _FLATTENING)  # eccentricity, squared
    normal = _AXIS / (1 - squared * lat.sin().square()).sqrt()
    ring = (normal + height) * lat.cos()
    return torch.stack([ring * lon.cos(), ring * lon.sin(), (normal * (1 - squared) + height) * lat.sin()], dim=1)
