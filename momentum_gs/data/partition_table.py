"""The partition of a scene: one JSON file that train, merge, render and eval all read."""

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from momentum_gs.config.schema import PartitionConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.files import replacing
from momentum_gs.core.types import Camera
from momentum_gs.core.window import unpack_owned
from momentum_gs.data.blocks import BlockGrid, Cuts
from momentum_gs.data.frame import Frame
from momentum_gs.data.scene import Scene

VERSION = 2
"""Version of the file format. Version 1 had neither cuts nor joined cells and is still read."""

# Rotations and boxes may have been float32, whose relative round-off is 6e-8; real differences are larger than this.
TOLERANCE = 1e-5

_AGAIN = "re-run 'momentum-gs partition'"


@dataclass(frozen=True, eq=False)
class PartitionTable:
    """The grid, the frame of its axes, and the training views of every block, by image name."""

    aabb: tuple[float, float, float, float, float, float]
    """xmin, ymin, zmin, xmax, ymax, zmax of the uncontracted core, in the grid's frame."""
    dim: tuple[int, int, int]
    """Number of cells along x, y and z."""
    rotation: Float[Tensor, "3 3"]
    """Rotation from world axes to the grid's, float64."""
    views: list[list[str]]
    """Names of the training views of each block; a view may train several."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Further JSON values about the partition (threshold, coverage of the blocks, ...). If the coordinates
    (``Frame.record``) and ``balance`` are among them, ``check`` compares them."""
    cuts: Cuts | None = None
    """Positions of the cuts; None: cells of equal size in contracted space."""
    joined: tuple[int, ...] | None = None
    """Block of every cell, in the order of the grid's ids; None: each cell is a block."""
    windows: list[list[str]] | None = None
    """What each block owns of each of its views (``core.window.pack_owned``; empty: nothing), in the order of
    ``views``; None: not known, as in files of earlier versions."""

    def __post_init__(self) -> None:
        """Raises ValueError for parts that are inconsistent."""
        if self.joined is None:
            blocks = self.grid.n
        else:
            blocks = len(set(self.joined))
            if len(self.joined) != self.grid.n or set(self.joined) != set(range(blocks)):
                raise ValueError(f"joined is {self.joined}, expected blocks 0, 1, ... for {self.grid.n} cells")
        if len(self.views) != blocks:
            raise ValueError(f"{len(self.views)} lists of views for {blocks} blocks")
        if any(len(set(names)) != len(names) for names in self.views):
            raise ValueError("a view is listed twice in one block")
        if self.windows is not None and list(map(len, self.windows)) != list(map(len, self.views)):
            raise ValueError("windows must have one entry for each view of each block")
        off = (self.rotation @ self.rotation.T - torch.eye(3, dtype=self.rotation.dtype)).abs().max()
        # The condition is written so that NaN fails it; the determinant excludes reflections.
        if not (off < TOLERANCE and torch.linalg.det(self.rotation) > 0):
            raise ValueError(f"rotation is not one: {self.rotation.tolist()}")

    @property
    def n(self) -> int:
        """Number of blocks, joined cells counted once."""
        return len(self.views)

    @property
    def grid(self) -> BlockGrid:
        """The grid of cells, for points in the grid's frame."""
        return BlockGrid(self.aabb, self.dim, self.cuts)

    @property
    def cells_sha256(self) -> str:
        """SHA-256 of everything that determines the block of a position. Partitions with the same hash may differ in
        their views, and in their coordinates (``in_frame``)."""
        if "cells_sha256" in self.meta:
            return str(self.meta["cells_sha256"])
        parts = (self.aabb, self.dim, self.rotation.tolist(), self.cuts, self.joined)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def views_per_step(self, windows: bool) -> float:
        """Pixels that count in a step of every block, in whole views.

        Args:
            windows: A block counts the pixels that it owns of a view, on average over the views in which it owns any;
                otherwise all.
        """
        if not windows or self.windows is None:
            return float(self.n)
        owned = [[float(unpack_owned(text).float().mean()) for text in texts if text] for texts in self.windows]
        return sum(sum(shares) / max(1, sum(share > 0 for share in shares)) for shares in owned)

    def unowned(self) -> float:
        """Pixels of the training views that no block trains with ``blocks.windows``, as a share of all: their owners'
        contributions to the view are below ``partition.threshold``. 0 where windows are not known."""
        if self.windows is None:
            return 0.0
        owned: dict[str, Tensor] = {}
        for names, texts in zip(self.views, self.windows, strict=True):
            for name, text in zip(names, texts, strict=True):
                squares = unpack_owned(text).any(dim=0)
                owned[name] = owned[name] | squares if name in owned else squares
        return 1 - float(torch.stack(list(owned.values())).float().mean()) if owned else 0.0

    def block_of(self, cells: Int64[Tensor, "*s"]) -> Int64[Tensor, "*s"]:
        """The block of each cell of the grid."""
        return cells if self.joined is None else torch.tensor(self.joined, device=cells.device)[cells]

    def cells(self, block: int) -> list[int]:
        """The cells of a block, ascending."""
        return [block] if self.joined is None else [cell for cell, of in enumerate(self.joined) if of == block]

    def to_grid(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """World points in the grid's frame."""
        return points @ self.rotation.to(points).T

    def cell_of(self, points: Float[Tensor, "n 3"]) -> Int64[Tensor, "n"]:
        """The block of each world point, joined cells counted as one; errors as ``BlockGrid.cell_of``."""
        return self.block_of(self.grid.cell_of(self.to_grid(points)))

    def owner(self, camera: Camera) -> int:
        """The block whose cell holds a camera's centre."""
        return int(self.cell_of(camera.center[None]))

    def in_frame(self, frame: Frame) -> "PartitionTable":
        """The same cells in other training coordinates; unchanged if ``meta`` does not record its own."""
        if "offset" not in self.meta or all(self.meta.get(k) == v for k, v in frame.record().items()):
            return self
        x, y, z = self.meta["offset"]
        own = Frame((x, y, z), self.meta.get("unit", 1.0), tuple(self.meta.get("axes", ("x", "y", "z"))))
        scale = frame.unit / own.unit
        between = torch.tensor(frame.offset, dtype=torch.float64) - torch.tensor(own.offset, dtype=torch.float64)
        shift = self.rotation @ own.rotation @ between / own.unit
        corners = torch.tensor(self.aabb, dtype=torch.float64).view(2, 3)
        x0, y0, z0, x1, y1, z1 = ((corners - shift) / scale).flatten().tolist()
        return replace(
            self,
            aabb=(x0, y0, z0, x1, y1, z1),
            rotation=self.rotation @ own.rotation @ frame.rotation.T,
            meta={**self.meta, **frame.record(), "cells_sha256": self.cells_sha256},
        )

    def save(self, path: Path) -> None:
        """Writes the table, atomically, and creates its folder."""
        record = {
            "version": VERSION,
            "aabb": list(self.aabb),
            "dim": list(self.dim),
            "rotation": self.rotation.tolist(),
            "cuts": self.cuts,
            "joined": self.joined,
            "meta": self.meta,
            "views": self.views,
            "windows": self.windows,
        }
        text = json.dumps(record, indent=1, allow_nan=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "PartitionTable":
        """Reads a file of ``save``.

        Raises:
            UserError: for a missing or damaged file, or one of another version.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            version = record["version"]
            if version == 1:
                return _from_record({**record, "cuts": None, "joined": None})
            if version == VERSION:
                return _from_record(record)
        except OSError as error:
            raise UserError(f"partition: cannot read {path} ({error.strerror}); run 'momentum-gs partition'") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"partition: {path} is damaged ({type(error).__name__}: {error}); {_AGAIN}") from error
        raise UserError(f"partition: {path} has version {version!r}, expected {VERSION}; {_AGAIN}")

    def check(self, config: PartitionConfig, scene: Scene) -> None:
        """Compares the table with the settings and the scene of a run.

        Raises:
            UserError: the table was made for another grid, another ``balance`` or other coordinates, or it names views
                that are not training views.
        """
        if config.dim is not None and config.dim != self.dim:
            raise UserError(
                f"partition: table was made for grid {_times(self.dim)}, config has {_times(config.dim)}; {_AGAIN}"
            )
        if config.dim is None and config.blocks not in ("auto", self.grid.n):
            raise UserError(
                f"partition: table has {self.grid.n} cells, config has partition.blocks={config.blocks}; {_AGAIN}"
            )
        if config.aabb is not None and not _same_box(self.aabb, config.aabb):
            raise UserError(
                f"partition: table was made for grid {_times(self.dim)} over aabb {list(self.aabb)}, config has aabb "
                f"{list(config.aabb)}; {_AGAIN}"
            )
        self.check_coordinates(scene)
        made = self.meta.get("balance")
        if config.balance is not None and made not in (None, config.balance):
            raise UserError(
                f"partition: table was cut with partition.balance={made}, config has {config.balance}; {_AGAIN}"
            )
        known = {camera.name for camera in scene.train}
        named = {name for names in self.views for name in names}
        unknown = sorted(named - known)
        if unknown:
            held_out = "a held-out view" if unknown[0] in {camera.name for camera in scene.test} else "not in the scene"
            raise UserError(
                f"partition: {len(unknown)} of {len(named)} views in the table are not training views of {scene.path}, "
                f"first: {unknown[0]!r} ({held_out}); {_AGAIN}"
            )

    def check_coordinates(self, scene: Scene) -> None:
        """Raises UserError if the table was made for other coordinates than the scene's."""
        now = scene.frame.record()
        made = {name: self.meta[name] for name in now if name in self.meta}  # Earlier versions have fewer.
        if any(value != now[name] for name, value in made.items()):
            raise UserError(f"partition: table is for coordinates with {made}, the scene is read with {now}; {_AGAIN}")


def _from_record(record: dict[str, Any]) -> PartitionTable:
    """Checks every type, since JSON may hold NaN, or true for 1. Raises ValueError, KeyError or TypeError."""
    aabb, dim, rotation, views, meta = (record[key] for key in ("aabb", "dim", "rotation", "views", "meta"))
    numbers = [*aabb, *(v for row in rotation for v in row)]
    if not all(type(v) in (int, float) and math.isfinite(v) for v in numbers):
        raise ValueError("aabb and rotation must be finite numbers")
    if not (len(aabb) == 6 and [len(row) for row in rotation] == [3, 3, 3]):
        raise ValueError("aabb must have 6 numbers and rotation 3x3")
    if not (len(dim) == 3 and all(type(d) is int for d in dim)):
        raise ValueError("dim must be 3 integers")
    if not (isinstance(views, list) and all(isinstance(names, list) for names in views)):
        raise ValueError("views must be lists of names")
    if not all(isinstance(name, str) for names in views for name in names):
        raise ValueError("views must be lists of names")
    if not isinstance(meta, dict):
        raise ValueError("meta must be an object")
    cuts, joined = record["cuts"], record["joined"]
    if cuts is not None and not all(type(v) is float and math.isfinite(v) for axis in cuts for v in axis):
        raise ValueError("cuts must be finite numbers")
    if joined is not None and not all(type(block) is int for block in joined):
        raise ValueError("joined must be integers")
    x0, y0, z0, x1, y1, z1 = (float(v) for v in aabb)
    dx, dy, dz = dim
    matrix = torch.tensor(rotation, dtype=torch.float64)
    if cuts is not None:
        x, y, z = cuts
        cuts = (tuple(x), tuple(y), tuple(z))
    joined = None if joined is None else tuple(joined)
    windows = record.get("windows")
    if windows is not None:
        if not (isinstance(windows, list) and all(isinstance(texts, list) for texts in windows)):
            raise ValueError("windows must be lists of texts")
        for text in (text for texts in windows for text in texts):
            if not isinstance(text, str):
                raise ValueError("windows must be lists of texts")
            unpack_owned(text)
    return PartitionTable((x0, y0, z0, x1, y1, z1), (dx, dy, dz), matrix, views, meta, cuts, joined, windows)


def _same_box(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    size = max(a[i + 3] - a[i] for i in range(3))
    return all(abs(u - v) <= TOLERANCE * size for u, v in zip(a, b, strict=True))


def _times(dim: tuple[int, ...]) -> str:
    return "x".join(str(d) for d in dim)
