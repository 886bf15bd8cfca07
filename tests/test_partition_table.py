"""Facts about the partition file."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scene_files import camera, points

from momentum_gs.config.schema import PartitionConfig
from momentum_gs.core.errors import UserError
from momentum_gs.core.geometry import quat_to_matrix
from momentum_gs.core.types import Camera
from momentum_gs.data.blocks import BlockGrid
from momentum_gs.data.frame import Frame
from momentum_gs.data.partition_table import PartitionTable
from momentum_gs.data.scene import Scene

AABB = (-1.0, -2.0, -3.0, 1.0, 2.0, 3.0)
TURN = quat_to_matrix(torch.tensor([0.9, 0.1, -0.3, 0.2], dtype=torch.float64))
VIEWS = [["a/1.png", "b/1.png"], ["b/1.png"], [], ["ö 2.png"]]


def table(rotation: torch.Tensor = TURN, **parts: Any) -> PartitionTable:
    return PartitionTable(**{"aabb": AABB, "dim": (2, 2, 1), "rotation": rotation, "views": VIEWS, **parts})


def scene(train: list[str], test: list[str]) -> Scene:
    return Scene(Path("city"), [camera(n) for n in train], [camera(n) for n in test], points(), {})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    meta = {"threshold": 0.05, "up": [0.0, 0.6, -0.8], "made by": {"coarse": "out/coarse"}}
    path = tmp_path / "new" / "partition.json"
    saved = table(meta=meta)
    saved.save(path)
    found = PartitionTable.load(path)
    assert (found.aabb, found.dim, found.views, found.meta) == (saved.aabb, saved.dim, saved.views, meta)
    assert torch.equal(found.rotation, saved.rotation)
    assert found.n == 4 and found.grid == BlockGrid(AABB, (2, 2, 1))
    assert [p.name for p in path.parent.iterdir()] == ["partition.json"]


CUTS = ((0.3,), (1 / 3,), ())


def test_cuts_and_joined_cells_are_saved(tmp_path: Path) -> None:
    path = tmp_path / "partition.json"
    table(cuts=CUTS, joined=(0, 1, 0, 1), views=VIEWS[:2]).save(path)
    found = PartitionTable.load(path)
    assert found.grid == BlockGrid(AABB, (2, 2, 1), CUTS)  # bit for bit
    assert (found.n, found.joined) == (2, (0, 1, 0, 1))


def test_windows_are_saved_and_files_without_them_read(tmp_path: Path) -> None:
    path = tmp_path / "partition.json"
    windows = [[f"{len(name):02x}" * 128 for name in names] for names in VIEWS]
    table(windows=windows).save(path)
    assert PartitionTable.load(path).windows == windows
    record = json.loads(path.read_text())
    del record["windows"]  # Early files of version 2 have none.
    path.write_text(json.dumps(record))
    assert PartitionTable.load(path).windows is None
    with pytest.raises(ValueError, match="one entry for each view"):
        table(windows=windows[:3])


def test_the_hash_of_cells_depends_on_where_they_are() -> None:
    same = [table(), table(views=[[]] * 4, meta={"threshold": 1})]
    others = [table(torch.eye(3, dtype=torch.float64)), table(cuts=CUTS), table(joined=(0, 1, 0, 1), views=VIEWS[:2]),
              table(aabb=(-1.0, -2.0, -3.0, 1.0, 2.0, 4.0))]  # fmt: skip
    assert len({one.cells_sha256 for one in same}) == 1
    assert len({one.cells_sha256 for one in (*same, *others)}) == 1 + len(others)


def test_files_of_version_1_are_read(tmp_path: Path) -> None:
    """They have no cuts and no joined cells."""
    path = tmp_path / "partition.json"
    table().save(path)
    record = json.loads(path.read_text())
    del record["cuts"], record["joined"]
    path.write_text(json.dumps({**record, "version": 1}))
    found = PartitionTable.load(path)
    assert (found.views, found.grid, found.joined) == (VIEWS, table().grid, None)


def test_joined_cells_are_one_block() -> None:
    cloud = points(100).xyz
    made = table(joined=(0, 1, 0, 2), views=VIEWS[:3])
    cell = table().cell_of(cloud)
    block = made.cell_of(cloud)
    assert made.n == 3 and made.grid.n == 4
    assert block.equal(torch.tensor([0, 1, 0, 2])[cell])
    # Each cell belongs to exactly one block.
    assert sorted(c for b in range(made.n) for c in made.cells(b)) == list(range(4))
    assert all(made.block_of(torch.tensor(made.cells(b))).eq(b).all() for b in range(made.n))


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "partition.json"
    table().save(path)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        table(meta={"score": math.nan}).save(path)  # JSON has no NaN
    assert path.read_bytes() == before

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError):
        table(views=[[], [], [], []]).save(path)
    assert path.read_bytes() == before


def test_cells_are_those_of_the_turned_points() -> None:
    cloud = points(100).xyz
    made = table()
    assert torch.equal(made.cell_of(cloud), made.grid.cell_of(cloud @ TURN.T))
    assert len(made.cell_of(cloud).unique()) == 4  # all cells occur


def test_without_a_turn_cells_are_bitwise_those_of_the_grid() -> None:
    cloud = points(1000).xyz.float()
    made = table(torch.eye(3, dtype=torch.float64))
    assert torch.equal(made.to_grid(cloud), cloud)
    assert torch.equal(made.cell_of(cloud), made.grid.cell_of(cloud))


def test_the_owner_is_the_cell_of_the_cameras_centre() -> None:
    made = table(torch.eye(3, dtype=torch.float64))

    def at(x: float, y: float) -> Camera:
        view = camera("a.png")
        return Camera(**{**vars(view), "translation": -view.rotation @ torch.tensor([x, y, 0.1]).double()})

    assert [made.owner(at(x, y)) for y in (-0.5, 0.5) for x in (-0.5, 0.5)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"views": [[]] * 3}, "3 lists of views for 4 blocks"),
        ({"views": [["a"], ["b", "c", "b"], [], []]}, "listed twice"),
        ({"rotation": 2 * torch.eye(3).double()}, "rotation"),
        ({"rotation": -torch.eye(3).double()}, "rotation"),
        ({"rotation": torch.full((3, 3), math.nan).double()}, "rotation"),
        ({"dim": (2, 0, 2)}, "dim"),
        ({"aabb": (0.0, 0.0, 0.0, 1.0, 1.0, 0.0)}, "aabb"),
        ({"cuts": ((0.5,), (), ())}, "cuts"),
        ({"joined": (0, 1, 2)}, "joined is"),
        ({"joined": (0, 1, 1, 3)}, "joined is"),
        ({"joined": (0, 0, 1, 2)}, "4 lists of views for 3 blocks"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(**parts)


def change(key: str, value: object) -> Callable[[dict], None]:
    return lambda record: record.update({key: value})


DAMAGE: list[tuple[Callable[[dict], object], str]] = [
    *((lambda record, key=key: record.pop(key), f"KeyError: '{key}'")
      for key in ("version", "aabb", "dim", "rotation", "views", "meta", "cuts", "joined")),
    (change("version", 3), "version 3, expected 2"),
    (change("version", None), "version None, expected 2"),
    (change("aabb", [0, 0, 0, 1, 1]), "aabb must have 6 numbers"),
    (change("aabb", [0, 0, 0, 1, 1, "1"]), "finite numbers"),
    (change("aabb", [0, 0, 0, 1, 1, math.nan]), "finite numbers"),
    (change("aabb", [0, 0, 0, 1, 1, True]), "finite numbers"),
    (change("aabb", [0, 0, 0, 1, 1, 0]), "aabb is"),
    (change("aabb", 3), "TypeError"),
    (change("dim", [2, 2]), "3 integers"),
    (change("dim", [2, 2, 1.0]), "3 integers"),
    (change("dim", [2, 2, -1]), "dim is"),
    (change("dim", [2, 2, 10**9]), "4 lists of views for 4000000000 blocks"),
    (change("rotation", [[1, 0, 0], [0, 1, 0]]), "3x3"),
    (change("rotation", [[1, 0, 0], [0, 1, 0], [0, 0, math.inf]]), "finite numbers"),
    (change("rotation", [[1, 0, 0], [0, 1, 0], [0, 1, 0]]), "rotation is not one"),
    (change("cuts", [[0.5], [0.5]]), "ValueError"),
    (change("cuts", [[0.5], [0.5], [0.5]]), "cuts are"),
    (change("cuts", [[0.5], [1.5], []]), "cuts are"),
    (change("cuts", [[0.5], [math.nan], []]), "finite numbers"),
    (change("cuts", 0.5), "TypeError"),
    (change("joined", [0, 1, 2]), "joined is"),
    (change("joined", [0, 1, 2, True]), "integers"),
    (change("joined", [0, 0, 1, 1]), "4 lists of views for 2 blocks"),
    (change("views", [[], [], []]), "3 lists of views for 4 blocks"),
    (change("views", [[], [], [], ["a", 1]]), "lists of names"),
    (change("views", [[], [], [], "abc"]), "lists of names"),
    (change("views", None), "lists of names"),
    (change("meta", []), "object"),
    (change("windows", [["00" * 128], [], [], []]), "one entry for each view"),
    (change("windows", [["00" * 128] * 2, ["00" * 128], ["00" * 128]]), "one entry for each view"),
    (change("windows", [["00" * 128, "00" * 127], ["00" * 128], [], ["00" * 128]]), "254 hexadecimal digits, exp"),
    (change("windows", [["00" * 128, "xy" * 128], ["00" * 128], [], ["00" * 128]]), "hexadecimal"),
    (change("windows", [["00" * 128, 1], ["00" * 128], [], ["00" * 128]]), "lists of texts"),
    (change("windows", [["00" * 128] * 2, ["00" * 128], [], "a"]), "lists of texts"),
    (change("windows", 1), "lists of texts"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[f"{i}-{m[:30]}" for i, (_, m) in enumerate(DAMAGE)])
def test_damaged_records_are_refused_in_one_line(
    tmp_path: Path, damage: Callable[[dict], object], message: str
) -> None:
    path = tmp_path / "partition.json"
    table().save(path)
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=message) as error:
        PartitionTable.load(path)
    assert str(path) in str(error.value) and "re-run 'momentum-gs partition'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[1, 2]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_no_table_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "partition.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match="partition.json is damaged"):
        PartitionTable.load(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "partition.json"
    table().save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="partition.json is damaged"):
            PartitionTable.load(path)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*No such file.*run 'momentum-gs partition'"):
        PartitionTable.load(tmp_path / "partition.json")


CITY = scene(["a/1.png", "b/1.png", "ö 2.png", "d.png"], ["c.png"])


@pytest.mark.parametrize(
    "config",
    [
        PartitionConfig(dim=(2, 2, 1)),
        PartitionConfig(blocks=4),
        PartitionConfig(blocks="auto"),
        PartitionConfig(dim=(2, 2, 1), aabb=AABB),
        # A box that was rounded to float32.
        PartitionConfig(dim=(2, 2, 1), aabb=tuple(v * (1 + 6e-8) for v in AABB)),
        # With a given grid the number of blocks does not matter.
        PartitionConfig(dim=(2, 2, 1), blocks=8),
    ],
)
def test_a_table_that_fits_is_accepted(config: PartitionConfig) -> None:
    table().check(config, CITY)


def test_a_table_of_moved_coordinates_or_other_cuts_is_refused() -> None:
    made = table(meta={"offset": [0.0, 0.0, 0.0], "balance": "points"})
    made.check(PartitionConfig(blocks=4), CITY)
    made.check(PartitionConfig(blocks=4, balance="points"), CITY)
    with pytest.raises(UserError, match=r"offset.: \[0.0, 0.0, 0.0\].*read with .*\[500000.0, "):
        made.check(PartitionConfig(blocks=4), replace(CITY, frame=Frame((5e5, 0.0, 0.0))))
    with pytest.raises(UserError, match="cut with partition.balance=points, config has cameras; re-run"):
        made.check(PartitionConfig(blocks=4, balance="cameras"), CITY)


@pytest.mark.parametrize(
    ("config", "city", "message"),
    [
        (PartitionConfig(dim=(2, 1, 2)), CITY, "table was made for grid 2x2x1, config has 2x1x2; re-run"),
        (PartitionConfig(blocks=8), CITY, "table has 4 cells, config has partition.blocks=8; re-run"),
        (
            PartitionConfig(dim=(2, 2, 1), aabb=(-1.0, -2.0, -3.0, 1.0, 2.0, 3.1)),
            CITY,
            r"over aabb \[-1.0.*config has aabb .*3.1",
        ),
        (PartitionConfig(blocks=4), scene(["a/1.png", "b/1.png"], []), r"1 of 3 views .*first: 'ö 2.png' \(not in the"),
        (PartitionConfig(blocks=4), scene(["a/1.png", "ö 2.png"], ["b/1.png"]), r"'b/1.png' \(a held-out view\)"),
    ],
)
def test_a_table_for_something_else_is_refused(config: PartitionConfig, city: Scene, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        table().check(config, city)
    assert "re-run 'momentum-gs partition'" in str(error.value)


def test_the_same_cells_in_other_coordinates() -> None:
    own = Frame((1.0, -2.0, 3.0), 2.0, ("y", "-x", "z"))
    other = Frame((5.0, 0.5, -1.0), 0.25, ("-z", "x", "-y"))
    made = replace(table(), meta=own.record())
    moved = made.in_frame(other)
    points = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 3)) * 4)
    assert len(made.cell_of(own.points(points)).unique()) == made.n
    assert torch.equal(made.cell_of(own.points(points)), moved.cell_of(other.points(points)))
    assert moved.cells_sha256 == made.cells_sha256 == moved.in_frame(own).cells_sha256
    assert made.in_frame(own) is made
    # A table without a record of its coordinates is not changed.
    assert table().in_frame(other).aabb == table().aabb
