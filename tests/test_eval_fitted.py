"""Fitted scores: what the fit finds, which pixels it uses, and what it does not change."""

import math

import pytest
import torch

from momentum_gs.core.image import psnr
from momentum_gs.eval.fitted import RIDGE, apply_affine, fit_affine, score_fitted

MATRIX = torch.tensor([[0.8, 0.1, 0.0], [0.05, 0.9, -0.1], [0.0, 0.1, 0.7]])
OFFSET = torch.tensor([0.05, 0.03, 0.1])[:, None]


def noise(seed: int, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.2


def recolored(image: torch.Tensor) -> torch.Tensor:
    return (MATRIX @ image.flatten(1) + OFFSET).reshape(image.shape)


def test_an_affine_change_of_colours_is_undone() -> None:
    render = noise(0)
    truth = recolored(render)
    found = fit_affine(render, truth)
    # The ridge is 1.3e-6, the variances are 0.03: the map differs from the exact one by less than 1e-4.
    torch.testing.assert_close(found, torch.cat([MATRIX, OFFSET], dim=1).double(), rtol=0, atol=1e-4)
    scores = score_fitted(render, truth, None)
    assert set(scores) == {"PSNR_right", "PSNR_fit", "SSIM_fit"}
    assert scores["PSNR_right"] < 30 and scores["PSNR_fit"] > 90
    assert scores["SSIM_fit"] == pytest.approx(1, abs=1e-5)


def test_the_fit_does_not_use_the_half_that_is_scored() -> None:
    render = noise(1)
    truth, other = recolored(render), noise(2)
    for right in (truth, other):  # whatever the right half is, the map is fitted to the left one
        shown = torch.cat([truth[:, :, :16], right[:, :, 16:]], dim=2)
        affine = fit_affine(render[:, :, :16], truth[:, :, :16])
        expected = psnr(apply_affine(affine, render)[:, :, 16:], shown[:, :, 16:])
        scores = score_fitted(render, shown, None)
        assert scores["PSNR_fit"] == pytest.approx(float(expected), abs=1e-4)
        assert scores["PSNR_right"] == pytest.approx(float(psnr(render[:, :, 16:], shown[:, :, 16:])), abs=1e-4)
    changed = score_fitted(render, torch.cat([other[:, :, :16], truth[:, :, 16:]], dim=2), None)
    same = score_fitted(render, truth, None)
    assert changed["PSNR_right"] == same["PSNR_right"] and changed["PSNR_fit"] < same["PSNR_fit"] - 20


def test_saturated_pixels_are_not_used() -> None:
    render = noise(3)
    truth = recolored(render)
    clean = fit_affine(render[:, 4:], truth[:, 4:])
    for value in (0.0, 1.0):
        for image in (render, truth):
            image[1, :4] = value  # one channel is enough
            torch.testing.assert_close(fit_affine(render, truth), clean, rtol=0, atol=1e-12)
            image[1, :4] = 0.5
    assert (fit_affine(render, truth) - clean).abs().max() > 1e-3


def test_a_half_without_usable_pixels_leaves_the_other_as_it_is() -> None:
    render, truth = noise(4), noise(5)
    render[:, :, :16] = 0
    scores = score_fitted(render, truth, None)
    assert scores["PSNR_fit"] == scores["PSNR_right"]
    thin = score_fitted(render[:, :, 31:], truth[:, :, 31:], None)  # an image of one column has no left half
    assert thin["PSNR_fit"] == thin["PSNR_right"]


def test_a_flat_half_changes_other_colours_by_their_similarity_to_its_own() -> None:
    """One colour c of target t fixes the map along (c, 1) alone: x moves by (t - c) (c x + 1) / (c c + 1)."""
    color, target = torch.tensor([0.6, 0.4, 0.5]), torch.tensor([0.5, 0.45, 0.3])
    found = fit_affine(color[:, None, None].expand(3, 8, 8), target[:, None, None].expand(3, 8, 8))
    for x in torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64):
        along = (color.double() @ x + 1) / (color.double() @ color.double() + 1 + RIDGE)
        moved = found[:, :3] @ x + found[:, 3] - x
        torch.testing.assert_close(moved, (target - color).double() * along, rtol=0, atol=1e-9)


def test_ignored_pixels_change_nothing() -> None:
    render, mask = noise(6), torch.ones(1, 24, 32)
    mask[:, :10] = 0
    truth = recolored(render)
    painted = [torch.where(mask.bool(), image, noise(seed)) for seed, image in ((7, render), (8, truth))]
    plain = score_fitted(render * mask, truth * mask, None, mask)
    assert score_fitted(painted[0] * mask, painted[1] * mask, None, mask) == plain
    assert plain["PSNR_fit"] > 90
    mask[:, :, 16:] = 0
    assert score_fitted(render * mask, truth * mask, None, mask) == {}


def test_corrected_colours_stay_in_range() -> None:
    image = torch.full((3, 4, 4), 0.9)
    affine = torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1]], dtype=torch.float64)
    assert apply_affine(affine, image)[:, 0, 0].tolist() == pytest.approx([1, 0.9, 0])
    assert score_fitted(image, image, None)["PSNR_fit"] == math.inf  # equal images need no correction
