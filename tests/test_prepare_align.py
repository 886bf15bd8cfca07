"""Local metres and similarities: closed forms, round trips, and outliers among GPS positions (fixes)."""

import math

import pytest
import torch
from torch import Tensor

from momentum_gs.core.seeds import keyed_generator
from momentum_gs.data.prepare.align import Similarity, fit_gps, fit_places, fit_similarity, geodetic_to_enu


def random_rotation(seed: int) -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=keyed_generator(seed), dtype=torch.float64))
    return q * torch.linalg.det(q)


def flight(n: int = 40, seed: int = 0) -> Tensor:
    """Camera centres over 200 x 150 m, heights within 10 m of each other."""
    places = torch.rand(n, 3, generator=keyed_generator(seed, "flight"), dtype=torch.float64)
    return places * torch.tensor([200, 150, 10])


SIMILARITY = Similarity(2.5, random_rotation(1), torch.tensor([10.0, -20.0, 300.0], dtype=torch.float64))


def test_local_metres_agree_with_the_radii_of_curvature() -> None:
    """A step in latitude is along the meridian, one in longitude along the parallel; both radii have closed forms."""
    axis, squared = 6378137.0, 0.00669437999014  # WGS 84
    origin = torch.tensor([30.19, -98.08, 350.0], dtype=torch.float64)
    latitude, step = math.radians(30.19), 1e-4
    bulge = 1 - squared * math.sin(latitude) ** 2
    north = (axis * (1 - squared) / bulge**1.5 + 350) * math.radians(step)
    east = (axis / bulge**0.5 + 350) * math.cos(latitude) * math.radians(step)
    steps = torch.tensor([[step, 0, 0], [0, step, 0], [0, 0, 7.0]], dtype=torch.float64)
    found = geodetic_to_enu(origin + steps, origin)
    # 1e-4 degrees are 11 m, over which the Earth curves by 1e-5 m and its radius changes by less.
    expected = torch.tensor([[0, north, 0], [east, 0, 0], [0, 0, 7.0]], dtype=torch.float64)
    assert (found - expected).abs().max() < 2e-5


def test_poles_and_date_line() -> None:
    """Points 1e-5 degrees of longitude apart across the date line are 1.1 m apart on the equator."""
    across = torch.tensor([[0.0, 179.999995, 0.0], [0.0, -179.999995, 0.0]], dtype=torch.float64)
    metres = geodetic_to_enu(across, across[0])
    assert metres[1].norm() == pytest.approx(6378137 * math.radians(1e-5), rel=1e-6)
    pole = torch.tensor([[90.0, 0.0, 0.0], [90.0, 123.0, 5.0]], dtype=torch.float64)
    assert geodetic_to_enu(pole, pole[0])[1] == pytest.approx([0, 0, 5.0], abs=1e-8)


def test_a_similarity_is_found_again() -> None:
    centers = flight()
    found = fit_similarity(centers, SIMILARITY.apply(centers))
    assert found.scale == pytest.approx(SIMILARITY.scale, rel=1e-12)
    assert (found.rotation - SIMILARITY.rotation).abs().max() < 1e-12
    assert (found.translation - SIMILARITY.translation).abs().max() < 1e-9


def test_mirrored_positions_give_a_rotation_without_reflection() -> None:
    centers = flight()
    found = fit_similarity(centers, centers * torch.tensor([1.0, 1.0, -1.0]))
    assert torch.linalg.det(found.rotation) == pytest.approx(1.0)


def test_outliers_change_nothing() -> None:
    """With 40 % of the positions wrong by kilometres, the fit is that of the others alone."""
    centers = flight()
    fixes = SIMILARITY.apply(centers)
    bad = torch.arange(len(fixes)) % 5 < 2
    fixes[bad] += 1000 * torch.randn(int(bad.sum()), 3, generator=keyed_generator(3), dtype=torch.float64)
    fit = fit_gps(centers, fixes)
    assert torch.equal(fit.inliers, ~bad)
    assert fit.similarity.scale == pytest.approx(SIMILARITY.scale, rel=1e-9)
    assert fit.usable


def test_positions_that_do_not_determine_the_similarity_are_not_used() -> None:
    """A straight line does not determine the rotation around it, and errors as large as the flight nothing at all."""
    line = torch.stack([torch.linspace(0, 300, 40, dtype=torch.float64), *torch.zeros(2, 40, dtype=torch.float64)], 1)
    noise = torch.randn(40, 3, generator=keyed_generator(4), dtype=torch.float64)
    assert not fit_gps(line, line + noise).usable
    centers = flight()
    assert fit_gps(centers, centers + 2 * noise).usable
    assert not fit_gps(centers, centers + 40 * noise).usable


def test_with_useless_heights_east_and_north_determine_the_scale() -> None:
    """Heights with errors of tens of metres: a fit of all three coordinates fails, one of east and north does not."""
    truth = flight()
    centers = SIMILARITY.apply(truth)
    fixes = truth.clone()
    fixes[:, 2] += 40 * torch.randn(len(fixes), generator=keyed_generator(5), dtype=torch.float64)
    assert not fit_gps(centers, fixes).usable
    # Upright, but rotated about z and in another unit.
    back = fit_similarity(centers, truth)
    turn = torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    level = Similarity(0.1, turn, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)).after(back)
    fit = fit_places(centers, fixes, level)
    assert fit.usable and bool(fit.inliers.all())
    found = fit.similarity.apply(centers)
    assert (found[:, :2] - truth[:, :2]).abs().max() < 1e-6
    heights = truth[:, 2] - truth[:, 2].median()
    assert (found[:, 2] - heights).abs().max() < 1e-6


def test_a_common_error_in_height_changes_the_height_alone() -> None:
    truth = flight()
    lower = truth - torch.tensor([0.0, 0.0, 64.0], dtype=torch.float64)
    right, wrong = fit_gps(SIMILARITY.apply(truth), truth), fit_gps(SIMILARITY.apply(truth), lower)
    assert wrong.similarity.scale == pytest.approx(right.similarity.scale, rel=1e-12)
    assert (wrong.similarity.rotation - right.similarity.rotation).abs().max() < 1e-12


def test_a_line_determines_scale_and_heading_but_no_tilt() -> None:
    """A similarity of three positions on a line is not usable; with a model that is upright already, the line is."""
    line = torch.tensor([[0.0, 0, 0], [10, 0.01, 0], [20, 0, 0.01]], dtype=torch.float64)
    centers = SIMILARITY.apply(line)
    assert not fit_gps(centers, line).usable
    fit = fit_places(centers, line, fit_similarity(SIMILARITY.apply(flight()), 3 * flight()))
    assert fit.usable and fit.similarity.scale == pytest.approx(1 / SIMILARITY.scale, rel=1e-3)
