"""PSNR, SSIM and LPIPS of rendered views, raw, corrected and fitted, from the PNG files as 3DGS codebases read them.

Metric names: without a suffix, the score is raw and comparable with published tables. ``_cc``: after correcting the
render's colours to the target image (which uses that image, so it is optimistic for every method). ``_fit``: of the
right half, after a colour correction fitted on the left half (eval/fitted.py); ``PSNR_right`` is the raw PSNR of that
half. ``_covered``: of the pixels whose surface point enough training views see (eval/covered.py). ``_norm``: LPIPS with
input in [-1, 1]. ``LPIPS`` is that of 3DGS papers, with vgg; other networks are named: ``LPIPS_squeeze``. Source:
metrics.py of Momentum-GS.

The PSNR of a block is that of the mean squared error over all pixels, of all views, that show the block. A mean of
PSNRs per view would weigh a view in which ten pixels show the block as much as one that it fills.

Pixels that a view's mask ignores affect no score: PSNR and SSIM as in core/image.py, colours are fitted without them,
and LPIPS gets them black in both images.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.image import Mask, color_correct, psnr, ssim, to_uint8
from momentum_gs.core.log import progress
from momentum_gs.data.images import image_size, read_image
from momentum_gs.data.masks import read_mask
from momentum_gs.eval.cells import read_cells
from momentum_gs.eval.covered import covered_pixels
from momentum_gs.eval.fitted import score_fitted
from momentum_gs.eval.lpips_metric import Lpips
from momentum_gs.eval.results import read_json, view_list_hash


@dataclass(frozen=True)
class FolderScores:
    """Scores of one method on one split."""

    mean: dict[str, float]
    """Metric -> mean over the views that have it."""
    per_view: dict[str, dict[str, float]]
    """Metric -> PNG name -> value."""
    protocol: dict[str, Any]
    """What was compared: numbers with different protocols do not belong in one ranking."""
    by_block: dict[str, Any]
    """``blocks``, ``worst_block``, ``border`` and ``interior`` of :class:`BlockErrors`; empty without maps."""


class BlockErrors:
    """Squared errors by the label of :mod:`momentum_gs.eval.cells`, summed over views."""

    def __init__(self, n_blocks: int) -> None:
        self._error = torch.zeros(1 + 2 * n_blocks, dtype=torch.float64)
        self._pixels = torch.zeros(1 + 2 * n_blocks, dtype=torch.int64)

    def add(
        self, render: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"], labels: Int64[Tensor, "h w"]
    ) -> None:
        """Adds one view; its labels are on the CPU, and pixels with label 0 are ignored."""
        error, places = (render - truth).square().mean(0).cpu().double(), labels.flatten()
        self._error += torch.bincount(places, error.flatten(), minlength=len(self._error))
        self._pixels += torch.bincount(places, minlength=len(self._pixels))

    def summary(self) -> dict[str, Any]:
        """The scores by block, as in results.json: PSNR (dB) and number of pixels of every block that is visible, the
        block with the lowest PSNR, and PSNR and share of the pixels near borders and of the others. The PSNR over no
        pixels is None."""
        inside, near = slice(1, None, 2), slice(2, None, 2)
        error, pixels = (all_of[inside] + all_of[near] for all_of in (self._error, self._pixels))
        blocks = {
            str(block): {"PSNR": _psnr(float(error[block]), count), "pixels": count}
            for block, count in enumerate(pixels.tolist())
            if count
        }
        if not blocks:
            return {}
        worst = min(blocks, key=lambda block: blocks[block]["PSNR"])
        sides = {
            name: {
                "PSNR": _psnr(float(self._error[side].sum()), int(self._pixels[side].sum())),
                "share": int(self._pixels[side].sum()) / int(pixels.sum()),
            }
            for name, side in (("border", near), ("interior", inside))
        }
        return {"blocks": blocks, "worst_block": {"block": int(worst), "PSNR": blocks[worst]["PSNR"]}, **sides}


def _psnr(error: float, pixels: int) -> float | None:
    """PSNR in dB of a summed squared error; infinite if that is 0, None without pixels."""
    if not pixels:
        return None
    return -10 * math.log10(error / pixels) if error else math.inf


def score_pair(
    render: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"], lpips: Lpips | None, mask: Mask = None
) -> dict[str, float]:
    """All metrics of one view.

    Args:
        render: In [0, 1].
        truth: The target image, in [0, 1].
        lpips: The metric; None leaves it out.
        mask: Pixels that count.
    """
    scores = {}
    if mask is not None:
        # Black pixels are saturated, and colour corrections ignore saturated pixels.
        render, truth = render * mask, truth * mask
    for suffix, image in (("", render), ("_cc", color_correct(render, truth))):
        if mask is not None:
            image = image * mask
        scores[f"PSNR{suffix}"] = float(psnr(image, truth, mask))
        scores[f"SSIM{suffix}"] = float(ssim(image, truth, mask))
        if lpips is not None:
            scores[f"{lpips.metric}{suffix}"] = lpips(image, truth)
    if lpips is not None:
        scores[f"{lpips.metric}_norm"] = lpips(render, truth, normalize=True)
    return scores | score_fitted(render, truth, lpips, mask)


@torch.no_grad()
def score_folder(folder: Path, lpips: Lpips | None, device: torch.device) -> FolderScores:
    """Scores the PNG pairs of a folder, two images in memory at a time; views in which no pixel counts are left out.

    Blocks before the merge are scored with the merged model's maps, so that both scores use the same pixels.

    Args:
        folder: OUT/<split>/ours_<N> or OUT/<split>/ours_<N>_blocks.
        lpips: The metric; None leaves it out.
        device: Where scores are computed.

    Raises:
        UserError: if renders are missing, unfinished, unpaired or of another size than their target images.
    """
    names = view_names(folder)
    masked = frozenset(read_json(folder / "render.json").get("masked", ()))
    views: dict[str, dict[str, float]] = {}
    sizes: Counter[str] = Counter()
    truth_digest, mask_digest = hashlib.sha256(), hashlib.sha256()
    maps, covered = _maps(folder, names), covered_pixels(folder, names)
    errors = None if maps is None else BlockErrors(maps.blocks)
    for name in progress(names, f"scoring {folder}"):
        render, truth = _read_pair(folder, name)
        mask = None
        if name in masked:
            counts = read_mask(folder / "masks" / name, truth.shape[2], truth.shape[1])
            mask_digest.update(counts.numpy().tobytes())
            mask = counts.to(device).float()
            if not mask.any():
                continue
        sizes[f"{truth.shape[2]}x{truth.shape[1]}"] += 1
        truth_digest.update(truth.numpy().tobytes())
        shown, target = _as_float(render, device), _as_float(truth, device)
        views[name] = score_pair(shown, target, lpips, mask)
        if covered is not None:
            views[name] |= covered.score(name, shown, target, mask)
        if maps is not None and errors is not None:
            labels = read_cells(maps.folder / name, truth.shape[2], truth.shape[1])
            if mask is not None:
                labels[mask[0].cpu() == 0] = 0
            errors.add(shown, target, labels)
    names = list(views)
    if not names:
        raise UserError(f"{folder}: masks ignore every pixel of all views, expected some that count; see scene.masks")
    # A view without covered pixels, for example, has no score over them.
    metrics = dict.fromkeys(metric for scores in views.values() for metric in scores)
    per_view = {metric: {name: views[name][metric] for name in names if metric in views[name]} for metric in metrics}
    mean = {metric: sum(values.values()) / len(values) for metric, values in per_view.items()}
    protocol = {
        "views": len(names),
        "view_list_sha256": view_list_hash(names),
        "resolution": dict(sizes),
        "ground_truth_sha256": truth_digest.hexdigest(),
        "images": "8-bit PNG, read back",
        "lpips": None if lpips is None else lpips.about(),
        "cells_sha256": None if maps is None else maps.sha256,
        "covered_sha256": None if covered is None else covered.sha256,
    }
    if masked:
        protocol["masks_sha256"] = mask_digest.hexdigest()
    return FolderScores(mean, per_view, protocol, {} if errors is None else errors.summary())


class _Maps(NamedTuple):
    """The maps of which block each pixel shows."""

    folder: Path
    blocks: int
    sha256: str | None
    """Hash of the cells (``PartitionTable.cells_sha256``); None in renders of earlier versions."""


def _maps(folder: Path, names: Sequence[str]) -> _Maps | None:
    """The maps of the merged model; None if it has none for these views."""
    merged = folder.with_name(folder.name.removesuffix("_blocks"))
    record = read_json(merged / "render.json")
    cells = record.get("cells")
    if cells is None or not set(names) <= set(record["names"]):
        return None
    return _Maps(merged / "cells", cells["blocks"], cells.get("sha256"))


def view_names(folder: Path) -> list[str]:
    """The sorted PNG names of a method's views: those that ``render.json`` lists, else all in ``renders/``.

    Raises:
        UserError: if rendering was interrupted, or there are none.
    """
    record = read_json(folder / "render.json")
    if record and not record["complete"]:
        raise UserError(f"{folder}: its rendering was interrupted; run 'momentum-gs render' again")
    names: list[str] = record.get("names") or [
        path.relative_to(folder / "renders").as_posix() for path in (folder / "renders").rglob("*.png")
    ]
    if not names:
        raise UserError(f"{folder}: holds no renders; run 'momentum-gs render' first")
    return sorted(names)


def _read_pair(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """(render, truth), uint8 [3,H,W]."""
    paths = folder / "renders" / name, folder / "gt" / name
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: missing, its pair cannot be scored; run 'momentum-gs render' again")
    sizes = [image_size(path) for path in paths]
    if sizes[0] != sizes[1]:
        (w0, h0), (w1, h1) = sizes
        raise UserError(f"{paths[0]} is {w0}x{h0} but {paths[1]} is {w1}x{h1}; run 'momentum-gs render' again")
    return read_image(paths[0], *sizes[0]), read_image(paths[1], *sizes[1])


def _as_float(image: Tensor, device: torch.device) -> Float[Tensor, "3 h w"]:
    return image.to(device).float() / 255


def error_map(render: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Mean absolute error of the channels as a heat map: black, red, yellow, white at 0, 1/12, 1/6 and 1/4 and above.

    The scale is fixed, so that maps of different views and runs are comparable; an error of a quarter of the range is
    plainly visible. The error is that of the 8-bit render, as in the metrics.
    """
    error = (to_uint8(render).float() / 255 - truth).abs().mean(0) * 4
    return torch.stack([(3 * error - i).clamp(0, 1) for i in range(3)])
