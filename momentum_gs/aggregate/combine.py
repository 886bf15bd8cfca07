"""MAS, model aggregation: the models of neighbouring devices become one, and learn from what they were before.

Each model has a share in every place: 1 in its own cells, 0 in those of the others, and in between where a strip
crosses a border; the shares of all models sum to 1. A Gaussian's optical depth is multiplied by its model's share, so
that models fade into each other at borders, where cropping would leave holes and doubles. Where no model has a cell,
the nearest one fills it.

Then the union is trained for some steps in the views on which borders lie: the models before aggregation are the
teachers, each in the views that it was trained on, so that no image is needed. In a view of several devices the target
is the mean of their renders: each has learned the same image with errors of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from momentum_gs.aggregate.upload import Upload
from momentum_gs.bake.refine import Lesson, first_rates, learn
from momentum_gs.config.schema import Config
from momentum_gs.core.geometry import contract
from momentum_gs.core.types import Camera, TargetImage
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.eval.cells import BORDER_SHARE
from momentum_gs.model.splats import Harmonics, Splats
from momentum_gs.render.ownership import block_weights, raster_camera
from momentum_gs.render.surface import Surface, unit_length
from momentum_gs.render.view import decode_view, render_view

STRIP = BORDER_SHARE
"""Half the width of the strip in which models fade into each other, as a share of the narrowest cell along its axis, in
contracted space."""
_LEAST = 0.02
"""Share below which a Gaussian is left out: an opacity of 0.63 would become 0.02."""
_PART = 1 << 16
"""Positions whose shares are found at a time, each with as many numbers as there are cells."""
OWNED = 0.05
"""Share of a view's pixels from which a border lies in it: at least two models make up as much of it. As
``partition.threshold``."""


@dataclass(frozen=True)
class Combined:
    """An aggregated model."""

    splats: Splats
    report: dict[str, Any]
    """What was joined, merged and learned."""


def regions(table: PartitionTable, owners: Sequence[Sequence[int]]) -> PartitionTable:
    """Space divided among some models, as a partition whose block i is what model i keeps.

    A cell belongs to the model that has its block, and a cell of no model to the one that has the nearest cell, counted
    in steps from cell to cell.

    Args:
        table: The partition.
        owners: Blocks of each model; disjoint, none empty.
    """
    grid = table.grid
    places = torch.tensor([grid.cell(cell) for cell in range(grid.n)])
    blocks = table.block_of(torch.arange(grid.n)).tolist()
    of_block = {block: i for i, owned in enumerate(owners) for block in owned}
    owned = [cell for cell in range(grid.n) if blocks[cell] in of_block]
    joined = []
    for cell in range(grid.n):
        distance = (places[owned] - places[cell]).abs().sum(dim=1)
        near = [of_block[blocks[owned[i]]] for i in (distance == distance.min()).nonzero()[:, 0].tolist()]
        joined.append(of_block.get(blocks[cell], min(near)))
    return replace(table, joined=tuple(joined), views=[[] for _ in owners], windows=None, meta={})


def shares(space: PartitionTable, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n r"]:
    """The share of each region in some places: how much of a box around each lies in the region's cells.

    The box is measured in contracted space. Shares sum to 1.

    Args:
        space: The regions, as blocks of a partition.
        points: World points.
    """
    grid = space.grid
    region = space.block_of(torch.arange(grid.n, device=points.device))
    unit = contract(space.to_grid(points.double()), space.aabb)
    along = []
    for axis, edges in enumerate(grid.edges):
        ends = unit.new_tensor(edges)
        half = STRIP * float(ends.diff().min())
        ends[0], ends[-1] = -torch.inf, torch.inf
        place = unit[:, axis, None]
        overlap = torch.minimum(place + half, ends[1:]) - torch.maximum(place - half, ends[:-1])
        along.append(overlap.clamp_min(0) / (2 * half))
    x, y, z = along
    of_cell = (z[:, :, None, None] * y[:, None, :, None] * x[:, None, None, :]).flatten(1)
    return of_cell.new_zeros(len(points), space.n).index_add_(1, region, of_cell)


def faded(model: Splats, space: PartitionTable, region: int) -> Splats:
    """The Gaussians of a model that have a share, with their optical depth -log(1 - opacity) multiplied by it."""
    position = model.position.detach()
    share = torch.cat([shares(space, part)[:, region] for part in position.split(_PART)]).to(position)
    kept = (share >= _LEAST).nonzero()[:, 0]
    part, share = model.subset(kept), share[kept, None]
    logit = part.opacity.detach()
    depth = F.softplus(logit) * share
    # Far from borders, opacities stay as they are, bit for bit.
    opacity = torch.where(share > 1 - 1e-6, logit, depth + torch.log(-torch.expm1(-depth)))
    return Splats.from_rows({**part.rows(), "opacity": opacity}).as_leaves()


def combine(uploads: Sequence[Upload], config: Config, device: torch.device) -> Combined:
    """Aggregates models. The model of a single upload is returned as it is.

    Args:
        uploads: In the order of their blocks (``receive``), at least one; each block at most once.
        config: ``aggregate``, ``gaussians``, ``loss`` and ``seed``.
        device: Where models are rendered.
    """
    if len(uploads) == 1:
        return Combined(uploads[0].splats, {"models": 1, "gaussians": len(uploads[0].splats)})
    space = regions(uploads[0].table, [upload.blocks for upload in uploads])
    teachers = [upload.splats.to(device) for upload in uploads]
    union = Splats.cat([faded(model, space, i) for i, model in enumerate(teachers)])
    cameras, known = border_views(union, space, uploads)
    report = {
        "models": len(uploads), "gaussians_before": sum(map(len, teachers)), "gaussians": len(union),
        "views": len(cameras), "images": len({name for upload in uploads for name in upload.images}),
    }  # fmt: skip
    if cameras and config.aggregate.steps:
        background = torch.full((3,), float(config.scene.white_background), device=device)
        lesson = _lessons(uploads, teachers, known, background, config.aggregate.surface)
        rates = first_rates(cameras, config.gaussians)
        union = learn(union, cameras, lesson, config.aggregate.steps, background, rates, config.loss, seed=config.seed)
    return Combined(union, report)


def _lessons(
    uploads: Sequence[Upload],
    teachers: Sequence[Splats],
    known: dict[str, list[int]],
    background: Float[Tensor, "3"],
    weight: float,
) -> Callable[[int, Camera], Lesson]:
    """What the union learns in a view: an image that was sent, else the mean of the renders of those who know it."""

    def lesson(kind: int, camera: Camera) -> Lesson:
        those = known[camera.name]  # A camera between two views has the name of the first.
        sent = [uploads[i].target(camera) for i in those] if kind != 2 else []
        image = next((target.image.to(background) for target in sent if target is not None), None)
        if image is not None and not weight:
            return Lesson(TargetImage(image))
        views = [
            render_view(teachers[i], Harmonics(teachers[i].sh_degree), camera, background, surface=weight > 0)
            for i in those
        ]
        if image is None:
            image = torch.stack([view.output.image for view in views]).mean(dim=0).clamp(0, 1)
        surfaces = [view.surface for view in views if view.surface is not None]
        return Lesson(TargetImage(image), surface=mean_surface(surfaces) if surfaces else None, surface_weight=weight)

    return lesson


def mean_surface(surfaces: Sequence[Surface]) -> Surface:
    """Mean depth of those that have one in a pixel, and the direction of the sum of their normals."""
    count = torch.stack([surface.there for surface in surfaces]).sum(dim=0)
    depth = torch.stack([surface.depth for surface in surfaces]).sum(dim=0) / count.clamp_min(1)
    normal = unit_length(torch.stack([surface.normal for surface in surfaces]).sum(dim=0))
    return Surface(depth, normal, torch.stack([surface.alpha for surface in surfaces]).mean(dim=0))


def border_views(
    union: Splats, space: PartitionTable, uploads: Sequence[Upload]
) -> tuple[list[Camera], dict[str, list[int]]]:
    """The views in which borders lie, in order of name, and for each the uploads that know it.

    A view counts if at least two models make up ``OWNED`` of it each.
    """
    known: dict[str, list[int]] = {}
    cameras: dict[str, Camera] = {}
    for i, upload in enumerate(uploads):
        for camera in upload.cameras:
            known.setdefault(camera.name, []).append(i)
            cameras.setdefault(camera.name, camera)
    owner = space.cell_of(union.position.detach().double())
    found = []
    for name in sorted(cameras):
        shares = view_shares(union, owner, cameras[name], space.n)
        if int((shares >= OWNED).sum()) >= 2:
            found.append(cameras[name])
    return found, known


@torch.no_grad()
def view_shares(splats: Splats, owner: Tensor, camera: Camera, n: int) -> Float[Tensor, "n"]:
    """The share of a view that each of n owners makes up; ``owner``: of each Gaussian."""
    small = raster_camera(camera)
    weights = block_weights(decode_view(splats, Harmonics(splats.sh_degree), small), small, owner)
    shares = torch.zeros(n)
    for i, weight in weights.items():
        shares[i] = float(weight.mean())
    return shares
