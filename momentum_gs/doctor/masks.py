"""Checks of mask files against their images."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from momentum_gs.core.errors import UserError
from momentum_gs.data.images import image_size
from momentum_gs.data.masks import check_mask, read_mask
from momentum_gs.doctor.findings import Finding, some
from momentum_gs.doctor.images import MAX_THREADS, ImageFacts


@dataclass(frozen=True)
class _MaskFacts:
    name: str
    trouble: UserError | None = None
    share: float | None = None
    """Share of the pixels that count; None if the pixels were not read."""


def check_masks(
    folder: Path, masks: Mapping[str, Path], unknown: Sequence[str], images: Sequence[ImageFacts], *, quick: bool
) -> list[Finding]:
    """Findings about masks that training refuses, that ignore their whole image, or that belong to no image.

    Args:
        folder: The mask folder, for messages.
        masks: Image name -> mask file.
        unknown: Files in the folder that belong to no image.
        images: Facts about the images; masks of unreadable ones are not checked.
        quick: Read only the headers.
    """
    sizes = {fact.name: fact.size for fact in images if fact.size is not None and fact.name in masks}

    def look(name: str) -> _MaskFacts:
        width, height = sizes[name]
        try:
            check_mask(masks[name], width, height)
            share = None if quick else float(read_mask(masks[name], *image_size(masks[name])).float().mean())
        except UserError as error:
            return _MaskFacts(name, error)
        return _MaskFacts(name, share=share)

    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        facts = list(pool.map(look, sizes))
    findings = []
    bad = [fact for fact in facts if fact.trouble is not None]
    if bad:
        assert bad[0].trouble is not None
        first = Finding.of_error("mask", bad[0].trouble)
        names = tuple(fact.name for fact in bad)
        count = f"{len(bad)} of {len(facts)} masks do not fit, first: " if len(bad) > 1 else ""
        findings.append(Finding("error", "mask", str(folder), count + first.found, first.expected,
                                first.cure or "make the mask again, or remove it", names))  # fmt: skip
    black = tuple(fact.name for fact in facts if fact.share == 0)
    if black:
        findings.append(Finding("warning", "mask", str(folder), f"{some(black, len(facts))} all black: no pixel of the "
                                "image counts", "white where pixels count", "invert the mask, or remove the image",
                                black))  # fmt: skip
    if unknown:
        findings.append(Finding("warning", "mask", str(folder), f"masks without an image: {some(unknown)}",
                                "<image name>.png, in the image's subfolder", "rename or remove them",
                                tuple(unknown)))  # fmt: skip
    if masks and not bad:
        findings.append(Finding("info", "mask", str(folder), f"{len(masks)} images have a mask; black is ignored"))
    return findings
