"""Choice of the pairs of images to match, and the connected groups of the matched pairs."""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.data.prepare.align import geodetic_to_enu, local_origin

Matching = Literal["auto", "exhaustive", "spatial", "sequential", "retrieval"]

EXHAUSTIVE = 150
"""Largest number of images without GPS of which every pair is matched: 11,175 pairs."""
OVERLAP = 20
"""Sequential matching: every image is matched with this many next ones by name, and with those at distances of powers
of two."""
SECTORS = 8
"""Spatial matching: directions in which neighbours are searched. Six or more connect all positions (Yao 1982), however
dense they are along a line."""
IN_SECTOR = 2
"""Nearest positions in each direction: 16 in total inside a flight, nearly its first two rings of neighbours."""
NEXT = 4
"""Spatial matching and retrieval: every image is also matched with this many next ones by name, in case its fix is
wrong or it looks like another place."""
LINKED = 30
"""Matches that link two images: the minimum with which COLMAP's mapper registers an image."""

Fixes = dict[str, tuple[float, float, float]]
"""Latitude and longitude, degrees, and height, metres, by name."""


def resolve(way: Matching, names: Sequence[str], fixes: Fixes) -> Matching:
    """Resolves ``auto``: spatial if 9 of 10 images have GPS, else exhaustive for few images, else retrieval."""
    if way != "auto":
        return way
    # For fewer images, matching all pairs costs little more.
    if len(names) > SECTORS * IN_SECTOR and len(fixes) >= 0.9 * len(names):
        return "spatial"
    return "exhaustive" if len(names) <= EXHAUSTIVE else "retrieval"


def choose_pairs(
    names: Sequence[str], way: Matching, fixes: Fixes, similar: Iterable[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """Pairs of names to match, each once, in order.

    Args:
        names: Sorted image names.
        way: With ``spatial``, images without a fix are matched by name, as with ``sequential``.
        fixes: Geodetic positions, from ``Sfm.fixes``.
        similar: With ``retrieval``, the pairs of ``similar_pairs``, which are matched as well.

    Raises:
        UserError: ``spatial`` with fewer than two fixes.
    """
    if way == "exhaustive":
        return list(combinations(names, 2))
    pairs = set(similar)
    ahead = [*range(1, OVERLAP + 1), *(2**power for power in range(5, 16))]
    for i, name in enumerate(names):
        if way == "sequential" or (way == "spatial" and name not in fixes):
            pairs |= {(name, names[i + step]) for step in ahead if i + step < len(names)}
            # Also with earlier ones: those with a fix would not be matched with this one.
            pairs |= {(names[i - step], name) for step in ahead if step <= i}
    if way == "spatial":
        if len(fixes) < 2:
            raise UserError(
                f"prepare: {len(fixes)} images have GPS, expected more for spatial matching; choose another with "
                "--matching"
            )
        located = [name for name in names if name in fixes]
        geodetic = torch.tensor([fixes[name] for name in located], dtype=torch.float64)
        pairs |= pairs_around(located, geodetic_to_enu(geodetic, local_origin(geodetic))[:, :2])
    if way in ("spatial", "retrieval"):
        pairs |= {pair for step in range(1, NEXT + 1) for pair in zip(names, names[step:], strict=False)}
    return sorted(pairs)


def pairs_around(names: Sequence[str], places: Float[Tensor, "n 2"]) -> set[tuple[str, str]]:
    """Pairs of each image with those nearest to it in every direction.

    The overall nearest images might all be of the same flight line, if images are denser along lines than across.

    Args:
        names: Sorted image names.
        places: East and north, metres.
    """
    # Rigs take several images at one position; all of them count as one neighbour.
    at_one_place = math.ceil(len(names) / len(places.round(decimals=1).unique(dim=0)))
    count = min(IN_SECTOR * at_one_place, len(names))
    pairs = set()
    for start in range(0, len(names), 200):  # Limits the size of the distance matrix.
        some = range(start, min(start + 200, len(names)))
        away = places[None] - places[some.start : some.stop, None]
        distance = away.norm(dim=2)
        distance[torch.arange(len(some)), torch.arange(some.start, some.stop)] = math.inf  # itself
        sector = ((torch.atan2(away[..., 1], away[..., 0]) / (2 * math.pi) + 0.5) * SECTORS).long() % SECTORS
        for direction in range(SECTORS):
            near = distance.masked_fill(sector != direction, math.inf).topk(count, largest=False)
            for i, row, metres in zip(some, near.indices.tolist(), near.values.tolist(), strict=True):
                chosen = (j for j, metre in zip(row, metres, strict=True) if metre < math.inf)
                pairs |= {(names[min(i, j)], names[max(i, j)]) for j in chosen}
    return pairs


def linked_groups(names: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The connected components of the names under ``pairs``, largest first; names in no pair are groups of one."""
    group = {name: {name} for name in names}
    for a, b in pairs:
        if group[a] is not group[b]:
            small, large = sorted((group[a], group[b]), key=len)
            large |= small
            for name in small:
                group[name] = large
    found = {id(members): sorted(members) for members in group.values()}
    return sorted(found.values(), key=lambda members: (-len(members), members))
