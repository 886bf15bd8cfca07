"""Levels of detail: explicit Gaussians with coarser ones that stand for two of them each.

The nodes are a forest. Its leaves are the Gaussians of the full model; every other node is merged from its two
children. A *cut* has exactly one node on each path from a leaf to its root, so it shows the whole scene once. Source:
Hierarchical 3D Gaussians (Kerbl et al. 2024), which cuts by size on screen; here the error of merging decides, within a
budget of Gaussians.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.geometry import project
from momentum_gs.core.types import Camera
from momentum_gs.model.splats import Splats

LOD_FILE = Path("export") / "lod.safetensors"
"""Below the output folder of a run."""
_HALVINGS = 40
"""Of the interval of thresholds, in the logarithm: the threshold of a cut is then known to the precision of float32."""
_ENOUGH = 0.99
"""Share of the budget from which the search for the threshold ends."""
_SIGMAS = 3.0
"""A tree may show in the image as far as its root reaches, in standard deviations; its leaves lie within."""


@dataclass(frozen=True)
class LodTree:
    """M nodes; children come before their parents."""

    splats: Splats
    """The Gaussian of each node."""
    parent: Int[Tensor, "m"]
    """Index of the parent, -1 for roots."""
    error: Float[Tensor, "m"]
    """Error of showing this node in place of the leaves below it, in squared training units: divided by the squared
    distance in focal lengths it is in pixels. 0 for leaves, and never smaller than that of a child."""

    def __len__(self) -> int:
        return len(self.parent)

    @cached_property
    def root(self) -> Int[Tensor, "m"]:
        """Index of the root above each node; a root's own index for itself."""
        above = torch.where(self.parent < 0, torch.arange(len(self), device=self.parent.device), self.parent)
        while not torch.equal(higher := above[above], above):
            above = higher
        return above

    @property
    def leaves(self) -> int:
        """Number of Gaussians of the full model."""
        return int((self.error == 0).sum())

    def to(self, device: torch.device) -> "LodTree":
        """The tree on another device."""
        return LodTree(self.splats.to(device), self.parent.to(device), self.error.to(device))

    def level(self, budget: int) -> Splats:
        """The cut of at most ``budget`` Gaussians with the least error, whatever the camera.

        If there are more roots than that, it holds those roots that cover most.
        """
        return self.splats.subset(self._cut(self.error, torch.ones_like(self.parent, dtype=torch.bool), budget))

    def for_view(self, camera: Camera, budget: int) -> Splats:
        """The cut for a camera: at most ``budget`` Gaussians near its view, with the least error on the screen.

        The distance of a node is that of its root. So errors on the screen, too, are never smaller than those of
        children.

        Args:
            camera: The view.
            budget: At least 1.
        """
        roots = self.parent < 0
        position, reach = self.splats.position[roots], _SIGMAS * self.splats.scales[roots].amax(dim=1)
        away = torch.full_like(self.error, math.inf)
        away[roots] = (position - camera.center.to(position)).square().sum(dim=1)
        seen = torch.zeros_like(roots)
        seen[roots] = _may_show(position, reach, camera)
        return self.splats.subset(self._cut(self.error / away[self.root], seen[self.root], budget))

    def _cut(self, error: Float[Tensor, "m"], among: Bool[Tensor, "m"], budget: int) -> Int[Tensor, "c"]:
        """Indices of the nodes with the largest threshold that keeps the budget: error <= t < error of the parent."""
        node = among.nonzero()[:, 0]
        parent = self.parent[node]
        own = error[node]
        above = torch.where(parent >= 0, error[parent.clamp_min(0)], math.inf)

        def chosen(threshold: float) -> Bool[Tensor, "a"]:
            return (own <= threshold) & (above > threshold)

        finest = chosen(0.0)
        if int(finest.sum()) <= budget:
            return node[finest]
        low, high = math.log(torch.finfo(own.dtype).tiny), math.log(max(own.max().item(), 1.0)) + 1
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            count = int(chosen(math.exp(middle)).sum())
            low, high = (middle, high) if count > budget else (low, middle)
            if _ENOUGH * budget <= count <= budget:
                break
        found = node[chosen(math.exp(high))]
        if len(found) <= budget:
            return found
        covers = self.splats.opacity[found, 0].sigmoid() * self.splats.scales[found].square().sum(dim=1)
        return found[covers.topk(budget).indices.sort().values]


def _may_show(position: Float[Tensor, "n 3"], reach: Float[Tensor, "n"], camera: Camera) -> Bool[Tensor, "n"]:
    """Whether spheres may be visible; true for all that hold the camera or reach behind it."""
    pixels, depth = project(position, camera)
    grown = reach[:, None] * pixels.new_tensor([camera.fx, camera.fy]) / (depth - reach).clamp_min(1e-6)[:, None]
    size = pixels.new_tensor([camera.width, camera.height])
    inside = ((pixels >= -grown) & (pixels < size + grown)).all(dim=1)
    return (depth > -reach) & (inside | (depth <= reach))


def join_trees(trees: list[LodTree]) -> LodTree:
    """One forest of all the trees; at least one."""
    starts = torch.tensor([0] + [len(tree) for tree in trees[:-1]]).cumsum(0).tolist()
    return LodTree(
        Splats.cat([tree.splats for tree in trees]),
        torch.cat([torch.where(t.parent >= 0, t.parent + at, -1) for t, at in zip(trees, starts, strict=True)]),
        torch.cat([t.error for t in trees]),
    )


def save_lod(path: Path, tree: LodTree) -> None:
    """Writes a tree as safetensors, atomically."""
    rows = {name: row.detach().contiguous() for name, row in tree.splats.rows().items()}
    with replacing(path) as temporary:
        save_file({**rows, "parent": tree.parent, "error": tree.error}, str(temporary))


def load_lod(path: Path) -> LodTree:
    """Reads a tree, on the CPU.

    Raises:
        UserError: the file is missing, damaged, or holds no levels of detail.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected levels of detail; run 'momentum-gs export OUT --lod' first")
    try:
        with safe_open(str(path), framework="pt") as file:
            rows = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        return LodTree(Splats.from_rows(rows).as_leaves(), rows["parent"], rows["error"])
    except (SafetensorError, KeyError) as error:
        first_line = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not levels of detail ({first_line}); run 'momentum-gs export OUT --lod' again"
        ) from error
